"""The lab writes where the user says, and has none of the project's own targets."""

from __future__ import annotations

from pathlib import Path

from descend import lab

ROOT = Path(lab.__file__).parent


def test_nothing_is_written_but_where_the_user_says() -> None:
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert 'Path("docs' not in text, path
        assert "asked" not in path.stem
