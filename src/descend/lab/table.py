"""Tables of words, printed on a terminal of any width or written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

NOTHING = "–"
GAP = 2  # columns of a terminal between two columns of a table


@dataclass
class Table:
    """Rows of words under a head; the first column names the row.

    Attributes:
        title: what the table says.
        head: a title for each column.
        rows: one cell for each column.
        notes: sentences below.
        right: the other columns hold numbers, which end at the right.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    right: bool = True

    def markdown(self) -> str:
        """A section of a document."""
        notes = "\n".join(f"- {escape(note)}" for note in self.notes)
        return "\n\n".join(
            part for part in (f"## {self.title}", markdown(self.head, self.rows, self.right), notes) if part
        )

    def show(self, console: Console) -> None:
        """Print it; where it is too wide, in bands of columns, each with the first."""
        console.print(Text(self.title, style="bold"))
        for band in self._bands(console.width):
            console.print(self._grid(band))
        for note in self.notes:
            console.print(Text(note, style="dim"))

    def _bands(self, width: int) -> list[list[int]]:
        """The columns after the first, in runs that fit."""
        widths = [self._width(i) for i in range(len(self.head))]
        bands: list[list[int]] = [[]]
        room = width - widths[0]
        for i, needed in enumerate(widths[1:], 1):
            if bands[-1] and needed + GAP > room:
                bands.append([])
                room = width - widths[0]
            bands[-1].append(i)
            room -= needed + GAP
        return bands

    def _width(self, column: int) -> int:
        """As wide as the widest cell, and as the longest word of the head."""
        cells = [len(row[column]) for row in self.rows]
        return max([*cells, *(len(word) for word in self.head[column].split()), 1])

    def _grid(self, band: Sequence[int]) -> Grid:
        made = Grid(box=None, pad_edge=False, header_style="bold")
        for i in (0, *band):
            side: Literal["left", "right"] = "right" if self.right and i else "left"
            made.add_column(
                Text(self.head[i]), justify=side, style="" if i else "bold", max_width=self._width(i), overflow="fold"
            )
        for row in self.rows:
            made.add_row(*(Text(row[i]) for i in (0, *band)))
        return made


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], right: bool = True) -> str:
    """A table as Markdown; its first column to the left, the others to the right unless told otherwise."""
    rule = ["---"] + ["---:" if right else "---"] * (len(head) - 1)
    lines = (map(escape, head), rule, *(map(escape, row) for row in rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape(words: str) -> str:
    """Words whose signs mean nothing in Markdown; code between backticks stays."""
    parts = words.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = parts[i].replace("_", "\\_").replace("*", "\\*")
    return "`".join(parts).replace("|", "\\|")


def plural(count: int, noun: str, many: str | None = None) -> str:
    """A count with its noun: 1 seed, 2 seeds."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}".replace(",", " ")
