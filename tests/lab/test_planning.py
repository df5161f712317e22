"""`descend plan` counts on faked processes what real ones count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from descend.lab import planning
from descend.lab.commands import app
from helpers import spread
from helpers.processes import Processes

SHAPES = [(20, 18), (20, 18), (20,), (33, 7), (4, 3, 3, 3)]


@pytest.mark.parametrize("ranks", (2, 4))
@pytest.mark.parametrize("name", ("adamw", "lamb", "adafactor", "adamp", "prodigy", "muon", "soap"))
def test_the_count_is_that_of_real_processes(processes: Processes, name: str, ranks: int) -> None:
    planned = planning.cost(name, SHAPES, ranks)
    real = processes.run(spread.counted, name=name, shapes=SHAPES, ranks=ranks)[0]
    assert (planned.collectives, planned.sent) == real


def test_the_page_and_the_command(tmp_path: Path) -> None:
    page = tmp_path / "plan.md"
    options = ["--model", "vit_s", "--ranks", "16", "--optimizers", "adamw,lamb", "--out", str(page)]
    result = CliRunner().invoke(app(), ["plan", *options])
    assert result.exit_code == 0, result.output
    assert "ViT-S/16, 22.1 million parameters, weights in float32, state in float32, on 16 processes at 25 GB/s" in (
        page.read_text()
    )
    assert "| 0 | 0.00 | 0.0 | 0.00 |" in page.read_text()
    wrong = CliRunner().invoke(app(), ["plan", "--model", "vit_x"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize("name", ("adamw", "muon", "shampoo"))
def test_one_process_has_no_collectives(name: str) -> None:
    planned = planning.cost(name, SHAPES, 1)
    assert (planned.collectives, planned.sent, planned.fsdp) == (0, 0, 0)
    assert planned.state > 0


def test_dtypes_and_masters_count() -> None:
    def state(dtype: torch.dtype, **options: object) -> float:
        return planning.cost("adamw", [(512, 512)], 1, dtype, **options).state / 512**2

    assert state(torch.float32) == pytest.approx(8, rel=1e-3)
    assert state(torch.bfloat16, master="split") == pytest.approx(10, rel=1e-3)
    assert state(torch.bfloat16, master=None, state_dtype="int8") == pytest.approx(2, rel=0.02)


def test_a_shard_larger_than_any_memory_is_planned() -> None:
    planned = planning.cost("adamw", [(2**22, 2**22)], 8)
    assert planned.state == pytest.approx(2**44, rel=1e-6)


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    for words, message in (
        (["--dtype", "int8"], "--dtype has 'int8', expected some of float32"),
        (["--master", "kalman"], "--master has 'kalman', expected some of kahan"),
        (["--state-dtype", "int3"], "--state-dtype has 'int3'"),
        (["--out", str(tmp_path)], "which cannot be written"),
    ):
        result = CliRunner().invoke(app(), ["plan", "--model", "many_tiny", *words])
        assert result.exit_code == 2
        assert message in result.output.replace("\n", " ")
