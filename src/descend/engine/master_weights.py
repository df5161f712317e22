"""Full-precision weights: reading and writing parameters together with what their dtype cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from descend.engine.optimizer import Optimizer
from descend.engine.sharding.layout import fresh, layout_of, local
from descend.engine.slots import Slot, state_dtype
from descend.engine.storage import Kahan, Split, Stochastic, plan_storage
from descend.engine.unwrapped import unwrap


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
    for stored, part in zip(parts(optimizer, group, p), kept.store(local(value)), strict=True):
        stored.copy_(part)


def parts(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> list[Tensor]:
    """The tensors that hold a parameter's value here: itself, or its piece, and what is kept with it."""
    kept = _kept(optimizer, group, p)
    return [local(p).detach(), *(_beside(optimizer, p, kept) if kept else ())]


def master_weights(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The full-precision values of an optimizer's parameters: float32 where half precision is trained.

    With ``master="split"`` they are exact; with "kahan" they have the digits of both parts; without a master, and before
    the first step, they are the parameters' own.

    Args:
        optimizer: any optimizer, wrappers included.

    Returns:
        A copy of each value under the parameter's name, or as "group.position" where parameters have no names.

    Example:
        >>> import descend
        >>> layer = torch.nn.Linear(2, 1).bfloat16()
        >>> optimizer = descend.AdamW(layer.named_parameters(), master="split")
        >>> layer(torch.ones(2).bfloat16()).sum().backward()
        >>> optimizer.step()
        >>> descend.master_weights(optimizer)["weight"].dtype
        torch.float32
    """
    inner = innermost(optimizer)
    return {name: read(inner, group, p) for name, group, p in _named(inner)}


@torch.no_grad()
def load_master_weights(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> None:
    """Give parameters full-precision values; what their dtype cannot hold is kept as the optimizer's master keeps it.

    Args:
        optimizer: any optimizer, wrappers included, before its first step or later.
        weights: for each parameter that has a name here its value, as :func:`master_weights` gives it; parameters that
            are not named stay as they are.

    Raises:
        ValueError: for a name that no parameter has, or a value of another shape; nothing is changed.

    Example:
        >>> import descend
        >>> layer = torch.nn.Linear(2, 1).bfloat16()
        >>> optimizer = descend.AdamW(layer.named_parameters())
        >>> descend.load_master_weights(optimizer, {"weight": torch.tensor([[1.001, -1.001]])})
        >>> descend.master_weights(optimizer)["weight"]
        tensor([[ 1.0010, -1.0010]])
    """
    inner = innermost(optimizer)
    found = {name: (group, p) for name, group, p in _named(inner)}
    for name, value in weights.items():
        if name not in found:
            raise ValueError(f"weights have {name!r}, which no parameter is called; they are called {', '.join(found)}")
        if value.shape != found[name][1].shape:
            raise ValueError(f"weight {name!r} has shape {tuple(value.shape)}, expected {tuple(found[name][1].shape)}")
    for name, value in weights.items():
        group, p = found[name]
        master = _master(inner, group, p)
        for part in master.beside if master is not None else ():
            if part not in inner.state[p]:
                inner.state[p][part] = fresh(Slot(dtype=torch.int16 if isinstance(master, Split) else p.dtype), p)
        write(inner, group, p, value.to(p.device, state_dtype(p)))


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that wraps no other, and moves the parameters."""
    base = getattr(optimizer, "base_optimizer", None)
    return unwrap(optimizer) if base is None else innermost(base)


def _named(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Mapping[str, Any], Tensor]]:
    for i, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [f"{i}.{j}" for j in range(len(group["params"]))]
        yield from ((name, group, p) for name, p in zip(names, group["params"], strict=True))


def _beside(optimizer: torch.optim.Optimizer, p: Tensor, kept: Kahan | Split) -> list[Tensor]:
    """What is kept with a parameter, wherever that is."""
    return [local(optimizer.state[p][name]) for name in kept.beside]


def _kept(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Kahan | Split | None:
    """How a parameter is stored, where something is kept with it."""
    master, state = _master(optimizer, group, p), optimizer.state.get(p, {})
    return master if master is not None and all(name in state for name in master.beside) else None


def _master(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], p: Tensor) -> Kahan | Split | None:
    """How a parameter keeps what its dtype cannot hold."""
    if not isinstance(optimizer, Optimizer) or group.get("master") is None:
        return None
    r = optimizer.resolve_for(p, group)
    _, storage = plan_storage(r.rule.slots(r.h, p), r.h, p)
    return None if isinstance(storage.master, Stochastic) else storage.master
