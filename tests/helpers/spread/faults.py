"""Gradients that are missing, numbers that are none, processes that disagree, layouts that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from helpers import small
from helpers.spread.problem import (
    SHAPES,
    found,
    mesh,
    options_of,
    parameters,
    row_of,
    set_gradients,
    take_steps,
)


def with_gradients_missing(name: str, layout: str, missing: dict[int, Sequence[int]], **options: Any) -> Any:
    """Where it ends if in the second step some ranks (keys) have no gradient for some parameters (values)."""
    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    optimizer = small.make(row_of(name), params, **options_of(name, **options))
    for step in range(3):
        set_gradients(params, step)
        if step == 1:
            for i in missing.get(dist.get_rank(), ()):
                params[i].grad = None
        optimizer.step()
    return found(optimizer)


def alone_with_zeros(name: str, zeros: dict[int, tuple[int, int]], gone: Sequence[int] = (), **options: Any) -> Any:
    """The same in one process: rows of some gradients are zero in the second step, others are not there."""
    optimizer = small.make(row_of(name), small.parameters(torch.float64, SHAPES), **options_of(name, **options))
    for step in range(3):
        params = small.parameters_of(optimizer)
        set_gradients(params, step)
        for i, p in enumerate(params):
            if step == 1 and i in zeros:
                p.grad[slice(*zeros[i])] = 0
            if step == 1 and i in gone:
                p.grad = None
        optimizer.step()
    return found(optimizer)


def with_a_nan(layout: str, broken: int) -> Any:
    """Parameters before and after a step in which one rank has a NaN, and after another step."""
    import descend

    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    optimizer = descend.Lamb(params, lr=0.1, skip_nonfinite=True)
    take_steps(optimizer, 1)
    before = found(optimizer)
    set_gradients(params, 1)
    if dist.get_rank() == broken:
        params[4].grad._local_tensor[0, 0] = torch.nan
    optimizer.step()
    after = found(optimizer)
    take_steps(optimizer, 1, 2)
    return before, after, found(optimizer)


def disagreeing(what: str) -> str:
    """The message at the first step where rank 1 has something else."""
    import descend

    params = parameters("2 ranks", torch.float64, SHAPES)
    if params is None:
        return ""
    odd = dist.get_rank() == 1
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5 if odd and what == "options" else 0.1}
    if odd and what == "order":
        params[2], params[3] = params[3], params[2]
    optimizer = descend.Lamb(params, **options)
    set_gradients(params, 0)
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


def refused(
    name: str, placements: str, shape: tuple[int, ...] = (20, 32), dtype: str = "float64", **options: Any
) -> Any:
    """The message with which an optimizer refuses a parameter that lies so."""
    from torch.distributed.tensor import Partial

    on = mesh(2)
    if on.get_coordinate() is None:
        return None
    places = {"rows": Shard(0), "columns": Shard(1), "depth": Shard(2), "partial": Partial()}
    x = DTensor.from_local(torch.ones(shape, dtype=getattr(torch, dtype)), on, [places[placements]], run_check=False)
    try:
        small.make(row_of(name), [("layer.weight", nn.Parameter(x))], **options)
    except ValueError as error:
        return str(error)
    return "no error"
