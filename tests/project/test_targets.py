"""The project's own targets, which live outside the package."""

from __future__ import annotations

import pytest

import descend
from descend.lab.bench.document import markdown
from descend.lab.names import plain_names
from helpers.recordings import fake

targets = pytest.importorskip("targets")


def test_everything_covers_every_number() -> None:
    tasks = targets.everything((), plain_names()).cases
    assert {task.rule for task in tasks} >= set(targets.SEEDS)
    assert {task.model for task in tasks} == {"vit_s", "resnet50", "many_tiny"}
    elementwise = {n for n in plain_names() if descend.get_optimizer_info(n).reach == "elementwise"}
    assert elementwise <= {task.rule for task in tasks}


def test_numbers_stand_beside_what_was_asked() -> None:
    found = {v.what.split(",")[0]: v for v in targets.verdicts(fake())}
    assert {what for what, v in found.items() if v.passed is None} == {
        "AdamP",
        "Adafactor",
        "default mode against timm",
        "Muon",
        "SOAP and Shampoo",
    }
    elementwise = found["elementwise rules"]
    assert elementwise.passed is False
    assert elementwise.missed == ["rmsproptf, vit_s 1.30 × the time of the traffic alone"]
    assert found["Lamb"].passed
    assert found["fused against timm"].passed
    assert "3.3" in found["fused against timm"].reached
    assert found["150 tensors of 16 elements"].reached.startswith("worst 3.33 (adamw)")
    assert found["peak extra memory of a fused step"].passed
    assert found["compile"].passed
    assert found["import descend after import torch"].passed is False


def test_the_page_of_the_project_has_comparisons_first_and_targets_last() -> None:
    text = targets.page(fake())
    assert text.startswith("# Performance\n\n- Fused against timm, thirteen optimizers of both: ")
    assert text.index("## Step time") < text.index("| elementwise rules, ViT-S/16")
    assert "miss" in text
    assert "miss" not in markdown(fake())
