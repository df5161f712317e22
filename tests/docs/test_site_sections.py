"""What an optimizer's page says of cost, evidence, other names and the race comes from counts and recordings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import descend
from helpers import ROOT

pytest.importorskip("matplotlib", reason="the site's pictures need matplotlib, which descend[lab] has")
pytest.importorskip("typer", reason="costs are counted by the lab, which descend[lab] has")
import elsewhere  # noqa: E402
import layers  # noqa: E402
import make_site  # noqa: E402
import picture  # noqa: E402
import sections  # noqa: E402


@pytest.mark.parametrize(
    ("kind", "collectives"), [(descend.AdamW, "0"), (descend.Lamb, "[1-9]"), (descend.Muon, "[1-9]")]
)
def test_costs_have_what_a_step_sends(kind: type, collectives: str) -> None:
    text = sections.costs(kind)
    assert "| state, MiB | " in text
    row = next(line for line in text.splitlines() if line.startswith("| collectives |"))
    assert re.fullmatch(rf"\| collectives \| 0 \| {collectives}\d* \|", row)


def test_costs_say_why_a_step_is_not_counted() -> None:
    assert "create_graph=True" in sections.costs(descend.Adahessian)
    assert "optimizer inside" in sections.costs(descend.SAM)


def test_evidence_is_that_of_the_optimizer_alone() -> None:
    assert "schedule-free AdamW 0.85" in sections.evidence(descend.ScheduleFreeAdamW)
    lion = sections.evidence(descend.Lion)
    assert "memory is short: `Lion` and `SGD` keep 4 bytes" in lion
    assert "Lion and sign momentum do well" in lion
    assert "Sophia" not in lion
    assert sections.evidence(descend.Rprop).startswith("None of the comparisons")


def test_names_elsewhere_are_of_public_classes() -> None:
    named = {*elsewhere.TRANSFORMERS, *elsewhere.KOHYA, *elsewhere.TORCH}
    assert named <= set(make_site.optimizers())
    assert all(hasattr(torch.optim, name) for name in elsewhere.TORCH.values())
    lamb = sections.other_names(descend.Lamb)
    assert "`lamb`" in lamb
    assert "`descend.Lamb`" in lamb


def test_the_race_of_a_page_is_the_recorded_one(tmp_path: Path) -> None:
    assert sections.raced(descend.Lion) == ("lion",)
    assert sections.raced(descend.Kron) == ("kron",)
    assert sections.raced(descend.SAM) == ()
    picture.draw(sections.RACE, tmp_path / "lion.svg", ("lion",))
    assert f"{sections.RACE['optimizers']['lion']['curve'][-1]:.3g}  lion" in (tmp_path / "lion.svg").read_text()


def test_a_box_of_the_layers_imports_only_from_boxes_below_it() -> None:
    below = layers.imports(ROOT / "src" / "descend")
    height = {name: -i for i, row in enumerate(layers.rows(below)) for name in row}
    assert set(height) == set(below)
    assert all(height[name] > height[other] for name, others in below.items() for other in others)
    assert {"optimizers", "catalogue", "engine.executors", "terms"} <= set(height)
    assert layers.svg(below).count("<rect ") == len(below)


def test_tables_of_docstrings_become_markdown() -> None:
    table = make_site.prose(
        "such as\n\n====  ======\nname  what\n====  ======\na|b   of two\nc     one\n====  ======\n\nend"
    )
    assert table == "such as\n\n| name | what |\n|---|---|\n| a\\|b | of two |\n| c | one |\n\nend"
