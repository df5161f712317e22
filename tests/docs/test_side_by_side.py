"""docs/own_optimizer.md shows the code that there is, and a rule takes no more concepts than it says."""

from __future__ import annotations

import sys

import pytest

from helpers.capabilities import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import side_by_side  # noqa: E402

PAGE = (ROOT / "docs" / "own_optimizer.md").read_text(encoding="utf-8")


def test_the_lines_on_the_page_are_the_librarys() -> None:
    assert side_by_side.insert(PAGE) == PAGE, "run: python tools/side_by_side.py"
    assert len(side_by_side.RULES) == 10


@pytest.mark.parametrize(("name", "most"), [("PlainAdamW", 6), ("PlainLamb", 10), ("PlainMuon", 14)])
def test_a_rule_takes_few_concepts(name: str, most: int) -> None:
    found = side_by_side.concepts(PAGE, name)
    print(f"{name}: {len(found)} concepts, {', '.join(found)}")
    assert len(found) <= most, found
