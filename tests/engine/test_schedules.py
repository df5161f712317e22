"""Learning-rate schedulers, rates that are tensors, and gradient scaling drive every optimizer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from helpers import small
from helpers.cases import Row
from helpers.contract import every_executor, every_row, refuses, switch


def replayed(row: Row, seen: list[dict[str, Any]]) -> list[Tensor]:
    """The parameters after steps whose changing options are written into the group by hand."""
    optimizer = small.busy(row, small.parameters())
    for step, options in enumerate(seen):
        optimizer.param_groups[0].update(options)
        small.take_steps(optimizer, 1, step)
    return small.values(optimizer)


@every_row
@pytest.mark.parametrize("kind", ("one cycle", "plateau", "lambda"))
def test_learning_rate_schedulers_drive_it(row: Row, kind: str) -> None:
    optimizer = small.busy(row, small.parameters())
    options = optimizer.param_groups[0]
    cycles = [name for name in ("betas", "momentum") if options.get(name) is not None]
    if kind == "one cycle":
        scheduler: Any = OneCycleLR(optimizer, max_lr=2 * row.lr, total_steps=6, cycle_momentum=bool(cycles))
    elif kind == "plateau":
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    else:
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            seen.append({name: options[name] for name in ("lr", *cycles)})
            small.take_steps(optimizer, 1, step)
            if step < 5:
                scheduler.step(1.0) if kind == "plateau" else scheduler.step()
    assert len({s["lr"] for s in seen}) > 2
    assert kind != "one cycle" or not cycles or len({str(s[cycles[0]]) for s in seen}) > 2
    assert small.same(small.values(optimizer), replayed(row, seen))


@every_row
@every_executor
@pytest.mark.parametrize("corrected", (False, True), ids=("plain", "corrected decay"))
def test_lr_may_be_a_tensor(row: Row, executor: str, corrected: bool) -> None:
    decays = (
        corrected
        and not refuses(row, "corrected_weight_decay")
        and "weight_decay" in small.busy(row, small.parameters()).defaults
    )
    options = {"weight_decay": 0.1, "corrected_weight_decay": True} if decays else {}
    ends = []
    for lr in (row.lr, torch.tensor(row.lr, dtype=torch.float64), torch.tensor([row.lr], dtype=torch.float64)):
        optimizer = small.busy(row, small.parameters(), **options, **switch(executor), lr=lr)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for step in range(3):
            small.take_steps(optimizer, 1, step)
            scheduler.step()
        assert not isinstance(lr, Tensor) or optimizer.param_groups[0]["lr"] is lr
        ends.append(small.values(optimizer))
    assert small.same(ends[1], ends[0])
    assert small.same(ends[2], ends[0])


@every_row
@every_executor
def test_grad_scaler_skips_infinite_gradients(row: Row, executor: str) -> None:
    optimizer, expected = (small.busy(row, small.parameters(torch.float32), **switch(executor)) for _ in range(2))
    params, curved = small.parameters_of(optimizer), small.is_curved(optimizer)
    # A graph remembers the scale that a loss had; only gradients are brought back from it.
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0 if curved else 4.0)
    for step, infinite in enumerate((False, True) if curved else (False, True, False)):
        small.set_gradients(params, step, curved)
        scale = scaler.scale(torch.ones(())).item()
        if not curved:
            for p in params:
                p.grad *= scale
        if infinite:
            params[3].grad.data[0] = torch.inf
        before, state = small.values(optimizer), small.states(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if infinite:
            assert small.same(small.values(optimizer), before)
            assert small.same_states(small.states(optimizer), state)
            assert scaler.get_scale() == scale / 2
        else:
            small.take_steps(expected, 1, step)
    assert small.same(small.values(optimizer), small.values(expected))
