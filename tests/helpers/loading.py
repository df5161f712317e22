"""Optimizers with named parameters, and what a refused load leaves as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers import small
from helpers.cases import ROWS, Row

ADAMW = next(row for row in ROWS if row.name == "AdamW")
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_executor = pytest.mark.parametrize(
    "executor", ({"foreach": False}, {"foreach": True}, {"fused": True}), ids=("loop", "foreach", "fused")
)


def named(row: Row, *groups: str, prefix: str = "", **options: Any) -> torch.optim.Optimizer:
    """The row's optimizer on named parameters of one shape: a string for each group, a letter for each parameter."""
    pairs = [
        [(prefix + name, nn.Parameter(small.noise((6, 4), torch.float64, -1, ord(name)))) for name in g] for g in groups
    ]
    return small.busy(row, [{"params": group} for group in pairs], **options)


def after_steps(optimizer: torch.optim.Optimizer, steps: int = 2) -> dict[str, Any]:
    """A copy of the state_dict after some steps."""
    small.take_steps(optimizer, steps)
    return copy.deepcopy(optimizer.state_dict())


def by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """The state of each parameter by the last letter of its name."""
    return {
        name[-1]: optimizer.state.get(p, {})
        for group in optimizer.param_groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
    }


def refuses(optimizer: torch.optim.Optimizer, act: Callable[[], Any], match: str, error: type = ValueError) -> None:
    """See that it raises, and changes nothing."""
    before, groups, state = small.values(optimizer), str(optimizer.param_groups), small.states(optimizer)
    with pytest.raises(error, match=match):
        act()
    assert small.same(small.values(optimizer), before)
    assert str(optimizer.param_groups) == groups
    assert small.same_states(small.states(optimizer), state)
