"""What the commands print: tables, one optimizer's page, and a race while it runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from descend.catalogue.info import OptimInfo
from descend.lab.facts import Catalogue, bytes_per_parameter, defaults
from descend.lab.racing import Moment, Race, Settings
from descend.lab.summary import rows, show_lr, show_metric, show_ms, show_ratio, verdict
from descend.lab.task import Task


def catalogue_table(book: Catalogue, names: Sequence[str]) -> Table:
    """One row an optimizer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("class", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    table.add_column("year", justify="right")
    table.add_column("reach")
    table.add_column("state\nB/param", justify="right")
    for name in names:
        info = book.get_optimizer_info(name)
        table.add_row(
            name,
            class_name(info),
            Text(info.description),
            str(info.paper.year) if info.paper else "",
            info.reach or "",
            bytes_per_parameter(book, name),
        )
    return table


def class_name(info: OptimInfo) -> str:
    """The name of the class behind an entry, whether or not it can be imported."""
    found = getattr(info, "opt_class", None)
    return found.rpartition(".")[2] if isinstance(found, str) else getattr(found, "__name__", "")


def show(book: Catalogue, name: str, console: Console) -> None:
    """Print one optimizer's page."""
    info = book.get_optimizer_info(name)
    console.print(Text(f"{name}  {class_name(info)}", style="bold"))
    if info.description:
        console.print(Text(info.description))
    try:
        kind = info.load()
        options = defaults(info)
    except ImportError as error:
        console.print(Text(str(error)))
        return
    console.print(Padding(Text(inspect.getdoc(kind) or "no description"), (1, 0, 1, 2)))

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    for option, value in options.items():
        table.add_row(option, Text(value))
    console.print(Text("defaults", style="bold underline"))
    console.print(Padding(table, (0, 0, 1, 2)))

    usual, *short = (bytes_per_parameter(book, name, state_dtype=bits) for bits in (None, "int8", "int4"))
    console.print(
        Text(
            f"state      {usual} bytes per parameter of a 1024 x 1024 float32 matrix, {short[0]} with state_dtype='int8', "
            f"{short[1]} with 'int4'"
        )
    )
    console.print(Text(f"reach      {info.reach or 'unknown'}"))
    if info.suggested_lr:
        low, high = info.suggested_lr
        console.print(Text(f"lr         {show_lr(low)} to {show_lr(high)}  {info.lr_source}".rstrip()))
    if info.paper:
        paper = info.paper
        console.print(Text(f"reference  {paper.authors}, {paper.title}, {paper.year}. {paper.link}"))


class RaceScreen:
    """A progress bar over the whole race, and a line for everyone who is through."""

    def __init__(self, task: Task, settings: Settings, console: Console) -> None:
        self.task, self.settings = task, settings
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self.line = self.bar.add_task("reading data", total=None)
        self.told: set[str] = set()

    def __enter__(self) -> RaceScreen:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def watch(self, now: Moment) -> None:
        """Move the bar."""
        what = (
            f"[bold]{now.name}[/] {now.phase} {now.number}/{now.planned}  lr {show_lr(now.lr)}  "
            f"{show_metric(now.metric, self.task)}"
        )
        self.bar.update(self.line, description=what, completed=now.done, total=now.total)

    def ran(self, race: Race) -> None:
        """Print a line for an optimizer that has finished or failed."""
        for row in rows(race, self.task):
            if row.runs == self.settings.seeds and row.name not in self.told:
                self.told.add(row.name)
                self.bar.console.print(
                    f"{row.name:<20} {show_metric(row.median, self.task):>9}   lr {show_lr(row.lr)} after "
                    f"{row.trials} trials",
                    markup=False,
                    highlight=False,
                )
        for name, entry in race.entries.items():
            if entry.error and name not in self.told:
                self.told.add(name)
                self.bar.console.print(Text(f"{name:<20} {entry.error}", style="red"))


def race_table(race: Race, task: Task) -> Table:
    """The result, the best first."""
    settings = race.settings
    goal = "target" if settings.target is None else show_metric(settings.target, task)
    table = Table(
        title=f"{task.title or task.name}: {task.metric_name} after {settings.steps} steps, {settings.seeds} seeds",
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        caption_justify="left",
    )
    table.add_column("optimizer", style="bold", no_wrap=True)
    for head in (
        "\nlr",
        "\nmedian",
        "\nbest",
        f"to {goal}\nsteps",
        "\nseconds",
        "ms\nstep",
        "of it\noptim",
        "state\nB/par",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    for row in (found := rows(race, task)):
        table.add_row(
            row.name + " =" * (row.ties and row.name != found[0].name),
            show_lr(row.lr) + "*" * row.at_edge,
            show_metric(row.median, task),
            show_metric(row.best, task),
            f"{row.steps_to_target:.0f}" if math.isfinite(row.steps_to_target) else "-",
            f"{row.seconds_to_target:.2f}" if math.isfinite(row.seconds_to_target) else "-",
            show_ms(row.step_ms),
            show_ms(row.optimizer_ms),
            show_ratio(row.state_bytes / race.parameters),
        )
    if race.untrained:
        table.add_row("untrained", "", show_metric(race.untrained.metric, task), style="dim")
    for name, entry in race.entries.items():
        if entry.error:
            table.add_row(name, "", Text("failed", style="red"))
    table.caption = verdict(found)
    if any(row.at_edge for row in found):
        table.caption += "\n* the best learning rate is at the edge of what was tried"
    return table
