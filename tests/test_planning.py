"""`descend plan` counts on faked processes what real ones count."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import Processes
from typer.testing import CliRunner

from descend.lab import planning
from descend.lab.commands import app

SHAPES = [(20, 18), (20, 18), (20,), (33, 7), (4, 3, 3, 3)]


@pytest.mark.parametrize("ranks", (2, 4))
@pytest.mark.parametrize("name", ("adamw", "lamb", "adafactor", "adamp", "prodigy", "muon", "soap"))
def test_the_count_is_that_of_real_processes(processes: Processes, name: str, ranks: int) -> None:
    planned = planning.cost(name, SHAPES, ranks)
    real = processes.run("spread", "counted", name=name, shapes=SHAPES, ranks=ranks)[0]
    assert (planned.collectives, planned.sent) == real


def test_the_page_and_the_command(tmp_path: Path) -> None:
    page = tmp_path / "plan.md"
    options = ["--model", "vit_s", "--ranks", "16", "--optimizers", "adamw,lamb", "--out", str(page)]
    result = CliRunner().invoke(app(), ["plan", *options])
    assert result.exit_code == 0, result.output
    assert "| adamw | 0 | 0.00 | 0.0% |" in page.read_text()
    assert "--ranks 16" in page.read_text()
    wrong = CliRunner().invoke(app(), ["plan", "--model", "vit_x"])
    assert wrong.exit_code == 2
