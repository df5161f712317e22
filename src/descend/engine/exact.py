"""Reading and writing parameters with what their dtype cannot hold, for those who move weights between two steps."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from descend.engine.optimizer import Optimizer
from descend.engine.sharding.layout import layout_of, local
from descend.engine.slots import state_dtype
from descend.engine.storage import MASTERS_STATE, Rests, Stochastic, rest


def read(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Tensor:
    """A parameter's value in the dtype of its state, of any optimizer's parameter."""
    kept = _kept(optimizer, group, p)
    if kept is None:
        return p.detach().to(state_dtype(p), copy=True)
    value = kept.parameter(local(p).detach(), _pieces(optimizer.state[p], p), state_dtype(p))
    layout = layout_of(p)
    return value if layout is None else layout.wrap(value, layout.placements, layout.shape)


def write(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor, value: Tensor) -> None:
    """Give a parameter a value; what its dtype cannot hold of it is kept where the optimizer keeps such."""
    kept = _kept(optimizer, group, p)
    if kept is None:
        p.detach().copy_(value)
        return
    before = p._version
    pieces = _pieces(optimizer.state[p], p)
    for resting, part in kept.store(local(p).detach(), pieces, local(value), {}, None):
        resting.copy_(part)
    for name, piece in pieces.items():
        if piece is not local(optimizer.state[p][name]):
            optimizer.state[p][name].copy_(piece)
    restored(optimizer, {p: before})


def restored(optimizer: torch.optim.Optimizer, versions: Mapping[Tensor, int]) -> None:
    """Say that parameters are again what they were at these versions, so that their compensation still holds."""
    if isinstance(optimizer, Optimizer):
        for plan in (optimizer._plan, *optimizer._plans_in_backward):
            plan.restored(versions)


def _pieces(state: Mapping[str, Any], p: Tensor) -> dict[str, Tensor]:
    """What is beside a parameter, on its device."""
    return {name: local(state[name]).to(p.device) for name in MASTERS_STATE & state.keys()}


def _kept(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Rests | None:
    """How a parameter rests, where it keeps something beside it."""
    if not isinstance(optimizer, Optimizer) or group.get("master") is None:
        return None
    h = SimpleNamespace(**group)
    _, rests = rest(optimizer.slots(h, p), h, p)
    if rests.master is None or isinstance(rests.master, Stochastic):
        return None
    state = optimizer.state.get(p, {})
    return rests if all(name in state for name in rests.master.beside) else None
