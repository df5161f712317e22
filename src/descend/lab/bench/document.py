"""A recording as a page of the documentation."""

from __future__ import annotations

from descend.lab.bench.recording import Recording
from descend.lab.bench.tables import METHOD, Table, tables
from descend.lab.grid import grid


def markdown(recording: Recording) -> str:
    """The whole page."""
    parts = [
        "# Performance",
        "Generated from a recording by `descend bench --render FILE.json`; `make bench` makes one. Absolute times hold "
        "for the machine below; ratios are what to look at.",
        *(f"{_section(table)}" for table in tables(recording)),
        "## How it was measured",
        "\n".join(f"- {line}" for line in METHOD),
        "## On what machine",
        _facts(recording),
    ]
    return "\n\n".join(parts) + "\n"


def _section(table: Table) -> str:
    head, *rows = ([_cell(cell) for cell in row] for row in (table.head, *table.rows))
    cells = grid(head, rows, right=table.title != "Numbers")
    notes = "\n".join(f"- {_cell(note)}" for note in table.notes)
    return "\n\n".join(part for part in (f"## {table.title}", cells, notes) if part)


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _facts(recording: Recording) -> str:
    facts = {**recording.machine, **recording.versions, **{k: str(v) for k, v in recording.settings.items()}}
    facts["the run took"] = f"{recording.seconds / 60:.1f} minutes"
    return "\n".join(["| | |", "| --- | --- |", *(f"| {_cell(k)} | {_cell(v)} |" for k, v in facts.items())])
