"""Adahessian against its oracle, on a loss whose Hessian is diagonal: there every random probe finds it exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import descend
from helpers.cases import ROWS, variant_id
from helpers.harness import relative
from oracles import ORACLES

ROW = next(row for row in ROWS if row.name == "Adahessian")
STEPS = 20
SHAPES = ((), (1,), (5,), (6, 4), (4, 3, 3, 3))
LATE, FIRST = 2, 4  # this parameter's first gradient comes at this step


def errors(options: dict[str, Any], dtype: torch.dtype = torch.float64, **executor: Any) -> list[float]:
    """Differences to the oracle over the displacement, parameter by parameter."""
    rng = np.random.default_rng(0)
    start = [np.asarray(torch.tensor(rng.normal(size=shape)).to(dtype).double()) for shape in SHAPES]
    params = [nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start]
    optimizer = descend.Adahessian(params, lr=ROW.lr, **options, **executor)
    oracle = ORACLES["Adahessian"]([{"params": start}], lr=ROW.lr, **options)
    for step in range(STEPS):
        noise = [np.asarray(torch.tensor(rng.normal(size=shape)).to(dtype).double()) for shape in SHAPES]
        here = [i for i in range(len(params)) if i != LATE or step >= FIRST]
        loss = sum((torch.tensor(noise[i], dtype=dtype) * (p := params[i]) + p**2 + p**4 / 2).sum() for i in here)
        for i, grad in zip(here, torch.autograd.grad(loss, [params[i] for i in here], create_graph=True), strict=True):
            params[i].grad = grad
        optimizer.step()
        now = oracle.groups[0]["params"]
        grads = [n + 2 * p + 2 * p**3 if i in here else None for i, (n, p) in enumerate(zip(noise, now, strict=True))]
        oracle.step([grads], hessian=[[2 + 6 * p**2 for p in now]])
    return [relative(p, q, at) for p, q, at in zip(params, oracle.groups[0]["params"], start, strict=True)]


@pytest.mark.parametrize("options", ROW.variants, ids=variant_id)
@pytest.mark.parametrize("executor", (
    pytest.param({"foreach": False}, id="loop", marks=pytest.mark.capability("loop", optimizer="Adahessian")),
    pytest.param({"foreach": True}, id="foreach", marks=pytest.mark.capability("foreach", optimizer="Adahessian")),
))  # fmt: skip
def test_matches_the_oracle(options: dict[str, Any], executor: dict[str, bool]) -> None:
    assert max(errors(options, **executor)) < 1e-10
    assert max(errors(options, torch.float32, **executor)) < ROW.float32


@pytest.mark.capability("fused", optimizer="Adahessian")
def test_fused_matches_the_oracle() -> None:
    assert max(errors({}, torch.float32, fused=True)) < ROW.float32
