"""The site's generator knows every public optimizer and everything that it has to say about it."""

from __future__ import annotations

import inspect

import pytest
import torch

import descend

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
