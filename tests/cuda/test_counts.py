"""What the budget of the virtual GPU allows is what a card is asked for: kernels, copies, waits."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import descend

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
import budget


def stepped(row: budget.Row) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
    """The row's optimizer after two steps."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda").to(row.dtype)) for shape in budget.SHAPES]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = getattr(descend, row.rule)(groups, **row.options)
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
    events = [event for event in told.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    copies = [event for event in events if event.name.startswith("Memcpy") and "DtoD" not in event.name]
    kernels = [
        event
        for event in events
        if not event.name.startswith("Memcpy HtoD") and not event.name.startswith("Memcpy DtoH")
    ]
    print("COUNT", row, len(kernels), len(copies), flush=True)
    assert len(kernels) <= row.launches, sorted({event.name for event in kernels})
    assert len(copies) <= row.copies


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
