"""Every line of the budget: the step keeps it, and gives what the loop gives on the host."""

from __future__ import annotations

import budget
import pytest
import torch
from accounted import train, uncompiled
from virtual import VirtualGpu


@pytest.mark.parametrize("row", budget.BUDGET, ids=str)
def test_a_step_keeps_its_budget(row: budget.Row, gpu: VirtualGpu) -> None:
    with uncompiled():
        ours = train(row, gpu)
    told = gpu.account.totals()
    allowed = {"launches": row.launches, "copies": row.copies, "syncs": row.syncs}
    assert all(told[kind] <= allowed[kind] for kind in told), f"{told}, allowed {allowed}:\n{gpu.account}"
    tolerance = dict(rtol=2e-2, atol=2e-2) if row.dtype is torch.bfloat16 else dict(rtol=1e-4, atol=1e-5)
    if "state_dtype" in row.options:
        # A number in the middle between two codes may go to either.
        tolerance = dict(rtol=1e-2, atol=1e-3)
    for a, b in zip(ours, train(row, None), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_a_step_inside_backward_asks_little_for_each_parameter(gpu: VirtualGpu) -> None:
    """One launch and one copy; no scratch is filled up with."""
    import virtual

    import descend

    with uncompiled():
        params = [torch.nn.Parameter(virtual.to_gpu(torch.ones(shape))) for shape in budget.SHAPES]
        model = torch.nn.ParameterList(params)
        optimizer = descend.step_in_backward(model, lambda named: descend.AdamW(named, fused=True))
        for _ in range(2):
            gpu.account.reset()
            for p in params:
                p.grad = virtual.to_gpu(torch.ones(p.shape))
                optimizer._in_backward.move(optimizer, p)
            optimizer.step()
    told = gpu.account.totals()
    assert told["launches"] <= 2 * len(params), gpu.account
    assert told["copies"] <= len(params), gpu.account
    assert told["syncs"] == 0, gpu.account
