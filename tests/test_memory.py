"""The page about memory: measured small, saved, loaded and rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from descend.lab.commands import app
from descend.lab.memory import document, measure


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> measure.Findings:
    """Everything but the times of compiled steps, on shapes that take no time."""
    patch = pytest.MonkeyPatch()
    patch.setattr(measure, "shapes_of", lambda _: [(64, 256), (64,)])
    patch.setattr(measure, "GPT", lambda **_: measure.tasks()["gpt"].model())
    found = measure.Findings(seeds=1, steps=1)
    measure.measure(("bytes", "peaks", "losses"), found, ["adamw", "lion", "muon"], lambda _: None)
    patch.undo()
    found.times = {"float32": 1.0, "bfloat16": 1.2, "int8": 1.5, "int4": 9.0}
    return found


def test_predicted_is_counted(found: measure.Findings) -> None:
    for weights in found.weights:
        for storage, predicted in weights.predicted.items():
            assert weights.measured[storage] == pytest.approx(predicted, rel=1e-6)
    assert {w.optimizer: round(w.measured["int8"]) for w in found.weights} == {"adamw": 2, "lion": 1, "muon": 1}


def test_steps_in_backward_hold_less(found: measure.Findings) -> None:
    peaks = found.peaks
    assert peaks["float32"] == pytest.approx(16, rel=1e-2)
    assert peaks["bfloat16 + Kahan, int8, in backward"] < 0.45 * peaks["float32"]


def test_the_page_says_what_was_found(found: measure.Findings, tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    measure.save(found, file)
    assert measure.load(file) == found
    text = document.markdown(found)
    assert text == document.markdown(measure.load(file))
    assert "| fused int8 AdamW, times float32 | ≤ 2 | 1.50 | pass |" in text
    assert "bfloat16, master=None" in text
    assert text.count("\n| muon |") == 3


def test_render_writes_the_page_and_refuses_other_files(found: measure.Findings, tmp_path: Path) -> None:
    file, page = tmp_path / "memory.json", tmp_path / "memory.md"
    measure.save(found, file)
    result = CliRunner().invoke(app(), ["memory", "--render", str(file), "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert page.read_text() == document.markdown(found)
    file.write_text("{}")
    refused: Any = CliRunner().invoke(app(), ["memory", "--render", str(file)])
    assert refused.exit_code == 2
    assert "is no recording of descend memory" in refused.output
    refused = CliRunner().invoke(app(), ["memory", "--parts", "byte"])
    assert refused.exit_code == 2
    assert "expected some of bytes, peaks, times, losses" in refused.output
