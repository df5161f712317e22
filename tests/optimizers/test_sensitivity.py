"""Every hyper-parameter does something: turning it moves the answer by far more than the other tests tolerate."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import descend
from helpers import small
from helpers.cases import ROWS, Row
from helpers.turned import ANSWERS, LOOSE, ROUNDING, TURNED

STEPS = 7
# The loosest comparison in the tests is float32's, 2e-4 of the displacement.
FAR = 5e-3
EXECUTION = {"foreach", "fused", "capturable"}
SHAPES = ((5,), (6, 4), (18, 17), (4, 3, 3, 3), (18, 17, 2, 2))
SILENT = {"verbose": "it only logs", "deterministic": "it always is"}
SIGNED = "its step has the gradient's sign anyway"
INERT = {
    **{(f"ScheduleFree{kind}", name): SIGNED for kind in ("AdamW", "RAdam", "SGD") for name in ("caution", "grams")},
    **{("TorchAdafactor", name): SIGNED for name in ("caution", "grams")},
    ("Adagrad", "caution"): SIGNED,
    ("Adagrad", "grams"): SIGNED,
    ("Adadelta", "caution"): SIGNED,
    ("Adadelta", "grams"): SIGNED,
    ("ASGD", "caution"): SIGNED,
    ("ASGD", "grams"): SIGNED,
    ("Rprop", "grams"): SIGNED,
    ("Rprop", "adaptive_grad_clip"): "it reads the sign of the gradient, not its size",
}


def trajectory(row: Row, options: dict[str, Any], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters at the start, and after steps on which the learning rate falls."""
    optimizer = small.make(row, small.parameters(dtype, SHAPES), **options)
    start = small.values(optimizer)
    for step in range(STEPS):
        small.take_steps(optimizer, 1, step)
        for group in optimizer.param_groups:
            if group["lr"] is not None:
                group["lr"] *= 0.8
    kept = [s[ANSWERS[row.name]] for s in small.states(optimizer)] if row.name in ANSWERS else []
    return [*start, *start[: len(kept)]], [*small.values(optimizer), *kept]


def moves(row: Row, base: dict[str, Any], turned: dict[str, Any], dtype: torch.dtype = torch.float64) -> float:
    """How far the answers under two sets of options lie apart, over how far they are from the start."""
    start, x = trajectory(row, base, dtype)
    _, y = trajectory(row, turned, dtype)
    return small.distance(y, x, start)


def own_options(row: Row) -> list[str]:
    parameters = inspect.signature(getattr(descend, row.name)).parameters.values()
    return [p.name for p in parameters if p.name not in ("params", "common")]


OWN = [pytest.param(row, name, id=f"{row.name}-{name}") for row in ROWS for name in own_options(row)]
COMMON = [pytest.param(row, name, id=f"{row.name}-{name}") for row in ROWS for name in LOOSE]


@pytest.mark.parametrize("row, name", OWN)
def test_turning_an_option_of_its_own(row: Row, name: str) -> None:
    """Against the same variant without it: each option is in some variant, where it acts."""
    if name == "lr":
        assert moves(row, {}, {"lr": row.lr * 1.5}) > FAR
        return
    if name in SILENT:
        pytest.skip(SILENT[name])
    dtype, far = (torch.float32, FAR / 100) if name in ROUNDING else (torch.float64, FAR)
    turned = [options for options in row.variants if name in options]
    if (row.name, name) in TURNED:
        turned.append(TURNED[row.name, name])
    assert turned, f"no variant of {row.name} has {name}"
    for options in turned:
        plain = {key: value for key, value in options.items() if key != name}
        if allowed(row, plain) and moves(row, plain, options, dtype) > far:
            return
    pytest.fail(f"{row.name}: {name} does nothing")


def allowed(row: Row, options: dict[str, Any]) -> bool:
    try:
        small.make(row, small.parameters(shapes=SHAPES), **options)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("row, name", COMMON)
def test_turning_a_common_option(row: Row, name: str) -> None:
    """In one of the row's variants it acts, or the optimizer refuses it and says why; it is never ignored."""
    optimizer = small.make(row, small.parameters())
    if name in optimizer.refused:
        return
    if (row.name, name) in INERT:
        pytest.skip(INERT[row.name, name])
    decay = {"weight_decay": 0.5} if "decay" in name and "weight_decay" in optimizer.defaults else {}
    for options in row.variants:
        base = {**options, **decay}
        turned = {**base, name: LOOSE[name]}
        if name not in options and allowed(row, base) and allowed(row, turned) and moves(row, base, turned) > FAR:
            return
    pytest.fail(f"{row.name}: {name} is accepted and does nothing")
