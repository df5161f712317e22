"""Others who move weights, and checkpoints from one layout to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from helpers import small
from helpers.spread.problem import (
    LAYOUTS,
    SHAPES,
    found,
    mesh,
    options_of,
    parameters,
    row_of,
    set_gradients,
    take_steps,
    whole,
)

# ------------------------------------------------------------------------------------------------ others who move weights


def wrapped(which: str, layout: str) -> Any:
    """Where Lookahead, SAM and a schedule-free optimizer with evaluations end."""
    params = parameters(layout, torch.bfloat16 if which == "lookahead" else torch.float64, SHAPES)
    return None if params is None else _wrapped(which, params)


def wrapped_alone(which: str) -> Any:
    """The same in one process; for the test itself."""

    dtype = torch.bfloat16 if which == "lookahead" else torch.float64
    return _wrapped(which, small.parameters(dtype, SHAPES))


def _wrapped(which: str, params: list[nn.Parameter]) -> Any:
    import descend

    optimizer: Any = {
        "lookahead": lambda: descend.Lookahead(descend.AdamW(params, lr=0.1), k=2),
        "sam": lambda: descend.SAM(descend.AdamW(params, lr=0.1), rho=0.5, adaptive=True),
        "schedule-free": lambda: descend.ScheduleFreeAdamW(params, lr=0.1),
    }[which]()
    for step in range(5):
        set_gradients(params, step)
        if which == "sam":
            optimizer.first_step()
            set_gradients(params, step + 100)
        optimizer.step()
        if which == "schedule-free":
            optimizer.eval()
            if step < 4:
                optimizer.train()
    return found(optimizer)


def slow_weights_loaded(layout: str, from_whole: bool) -> Any:
    """A run of Lookahead's that goes on in another optimizer, from its own state_dict or from one of whole tensors."""
    import descend

    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    first = descend.Lookahead(descend.AdamW(params, lr=0.1), k=2)
    take_steps(first, 3)
    saved = first.state_dict()
    if from_whole:
        saved["state"] = {i: {name: whole(x) for name, x in state.items()} for i, state in saved["state"].items()}
    again = [nn.Parameter(p.detach().clone()) for p in params]
    second = descend.Lookahead(descend.AdamW(again, lr=0.1), k=2)
    second.load_state_dict(saved)
    alike = all(
        type(second.state[q][name]) is type(x)
        and getattr(second.state[q][name], "placements", 0) == getattr(x, "placements", 0)
        for p, q in zip(params, again, strict=True)
        for name, x in first.state[p].items()
    )
    for optimizer in (first, second):
        take_steps(optimizer, 2, 3)
    return found(first), found(second), alike


# ------------------------------------------------------------------------------------------------ checkpoints


def model_on(layout: str, dtype: torch.dtype = torch.float32, shapes: Any = SHAPES, seed: int = 0) -> Any:
    """A model whose parameters lie in a layout, and that layout's processes."""
    params = parameters(layout, dtype, shapes)
    if params is None:
        return None
    model = nn.Module()
    model.weights = nn.ParameterList(params)
    if seed:
        with torch.no_grad():
            for p in params:
                p.mul_(0.5)
    return model


def saved_and_loaded(
    name: str, layouts: Sequence[str], folder: str, dtype: torch.dtype, shapes: Any, flat: bool, **options: Any
) -> Any:
    """A run on one layout, saved after two steps, and its continuation on another, with what both had in between."""
    import warnings

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    form = StateDictOptions(flatten_optimizer_state_dict=flat)
    given = options_of(name, **options)
    results: dict[str, Any] = {}

    def both(model: Any, optimizer: Any) -> dict[str, Any]:
        optimizers = get_optimizer_state_dict(model, optimizer, options=form)
        return {"model": get_model_state_dict(model), "optimizer": optimizers}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = model_on(layouts[0], dtype, shapes)
        if first is not None:
            optimizer = small.make(row_of(name), first.named_parameters(), **given)
            results["start"] = found(optimizer)["values"]
            both(first, optimizer)  # asking before the first step changes nothing
            results["asked"] = found(optimizer)["values"]
            take_steps(optimizer, 2)
            group = mesh(*LAYOUTS[layouts[0]][0]).get_group()
            dcp.save(both(first, optimizer), checkpoint_id=folder, process_group=group)
            results["saved"] = found(optimizer)
            take_steps(optimizer, 1, 2)
            results["uninterrupted"] = found(optimizer)
        dist.barrier()
        second = model_on(layouts[1], dtype, shapes, seed=1)
        if second is not None:
            optimizer = small.make(row_of(name), second.named_parameters(), **given)
            loaded = both(second, optimizer)
            group = mesh(*LAYOUTS[layouts[1]][0]).get_group()
            dcp.load(loaded, checkpoint_id=folder, process_group=group)
            set_model_state_dict(second, loaded["model"])
            set_optimizer_state_dict(second, optimizer, loaded["optimizer"], options=form)
            results["loaded"] = found(optimizer)
            take_steps(optimizer, 1, 2)
            results["continued"] = found(optimizer)
        dist.barrier()
    return results
