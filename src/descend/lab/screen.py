"""What a race prints: how far it is, and its table."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from descend.lab.racing import Moment, Race, Settings, progress
from descend.lab.summary import rows, show_lr, show_metric, show_ms, show_ratio, verdict
from descend.lab.table import NOTHING, Table, plural
from descend.lab.task import Task


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

    def far(self, race: Race, workers: int) -> None:
        """Move the bar of a race that others carry out."""
        done, total = progress(race)
        self.bar.update(self.line, description=plural(workers, "worker"), completed=done, total=total)

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
    settings, found = race.settings, rows(race, task)
    goal = "target" if settings.target is None else show_metric(settings.target, task)
    head = ["optimizer", "lr", "median", "best", f"steps to {goal}", "seconds", "ms a step", "of it optim.", "B/param"]
    lines = [
        [
            row.name + " =" * (row.ties and row.name != found[0].name),
            show_lr(row.lr) + "*" * row.at_edge,
            show_metric(row.median, task),
            show_metric(row.best, task),
            f"{row.steps_to_target:.0f}" if math.isfinite(row.steps_to_target) else NOTHING,
            f"{row.seconds_to_target:.2f}" if math.isfinite(row.seconds_to_target) else NOTHING,
            show_ms(row.step_ms),
            show_ms(row.optimizer_ms),
            show_ratio(row.state_bytes / race.parameters),
        ]
        for row in found
    ]
    if race.untrained:
        lines.append(["untrained", "", show_metric(race.untrained.metric, task), *[""] * 6])
    notes = [verdict(found)]
    if any(row.at_edge for row in found):
        notes.append("* the best learning rate is at the edge of what was tried")
    notes += [f"{name} is out: {entry.error}" for name, entry in race.entries.items() if entry.error]
    runs = f"{plural(settings.steps, 'step')}, {plural(settings.seeds, 'seed')}"
    return Table(f"{task.title or task.name}: {task.metric_name} after {runs}", head, lines, notes)
