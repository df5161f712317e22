"""What the budget of the virtual GPU allows is what a card is asked for: kernels, copies, waits."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import descend

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
import budget

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def stepped(row: budget.Row) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """The row's optimizer after two steps."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda").to(row.dtype)) for shape in budget.SHAPES]
    optimizer = getattr(descend, row.rule)(budget.grouped(params), **row.options)
    for p in params:
        p.grad = torch.randn_like(p)
    for _ in range(2):
        scale(optimizer, row)
        optimizer.step()
    torch.cuda.synchronize()
    scale(optimizer, row)
    return optimizer, params


def scale(optimizer: Any, row: budget.Row) -> None:
    if row.scaled:
        optimizer.grad_scale = torch.full((), 2.0, device="cuda")
        optimizer.found_inf = torch.zeros((), device="cuda")


@pytest.mark.usefixtures("full_bundles")
@pytest.mark.parametrize("row", budget.BUDGET, ids=str)
def test_a_step_keeps_its_budget(row: budget.Row) -> None:
    optimizer, _ = stepped(row)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as told:
        optimizer.step()
        torch.cuda.synchronize()
    # Ranges that the host has marked are events too; what is read on the host is a wait and a copy.
    events = [e.name for e in told.events() if e.device_type == torch.autograd.DeviceType.CUDA and "#" not in e.name]
    copies = [name for name in events if name.startswith(("Memcpy HtoD", "Memcpy DtoH"))]
    assert len(events) - len(copies) <= row.launches, Counter(events)
    assert len(copies) <= row.copies + row.syncs, Counter(copies)


@pytest.mark.usefixtures("full_bundles")
@pytest.mark.parametrize("row", budget.BUDGET, ids=str)
def test_a_step_waits_no_more_than_its_budget(row: budget.Row) -> None:
    optimizer, _ = stepped(row)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) <= row.syncs, waits
