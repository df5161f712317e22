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
from descend.engine.storage import Kahan, Split, Stochastic, rest


def read(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Tensor:
    """A parameter's value in the dtype of its state, of any optimizer's parameter."""
    kept = _kept(optimizer, group, p)
    if kept is None:
        return p.detach().to(state_dtype(p), copy=True)
    value = kept.load((local(p).detach(), *(x.to(p.device) for x in _beside(optimizer, p, kept))), state_dtype(p))
    layout = layout_of(p)
    return value if layout is None else layout.wrap(value, layout.placements, layout.shape)


def write(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor, value: Tensor) -> None:
    """Give a parameter a value; what its dtype cannot hold of it is kept where the optimizer keeps such."""
    kept = _kept(optimizer, group, p)
    if kept is None:
        p.detach().copy_(value)
        return
    before = p._version
    for resting, part in zip(parts(optimizer, group, p), kept.store(local(value)), strict=True):
        resting.copy_(part)
    restored(optimizer, {p: before})


def parts(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> list[Tensor]:
    """The tensors that hold a parameter's value here: itself, or its piece, and what is kept beside it."""
    kept = _kept(optimizer, group, p)
    return [local(p).detach(), *(_beside(optimizer, p, kept) if kept else ())]


def restored(optimizer: torch.optim.Optimizer, versions: Mapping[Tensor, int]) -> None:
    """Say that parameters are again what they were at these versions, so that their compensation still holds."""
    if isinstance(optimizer, Optimizer):
        for plan in (optimizer._plan, *optimizer._plans_in_backward):
            plan.restored(versions)


def _beside(optimizer: torch.optim.Optimizer, p: Tensor, kept: Kahan | Split) -> list[Tensor]:
    """What is kept beside a parameter, wherever that rests."""
    return [local(optimizer.state[p][name]) for name in kept.beside]


def _kept(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Kahan | Split | None:
    """How a parameter rests, where it keeps something beside it."""
    if not isinstance(optimizer, Optimizer) or group.get("master") is None:
        return None
    h = SimpleNamespace(**group)
    _, rests = rest(optimizer.slots(h, p), h, p)
    if rests.master is None or isinstance(rests.master, Stochastic):
        return None
    state = optimizer.state.get(p, {})
    return rests.master if all(name in state for name in rests.master.beside) else None
