"""What a race has shown: its ranking, its ties, and the report."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from descend.lab.racing import Race
from descend.lab.summary import Row, rows, verdict
from descend.lab.task import Task


@dataclass(frozen=True)
class Result:
    """A race and its task; as text, the table that `descend race` prints."""

    race: Race
    task: Task

    @property
    def rows(self) -> list[Row]:
        """A row for each optimizer, the best first."""
        return rows(self.race, self.task)

    @property
    def verdict(self) -> str:
        """Who won, or who cannot be told apart."""
        return verdict(self.rows)

    def save(self, folder: str | Path) -> Path:
        """Write race.json and report.html; the latter's path."""
        from descend.lab import report, store

        store.save(self.race, Path(folder))
        page = Path(folder) / "report.html"
        page.write_text(report.html(self.race, self.task), encoding="utf-8")
        return page

    def __str__(self) -> str:
        from rich.console import Console

        from descend.lab.screen import race_table

        text = io.StringIO()
        race_table(self.race, self.task).show(Console(file=text, width=100))
        return text.getvalue().rstrip()
