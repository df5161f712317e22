"""Where optimizers and mixtures end on each layout, and in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from descend.engine.executors import kernels
from helpers import small
from helpers.spread.problem import (
    SHAPES,
    Model,
    found,
    mesh,
    options_of,
    parameters,
    row_of,
    set_gradients,
    take_steps,
)


def trained(
    name: str,
    layout: str,
    steps: int = 3,
    dtype: torch.dtype = torch.float64,
    shapes: Any = SHAPES,
    **options: Any,
) -> Any:
    """Where an optimizer ends on a layout."""
    params = parameters(layout, dtype, shapes)
    if params is None:
        return None
    if options.get("fused"):
        kernels.BUNDLE = 2  # as in the process that asks
    optimizer = small.make(row_of(name), params, **options_of(name, **options))
    take_steps(optimizer, steps)
    return found(optimizer)


def alone(
    name: str, steps: int = 3, dtype: torch.dtype = torch.float64, shapes: Any = SHAPES, **options: Any
) -> dict[str, Any]:
    """Where it ends in one process, on ordinary tensors; for the test itself."""
    optimizer = small.make(row_of(name), small.parameters(dtype, shapes), **options_of(name, **options))
    take_steps(optimizer, steps)
    return found(optimizer)


def trained_by_fsdp(
    name: str, ranks: int, steps: int = 3, early: bool = False, ignored: Sequence[int] = (), **options: Any
) -> Any:
    """Where an optimizer ends under ``fully_shard``, some parameters left whole."""
    import descend

    on = mesh(ranks)
    if on.get_coordinate() is None:
        return None
    model = Model()
    fully_shard(model, mesh=on, ignored_params={model.weights[i] for i in ignored})
    given = options_of(name, **options)

    def make(params: Any) -> Any:
        return small.make(row_of(name), params, **given)

    optimizer = descend.step_in_backward(model, make) if early else make(model.parameters())
    for step in range(steps):
        model(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found(optimizer)


#: For each rule of a mixture the places of its parameters.
MIXTURES: dict[str, dict[str, tuple[int, ...]]] = {
    "sums": {"lamb": (0, 4), "prodigy": (1, 3), "adafactorbv": (2, 5)},
    "matrices": {"muon": (3, 4), "lamb": (0, 1), "adamw": (2,), "soap": (5,)},
}


def _mixture(which: str, params: Sequence[nn.Parameter], **options: Any) -> Any:
    import descend

    parts = MIXTURES[which].items()
    return descend.Mixed([{"params": [params[i] for i in at], "rule": rule} for rule, at in parts], lr=1e-2, **options)


def mixture(which: str, layout: str, **options: Any) -> Any:
    """Where a mixture of rules ends on a layout."""
    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    optimizer = _mixture(which, params, **options)
    take_steps(optimizer, 3)
    return found(optimizer)


def mixture_alone(which: str, **options: Any) -> dict[str, Any]:
    optimizer = _mixture(which, small.parameters(torch.float64, SHAPES), **options)
    take_steps(optimizer, 3)
    return found(optimizer)


def collectives_of_mixtures(layout: str, which: str) -> Any:
    """The collectives of the second step: of the mixture, and of each of its rules on all parameters."""
    from torch.distributed.tensor.debug import CommDebugMode

    import descend

    counts = {}
    for name in ("mixture", *MIXTURES[which]):
        params = parameters(layout, torch.float64, SHAPES)
        if params is None:
            return None
        optimizer: Any = (
            _mixture(which, params) if name == "mixture" else descend.get_optimizer_class(name)(params, lr=1e-2)
        )
        take_steps(optimizer, 1)
        set_gradients(small.parameters_of(optimizer), 1)
        with CommDebugMode() as counted:
            optimizer.step()
        counts[name] = counted.get_total_counts()
    return counts


def collectives(name: str, layout: str, count: int, shape: tuple[int, ...] = (20, 18), **options: Any) -> Any:
    """How many collectives the second step takes with this many parameters of one shape."""
    from torch.distributed.tensor.debug import CommDebugMode

    params = parameters(layout, torch.float64, [shape] * count)
    if params is None:
        return None
    optimizer = small.make(row_of(name), params, **options)
    take_steps(optimizer, 1)
    set_gradients(params, 1)
    with CommDebugMode() as counted:
        optimizer.step()
    return counted.get_total_counts()
