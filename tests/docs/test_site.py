"""The site's generator knows every public optimizer and everything that it has to say about it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import descend
from helpers import ROOT

pytest.importorskip("matplotlib", reason="the site's pictures need matplotlib, which descend[lab] has")
import make_site  # noqa: E402


def test_every_public_optimizer_has_a_page_of_its_own() -> None:
    public = {getattr(descend, name) for name in descend.__all__}
    rules = {k for k in public if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)}
    assert set(make_site.optimizers().values()) == rules - {descend.Optimizer, descend.Mixed}
    assert len(set(make_site.SLUGS.values())) == len(make_site.SLUGS)


@pytest.mark.parametrize("name", make_site.optimizers())
def test_a_page_has_formula_code_and_every_argument(name: str) -> None:
    kind = make_site.optimizers()[name]
    page = make_site.optimizer_page(name, kind)
    assert "<math" in page.split("## The rule in code")[0]
    assert "def " in page
    told = make_site.entries(make_site.sections(kind)["Args"])
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = [name for name, p in inspect.signature(kind).parameters.items() if p.kind in named]
    assert [argument for argument in given if not told.get(argument)] == []
    assert all(f"| `{argument}` |" in page for argument in told if argument != "common")


def test_links_that_are_named_by_a_file_have_its_title(tmp_path: Path) -> None:
    pages = make_site.Pages(tmp_path)
    pages.copy(ROOT / "docs" / "internals.md")
    assert "[Your own optimizer](own_optimizer.md) shows each" in (tmp_path / "internals.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")], ids=lambda p: p.stem)
def test_code_blocks_name_a_language_and_nothing_else(page: Path) -> None:
    """MkDocs takes a fence with more words for text, and everything after it for code."""
    assert re.findall(r"^```(?!\w*$).*$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


def test_the_code_of_a_rule_is_its_own_after_it_was_constructed() -> None:
    before = make_site.code(descend.NAdamW)
    descend.NAdamW([torch.nn.Parameter(torch.ones(1))])
    assert make_site.code(descend.NAdamW) == before
    assert "def step(" not in before


def test_functions_that_a_rule_calls_are_folded() -> None:
    rule, folded = make_site.code(descend.Muon).split("<details")
    assert "def direction(" in rule
    assert "def shape_gain(" not in rule
    assert "def shape_gain(" in folded


def test_the_reference_has_what_rules_are_written_in() -> None:
    page = make_site.terms()
    assert "### ema\n\n```python\nema(average: Tensor, x: Tensor, weight: Scalar) -> Tensor\n```" in page
    assert {"### orthogonalize", "### signed", "### Range"} <= set(page.splitlines())
