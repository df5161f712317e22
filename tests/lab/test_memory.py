"""`descend memory`: bytes at once, trainings when asked, kept as they are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from descend.lab.commands import app
from descend.lab.memory import document, measure
from descend.lab.models import model_of
from descend.lab.names import created
from descend.lab.sizes import held_bytes

memory_targets = pytest.importorskip("memory_targets")


def command(*words: object) -> Any:
    return CliRunner().invoke(app(), ["memory", *map(str, words)])


@pytest.fixture(scope="module")
def found() -> measure.Findings:
    """Everything but the times of compiled steps, on shapes that take no time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(measure, "GPT", lambda **_: measure.tasks()["gpt"].model())
    found = measure.Findings(seeds=1, steps=1)
    found.weights = [measure.weights(name, model_of("vit_s")) for name in ("adamw", "lion", "muon")]
    measure.measure(("peaks", "losses"), found, ["adamw", "lion", "muon"])
    patch.undo()
    found.times = {"float32": 1.0, "bfloat16": 1.2, "int8": 1.5, "int4": 9.0}
    return found


@pytest.mark.parametrize("storage", measure.STORAGES)
@pytest.mark.parametrize("name", ("adamw", "lion", "muon", "adafactor", "shampoo", "schedulefreeadamw"))
def test_what_is_said_is_what_is_held(name: str, storage: str) -> None:
    params = [nn.Parameter(torch.ones(shape)) for shape in ((64, 256), (64,))]
    optimizer = created(name, params, 1e-3, **measure.STORAGES[storage])
    for p in params:
        p.grad = torch.full_like(p, 1e-3)
    optimizer.step()
    said = sum(optimizer.state_bytes(p, group) for group in optimizer.param_groups for p in group["params"])
    assert held_bytes(optimizer) == pytest.approx(said, rel=1e-3)


def test_steps_in_backward_hold_less(found: measure.Findings) -> None:
    peaks = found.peaks
    assert peaks["float32"] == pytest.approx(16, rel=1e-2)
    assert peaks["bfloat16 + Kahan, int8, in backward"] < 0.45 * peaks["float32"]


def test_the_page_says_what_was_found(found: measure.Findings, tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    measure.save(found, file)
    assert measure.load(file) == found
    text = document.markdown(found)
    assert "1 step, mean of 1 seed" in text
    assert "bfloat16, nearest" in text
    assert text.count("\n| muon |") == 3
    assert "| asked |" not in text
    page = memory_targets.page(found)
    assert page.startswith("# Memory\n\n- AdamW keeps 8 bytes of state for each parameter, 2.05 ")
    assert "A compiled step takes 1.5 times as long with 8-bit state" in page
    assert page.index("## The most that") < page.index("| asked |")
    assert "| fused int8 AdamW, times float32 | ≤ 1.5 | 1.50 | pass |" in page


def test_bytes_come_without_any_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "train", None)
    result = command("--optimizers", "lamb")
    assert result.exit_code == 0, result.output
    assert "lamb         8.000     4.000  2.055  1.061" in result.output


def test_only_those_asked_are_trained_and_each_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, file = list[tuple[str, str]](), tmp_path / "memory.json"

    def train(one: measure.Losses, *_: object) -> None:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append((one.optimizer, one.state))
        one.losses.append(2.0)

    monkeypatch.setattr(measure, "train", train)
    result = command("--optimizers", "lamb", "--train", "--seeds", 1, "--json", file)
    assert result.exit_code == 130, result.output
    assert trained == [("lamb", "float32"), ("lamb", "int8")]
    assert [one.state for one in measure.load(file).losses] == ["float32", "int8"]
    assert "+0.00%" in result.output


def test_render_writes_the_page_and_refuses_other_files(found: measure.Findings, tmp_path: Path) -> None:
    file, page = tmp_path / "memory.json", tmp_path / "memory.md"
    measure.save(found, file)
    result = command("--render", file, "--out", page)
    assert result.exit_code == 0, result.output
    assert page.read_text() == document.markdown(found)
    file.write_text("{}")
    for words, message in (
        (("--render", file), "is no recording of descend memory"),
        (("--out", tmp_path), "which cannot be written"),
        (("--optimizers", "lmab"), "did you mean lamb"),
    ):
        refused = command(*words)
        assert refused.exit_code == 2
        assert message in refused.output
