"""Half precision with compensation: what an executor rounds away is kept, and the same in each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.storage import Kahan

EXECUTORS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
STEP = {torch.bfloat16: 1e-4, torch.float16: 1e-5}


def trained(dtype: torch.dtype, executor: str, steps: int = 200) -> tuple[Tensor, Tensor]:
    """A parameter and its compensation after steps that are too small for its dtype."""
    p = nn.Parameter(torch.linspace(0.5, 2, 101).to(dtype))
    optimizer = descend.SGD([p], lr=STEP[dtype], **EXECUTORS[executor])
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return p.detach(), optimizer.state[p]["compensation"]


@pytest.mark.parametrize("dtype", STEP, ids=str)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_small_steps_add_up(executor: str, dtype: torch.dtype) -> None:
    p, lack = trained(dtype, executor)
    expected = torch.linspace(0.5, 2, 101).to(dtype).double() - 200 * STEP[dtype]
    torch.testing.assert_close(p.double() + lack.double(), expected, rtol=0, atol=0.05 * 200 * STEP[dtype])
    assert all(torch.equal(x, y) for x, y in zip((p, lack), trained(dtype, "loop"), strict=True))


@pytest.mark.parametrize("dtype", STEP, ids=str)
def test_the_nearest_number_with_ties_to_even_and_the_rest_of_it(dtype: torch.dtype) -> None:
    lines = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).float()
    between = torch.nextafter(lines, torch.tensor(torch.inf))
    value = torch.cat([lines, between, -between, (lines[1:] + lines[:-1]) / 2, torch.randn(1000) * 10.0])
    nearest, lack = Kahan(dtype).store(value)
    known = torch.isfinite(value) & torch.isfinite(value.to(dtype))
    assert torch.equal(nearest.view(torch.int16), value.to(dtype).view(torch.int16))
    assert torch.equal(lack[known], (value - value.to(dtype).float()).to(dtype)[known])


@pytest.mark.parametrize("dtype", STEP, ids=str)
def test_what_is_no_number_stays_so(dtype: torch.dtype) -> None:
    storage, value = Kahan(dtype), torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf])
    found = storage.load(storage.store(value), torch.float32)
    assert bool(found.isnan()[:2].all())
    assert not bool(found.isfinite().any())
