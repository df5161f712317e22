"""A recording on the terminal: the answer, the tables, then how it was measured."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from descend.lab.bench.document import facts
from descend.lab.bench.recording import Recording
from descend.lab.bench.tables import METHOD, answers, tables


def show(recording: Recording, where: Console) -> None:
    """Print everything."""
    for answer in answers(recording):
        where.print(Text(answer))
    for table in tables(recording):
        where.print()
        table.show(where)
    where.print()
    where.print(Text("How it was measured", style="bold"))
    for line in (*METHOD, ", ".join(f"{key} {value}" for key, value in facts(recording).items())):
        where.print(Text(line, style="dim"))
    if recording.stopped:
        where.print(Text("Stopped; this is what was measured until then.", style="bold"))


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
