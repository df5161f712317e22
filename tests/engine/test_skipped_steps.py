"""Steps that a GradScaler leaves out: under `capturable` no host looks, and nothing may change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import descend
from descend.engine.executors import kernels

WAYS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
CASES: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "AdamW": ("AdamW", torch.float32, {}),
    "Kahan": ("AdamW", torch.bfloat16, {}),
    "stochastic": ("AdamW", torch.bfloat16, {"master": "stochastic"}),
    "int8": ("AdamW", torch.float32, {"state_dtype": "int8"}),
    "Lamb": ("Lamb", torch.float32, {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_nothing_changes(case: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "fused" and case not in ("AdamW", "Kahan"):
        pytest.skip("one text that is compiled serves: the same lines keep the others' values")
    monkeypatch.setattr(kernels, "BUNDLE", 2)
    name, dtype, options = CASES[case]
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((32, 32), (64,))]
    optimizer = getattr(descend, name)(params, capturable=True, **options, **WAYS[way])

    def step(infinite: bool) -> None:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(float(infinite))
        for p in params:
            p.grad = torch.full_like(p, torch.inf if infinite else 1.0)
        optimizer.step()

    step(False)
    before = _copied(optimizer, params)
    step(True)
    after = _copied(optimizer, params)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    step(False)
    assert not torch.equal(params[0], before[0])


def _copied(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> list[Tensor]:
    state = [t for p in params for t in optimizer.state[p].values()]
    return [t.detach().clone() for t in (*params, *state)]
