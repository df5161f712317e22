"""Reading and writing parameters with what their dtype cannot hold, for those who move weights between two steps."""

from __future__ import annotations

from collections.abc import Mapping
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
    for resting, part in zip(parts(optimizer, group, p), kept.store(local(value)), strict=True):
        resting.copy_(part)


def parts(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> list[Tensor]:
    """The tensors that hold a parameter's value here: itself, or its piece, and what is kept with it."""
    kept = _kept(optimizer, group, p)
    return [local(p).detach(), *(_beside(optimizer, p, kept) if kept else ())]


def _beside(optimizer: torch.optim.Optimizer, p: Tensor, kept: Kahan | Split) -> list[Tensor]:
    """What is kept beside a parameter, wherever that rests."""
    return [local(optimizer.state[p][name]) for name in kept.beside]


def _kept(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Kahan | Split | None:
    """How a parameter rests, where it keeps something beside it."""
    if not isinstance(optimizer, Optimizer) or group.get("master") is None:
        return None
    r = optimizer.resolve_for(p, group)
    _, rests = rest(r.rule.slots(r.h, p), r.h, p)
    if rests.master is None or isinstance(rests.master, Stochastic):
        return None
    state = optimizer.state.get(p, {})
    return rests.master if all(name in state for name in rests.master.beside) else None
