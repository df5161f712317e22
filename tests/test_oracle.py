"""Every optimizer, every option, every executor against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from cases import ROWS, Row, variant_id
from harness import run

EXECUTORS = (
    pytest.param({"foreach": False}, id="loop", marks=pytest.mark.capability("loop")),
    pytest.param({"foreach": True}, id="foreach", marks=pytest.mark.capability("foreach")),
)
CASES = [
    pytest.param(row, options, id=f"{row.name}-{variant_id(options)}")
    for row in ROWS
    if row.name != "Adahessian"
    for options in row.variants
]


@pytest.mark.parametrize("row, options", CASES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_float64_matches_the_oracle(row: Row, options: dict, executor: dict) -> None:
    result = run(row.name, row.lr, options, **executor)
    errors = result.errors()
    assert result.moved() > row.moves
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < 1e-10, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize("row, options", CASES)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_float32_matches_the_oracle(row: Row, options: dict, executor: dict) -> None:
    result = run(row.name, row.lr, options, dtype=torch.float32, **executor)
    errors = result.errors()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < row.float32, f"{worst}: {errors[worst]:.1e}"
