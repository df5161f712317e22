"""Prodigy under schedules that begin at 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import descend
from oracles import ORACLES

SHAPES = ((6, 4), (5,))
SWITCHES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def difference(lrs: Callable[[int, int], float], switch: str, **options: Any) -> float:
    """Largest difference to the oracle over how far it has gone, after 30 steps with these rates of two groups."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in SHAPES]
    params = [nn.Parameter(torch.tensor(x)) for x in start]
    optimizer = descend.Prodigy([{"params": [p]} for p in params], **options, **SWITCHES[switch])
    oracle = ORACLES["Prodigy"]([{"params": [x]} for x in start], **options)
    for step in range(30):
        grads = []
        for i, p in enumerate(params):
            optimizer.param_groups[i]["lr"] = oracle.groups[i]["lr"] = lrs(step, i)
            grads.append([rng.normal(size=p.shape) + np.asarray(oracle.groups[i]["params"][0])])
            p.grad = torch.tensor(grads[i][0])
        optimizer.step()
        oracle.step(grads)
        assert optimizer.param_groups[0]["d"] == pytest.approx(oracle.groups[0].get("d", options["d0"]), rel=1e-9)
    worst = 0.0
    for i, p in enumerate(params):
        end = oracle.groups[i]["params"][0]
        moved = np.abs(end - start[i]).max()
        worst = max(worst, np.abs(p.detach().numpy() - end).max() / (moved or 1.0))
    return worst


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize(
    "options", ({}, {"safeguard_warmup": True}, {"use_bias_correction": True}, {"beta3": 0.9, "slice_p": 2})
)
def test_a_step_at_lr_0_adds_nothing_to_the_estimate(switch: str, options: dict[str, Any]) -> None:
    if switch == "fused" and "slice_p" in options:
        return
    assert difference(lambda step, group: min(step / 10, 1.0), switch, d0=1e-3, **options) < 1e-10


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_group_at_lr_0_is_no_part_of_the_estimate(switch: str) -> None:
    assert difference(lambda step, group: 1.0 - group, switch, d0=1e-3) < 1e-10
