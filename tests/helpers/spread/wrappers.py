"""What the processes of the tests do with optimizers around others: save them, load them elsewhere, go on."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import descend
from helpers import small, spread

MAKERS: dict[str, Any] = {
    "Lookahead": lambda params: descend.Lookahead(descend.AdamW(params, lr=0.1), alpha=0.3, k=3),
    "Lookahead of torch's": lambda params: descend.Lookahead(torch.optim.AdamW(params, lr=0.1), alpha=0.3, k=3),
    "Lookahead of SAM": lambda params: descend.Lookahead(descend.SAM(descend.AdamW(params, lr=0.1)), alpha=0.3, k=3),
    "SAM": lambda params: descend.SAM(descend.AdamW(params, lr=0.1), rho=0.5),
    "schedule-free": lambda params: descend.ScheduleFreeAdamW(params, lr=0.1),
    "SAM of schedule-free": lambda params: descend.SAM(descend.ScheduleFreeAdamW(params, lr=0.1)),
}


def take_steps(optimizer: Any, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        if hasattr(optimizer, "first_step"):
            spread.set_gradients(small.parameters_of(optimizer), step + 100)
            optimizer.first_step()
        spread.take_steps(optimizer, 1, step)


def round_trip(which: str, steps: int, form: str, folder: str) -> Any:
    """Where a run on two processes ends, and where its continuation on three ends, from a checkpoint after some steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _round_trip(which, steps, form, folder)


def _round_trip(which: str, steps: int, form: str, folder: str) -> Any:
    make, results = MAKERS[which], {}
    dtype = torch.float64 if "torch" in which else torch.bfloat16  # torch's casts all state to the parameter's dtype
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flat", full_state_dict=form == "full")
    file = f"{folder}/full.pt"

    def both(model: Any, optimizer: Any) -> dict[str, Any]:
        optimizers = get_optimizer_state_dict(model, optimizer, options=options)
        return {"model": get_model_state_dict(model, options=options), "optimizer": optimizers}

    first = spread.model_on("2 ranks", dtype)
    if first is not None:
        optimizer = make(first.named_parameters() if "torch" not in which else first.parameters())
        if form != "plain":
            both(first, optimizer)  # asking before the first step changes nothing
        take_steps(optimizer, steps)
        if form == "plain":  # what one process alone would save, and load
            saved = optimizer.state_dict()
            saved["state"] = {
                i: {name: spread.whole(x) for name, x in state.items()} for i, state in saved["state"].items()
            }
            torch.save({"model": [spread.whole(p) for p in first.parameters()], "optimizer": saved}, file)
        elif form == "full":
            full = both(first, optimizer)
            if dist.get_rank() == 0:
                torch.save(full, file)
        else:
            dcp.save(both(first, optimizer), checkpoint_id=folder, process_group=spread.mesh(2).get_group())
        results["saved"] = spread.found(optimizer)
        take_steps(optimizer, 7, steps)
        results["uninterrupted"] = spread.found(optimizer)
    dist.barrier()
    second = spread.model_on("3 ranks", dtype, seed=1)
    if second is not None:
        optimizer = make(second.named_parameters() if "torch" not in which else second.parameters())
        if form == "plain":
            loaded = torch.load(file, weights_only=True)
            with torch.no_grad():
                for p, value in zip(second.parameters(), loaded["model"], strict=True):
                    p.copy_(spread.spread(value, p.device_mesh, p.placements))
            optimizer.load_state_dict(loaded["optimizer"])
        else:
            if which == "schedule-free":
                optimizer.eval()  # a fresh one may be in either mode
            loaded = torch.load(file, weights_only=True) if form == "full" else both(second, optimizer)
            if form != "full":
                dcp.load(loaded, checkpoint_id=folder, process_group=spread.mesh(3).get_group())
            set_model_state_dict(second, loaded["model"], options=options)
            set_optimizer_state_dict(second, optimizer, loaded["optimizer"], options=options)
        results["loaded"] = spread.found(optimizer)
        take_steps(optimizer, 7, steps)
        results["continued"] = spread.found(optimizer)
    dist.barrier()
    return results
