"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from descend.engine.executors import foreach, fused, loop
from descend.engine.executors.profile import profile
from descend.engine.job import Job, count

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer

Totals = list[tuple[Tensor, ...]]


def run(rule: type[Optimizer], jobs: Sequence[Job], memory: dict[str, Any]) -> Totals:
    """Carry all jobs over one step, in as many passes as the rule asks for sums over all tensors.

    Args:
        rule: the optimizer's class.
        jobs: the parameters to move.
        memory: what executors keep from step to step.

    Returns:
        The sums over all tensors that the text asked for, a tuple a round.
    """
    try:
        return _run(rule, jobs, memory)
    finally:
        done = [job for job in jobs if job.done]
        for capturable in {bool(job.group["capturable"]) for job in done}:
            count([job for job in done if bool(job.group["capturable"]) is capturable])


def _run(rule: type[Optimizer], jobs: Sequence[Job], memory: dict[str, Any]) -> Totals:
    ways: dict[str, list[Job]] = {"loop": [], "foreach": [], "fused": []}
    for job in jobs:
        if job.param.numel() == 0:
            job.done = True
        else:
            ways[chosen(rule, job)].append(job)
    totals: Totals = []
    while True:
        partials = [
            *loop.run(rule, _waiting(ways["loop"]), totals),
            *foreach.run(rule, _waiting(ways["foreach"]), totals),
            *fused.run(rule, _waiting(ways["fused"]), totals, memory),
        ]
        if not partials:
            return totals
        totals.append(tuple(_add_up(parts) for parts in zip(*partials, strict=True)))


def _waiting(jobs: list[Job]) -> list[Job]:
    return jobs if not any(job.done for job in jobs) else [job for job in jobs if not job.done]


def chosen(rule: type[Optimizer], job: Job) -> Literal["loop", "foreach", "fused"]:
    """How this parameter is carried: as its group asks, else as torch decides for the device."""
    if job.group["fused"]:
        return "fused"
    wanted = job.group["foreach"]
    if wanted is None:
        native = type(job.param) in (Tensor, torch.nn.Parameter)
        wanted = native and job.param.device.type in ("cuda", "xpu")
    return "foreach" if wanted and not profile(rule, job).shaped else "loop"


def _add_up(parts: Sequence[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.stack([part.to(device) for part in parts]).sum()
