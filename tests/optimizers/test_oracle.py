"""Every optimizer, every option, every executor against the float64 oracle."""

from __future__ import annotations

import inspect

import pytest
import torch

import descend
from helpers.cases import ROWS, Row, variant_id
from helpers.harness import run

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


def takes_ns_dtype(row: Row, options: dict) -> bool:
    """Whether the rule multiplies matrices in bfloat16 unless told otherwise."""
    multiplies = options.get("norm", "Auto") in ("Auto", "Spectral", "SpectralConv")  # Scion's other norms do not
    takes = "ns_dtype" in inspect.signature(getattr(descend, row.name)).parameters
    return takes and multiplies and "ns_dtype" not in options


@pytest.mark.parametrize("row", [row for row in ROWS if takes_ns_dtype(row, {})], ids=lambda row: row.name)
def test_newton_schulz_in_bfloat16_stays_near(row: Row) -> None:
    result = run(row.name, row.lr, row.variants[0], dtype=torch.float32, steps=10)
    errors = {key: value for key, value in result.errors().items() if key.endswith(")")}
    assert max(errors.values()) < 0.05


@pytest.mark.parametrize("executor", EXECUTORS)  # above, so that executors follow one another and share the oracle
@pytest.mark.parametrize("row, options", CASES)
def test_float64_matches_the_oracle(row: Row, options: dict, executor: dict) -> None:
    result = run(row.name, row.lr, options, **executor)
    errors = result.errors()
    assert result.moved() > row.moves
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < 1e-10, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize("executor", EXECUTORS)  # above, so that executors follow one another and share the oracle
@pytest.mark.parametrize("row, options", CASES)
def test_float32_matches_the_oracle(row: Row, options: dict, executor: dict) -> None:
    exact = {"ns_dtype": "float32"} if takes_ns_dtype(row, options) else {}
    result = run(row.name, row.lr, options, dtype=torch.float32, **executor, **exact)
    errors = result.errors()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < row.float32, f"{worst}: {errors[worst]:.1e}"
