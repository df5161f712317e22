"""What a visitor reads is true: code runs and prints what it says, links lead somewhere, the table is the tests'."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import table
import torch

import descend
from descend.catalogue import factory
from helpers import ROOT
from helpers.capabilities import KNOWN, NEITHER, WRAPS, cells, optimizers

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECORD = ROOT / "docs" / "capabilities.json"
# Its code is a pattern to fill in.
PATTERNS = {"CONTRIBUTING.md"}
# Their code needs the library that they come from; tests/integrations runs it.
ELSEWHERE = {"from_bitsandbytes.md", "from_pytorch_optimizer.md", "from_schedulefree.md"}


def code(page: Path) -> list[tuple[str, str | None]]:
    """Each block of Python with what it prints: the block of text right after it, if there is one."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in FENCE.finditer(text):
        if block[1] == "python":
            after = FENCE.match(text[block.end() :].lstrip("\n"))
            found.append((block[2], after[2] if after and after[1] == "text" else None))
    return found


@pytest.fixture
def _own_registry() -> Iterator[None]:
    """Names that a page registers are gone after it."""
    factory.default_registry.cache_clear()
    yield
    factory.default_registry.cache_clear()


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if code(p) and p.name not in PATTERNS | ELSEWHERE], ids=lambda p: p.name
)
def test_code_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # the compiler looks its globals up there
    for source, expected in code(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, page.name, "exec"), vars(module))
        if expected is not None:
            assert [line.rstrip() for line in printed.getvalue().splitlines()] == expected.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


# ----------------------------------------------------------------------------------------------------------- the table


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def test_every_cell_has_tests_that_passed_or_a_reason(record: dict[str, Any]) -> None:
    assert table.holes(record) == []


def test_the_tables_are_made_from_the_record(record: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == table.insert(readme, table.readme(record)), "run: python tools/table.py docs/capabilities.json"
    assert (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8") == table.page(record)


def test_the_table_lists_exactly_the_optimizers(record: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\(\.\./src/", page, re.MULTILINE)
    assert listed == list(optimizers()) == list(record["optimizers"])


def test_the_readme_counts_what_the_record_has(record: dict[str, Any]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for column in record["columns"]:
        rows = [row["cells"] for row in record["optimizers"].values()]
        have = [cells for cells in rows if any(cells[key]["passed"] for key in column["marks"] if key in cells)]
        assert f"| {column['title']} | {len(have)} of {len(optimizers())} |" in readme


def test_every_name_of_the_catalogue_leads_to_a_row() -> None:
    registry = descend.default_registry()
    paths = {str(registry.get_optimizer_info(name).opt_class) for name in registry.list_optimizers()}
    ours = {path.rpartition(".")[2] for path in paths if path.startswith("descend.")}
    assert {getattr(descend, name).__name__ for name in ours} <= set(optimizers())


def test_the_record_has_every_marked_test(record: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """Those of this session; a run of all tests leaves no cell of the record without one."""
    collected = {cell for item in request.session.items for cell in cells(item)}
    rows = {name: row["cells"] for name, row in record["optimizers"].items()}
    recorded = {(name, key) for name, row in rows.items() for key in KNOWN if key in row}
    assert collected <= recorded
    if request.config.args_source is pytest.Config.ArgsSource.TESTPATHS and not request.config.getoption("keyword"):
        by_nature = {(name, key) for name, key in recorded if set(rows[name][key]["notes"]) & {NEITHER, WRAPS}}
        assert recorded - collected == by_nature - collected
