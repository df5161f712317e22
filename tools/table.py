"""Write the table of optimizers and capabilities into docs/capabilities.md, and its summary into README.md.

Usage: python tools/table.py docs/capabilities.json

The file is what ``pytest -m capability --record-capabilities=FILE`` wrote: every mark is made of tests that passed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def holes(record: dict[str, Any]) -> list[str]:
    """Cells with a test that failed, and cells with neither a test nor a reason."""
    found = []
    for name, row in record["optimizers"].items():
        for column in record["columns"]:
            cells = [row["cells"][key] for key in column["marks"] if key in row["cells"]]
            if any(cell["failed"] for cell in cells):
                found.append(f"{name}, {column['title']}: a test failed")
            elif not any(cell["passed"] or cell["notes"] for cell in cells):
                found.append(f"{name}, {column['title']}: no test")
    return found


class Notes:
    """Reasons, numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def refer(self, texts: Iterable[str]) -> str:
        """The numbers of these reasons, raised."""
        for text in texts:
            if text not in self.texts:
                self.texts.append(text)
        numbers = ", ".join(str(self.texts.index(text) + 1) for text in texts)
        return f"<sup>{numbers}</sup>" if numbers else ""

    def __str__(self) -> str:
        return "\n".join(f"{i}. {text[0].upper()}{text[1:]}." for i, text in enumerate(self.texts, 1))


def cell(row: dict[str, Any], column: dict[str, Any], notes: Notes, show: Callable[[str, int], str]) -> str:
    """Marks of what passed, a dash where nothing did, and the numbers of the reasons."""
    here = {key: row["cells"][key] for key in column["marks"] if key in row["cells"]}
    marks = [show(column["marks"][key], tests["passed"]) for key, tests in here.items() if tests["passed"]]
    reasons = list(dict.fromkeys(note for tests in here.values() for note in tests["notes"]))
    return (", ".join(marks) or "–") + notes.refer(reasons)


def table(record: dict[str, Any], top: str, show: Callable[[str, int], str]) -> str:
    """The table in Markdown with its reasons; `top` leads from the page to the top of the repository."""
    notes = Notes()
    titles = [column["title"] for column in record["columns"]]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{':-:|' * len(titles)}"]
    for name, row in record["optimizers"].items():
        filled = " | ".join(cell(row, column, notes, show) for column in record["columns"])
        lines.append(f"| [{name}]({top}{row['file']}) | {filled} |")
    return "\n".join(lines) + (f"\n\n{notes}" if notes.texts else "")


def source(record: dict[str, Any]) -> str:
    """From what, and by which commands."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"`{record['command']}` ({versions}), then `python tools/table.py docs/capabilities.json`"


def summary(record: dict[str, Any]) -> str:
    """Each capability with the number of optimizers that have it."""
    lines = ["| capability | optimizers | what tests show |", "|---|--:|---|"]
    rows = [row["cells"] for row in record["optimizers"].values()]
    for column in record["columns"]:
        have = sum(any(cells.get(key, {}).get("passed") for key in column["marks"]) for cells in rows)
        lines.append(f"| {column['title']} | {have} of {len(rows)} | {column['shows']} |")
    return "\n".join(lines)


def readme(record: dict[str, Any]) -> str:
    """What stands between the markers of the README."""
    return (
        f"{summary(record)}\n\n"
        "Which optimizers these are, how many tests are behind each, and why the others lack a capability:\n"
        f"[docs/capabilities.md](docs/capabilities.md). Made by {source(record)}."
    )


def page(record: dict[str, Any]) -> str:
    """The whole of docs/capabilities.md."""
    meanings = "\n".join(f"- **{column['title']}**: {column['shows']}." for column in record["columns"])
    counts = table(record, "../", lambda mark, tests: str(tests) if mark == "✓" else f"{mark} ({tests})")
    return f"""# Capabilities

What each optimizer can do. A number is how many tests show it, in brackets where the cell names what; a dash is a
capability that the optimizer does not have, and its number leads to the reason below the table.

{meanings}

{counts}

Made by {source(record)}.
"""


def insert(text: str, block: str, mark: str = "table") -> str:
    """The text with the block between its markers.

    Raises:
        ValueError: if the markers are missing.
    """
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the page has no {begin} ... {end} to write between")
    return f"{text[: text.index(begin)]}{begin}\n{block}\n{text[text.index(end) :]}"


def main(path: Path) -> None:
    """Write both files, or say which cells are missing."""
    record = json.loads(path.read_text(encoding="utf-8"))
    if problems := holes(record):
        sys.exit("\n".join(["the table has holes:", *problems]))
    target = ROOT / "README.md"
    target.write_text(insert(target.read_text(encoding="utf-8"), readme(record)), encoding="utf-8")
    (ROOT / "docs" / "capabilities.md").write_text(page(record), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
