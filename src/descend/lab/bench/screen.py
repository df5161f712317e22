"""A recording on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid
from rich.text import Text

from descend.lab.bench.recording import Recording
from descend.lab.bench.tables import Table, tables

WIDE = 180  # where there is no terminal to fit


def console() -> Console:
    """A console wide enough for all columns where nobody looks at it."""
    found = Console()
    return found if found.is_terminal else Console(width=max(WIDE, found.width))


def show(recording: Recording, where: Console) -> None:
    """Print every table."""
    for table in tables(recording):
        where.print()
        where.print(grid(table))
        for note in table.notes:
            where.print(Text(note, style="dim"))
    if recording.stopped:
        where.print(Text("Stopped; this is what was measured until then.", style="bold"))


def grid(table: Table) -> Grid:
    """A table as rich prints it."""
    made = Grid(title=table.title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    words = table.title == "Numbers"
    for i, head in enumerate(table.head):
        made.add_column(head, justify="left" if words or i == 0 else "right", style="bold" if i == 0 else "")
    for row in table.rows:
        made.add_row(*(Text(cell, style={"pass": "green", "miss": "red"}.get(cell, "")) for cell in row))
    return made


class Bar:
    """A bar over all that is to be measured."""

    def __init__(self, total: int, where: Console) -> None:
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=where,
            expand=True,
            transient=True,
        )
        self.line = self.bar.add_task("starting", total=total, completed=-1)

    def __enter__(self) -> Bar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def watch(self, what: str) -> None:
        """The next thing begins."""
        self.bar.update(self.line, description=what, advance=1)
