"""A recording as a document."""

from __future__ import annotations

from descend.lab.bench.recording import Recording
from descend.lab.bench.tables import METHOD, answers, tables
from descend.lab.table import escape
from descend.lab.table import markdown as grid


def markdown(recording: Recording) -> str:
    """The whole document."""
    parts = [
        "# What a step costs",
        "\n".join(f"- {escape(answer)}" for answer in answers(recording)),
        *(table.markdown() for table in tables(recording)),
        "## How it was measured",
        "\n".join(f"- {line}" for line in METHOD),
        "Absolute times hold for the machine below; ratios are what to look at.",
        "## On what machine",
        grid(["", ""], [[key, value] for key, value in facts(recording).items()], right=False),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def facts(recording: Recording) -> dict[str, str]:
    """The machine, the versions and the settings."""
    found = {**recording.machine, **recording.versions, **{k: str(v) for k, v in recording.settings.items()}}
    return found | {"the run took": f"{recording.seconds / 60:.1f} minutes"}
