"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from descend.engine.executors import foreach, fused, loop
from descend.engine.executors.profile import profile
from descend.engine.job import Job

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer
    from descend.engine.plan import Plan

Way = Literal["loop", "foreach", "fused", "empty"]
Totals = list[tuple[Tensor, ...]]


def run(rule: type[Optimizer], jobs: list[Job], plan: Plan) -> Totals:
    """Carry all jobs over one step, in as many passes as the rule asks for sums over all tensors.

    Args:
        rule: the optimizer's class.
        jobs: the parameters to move.
        plan: where these come from, which keeps what executors remember from step to step.

    Returns:
        The sums over all tensors that the text asked for, a tuple a round.
    """
    ways = _ways(rule, jobs, plan.memory)
    totals: Totals = []
    try:
        while True:
            partials = [
                *loop.run(rule, _waiting(ways["loop"]), totals),
                *foreach.run(rule, _waiting(ways["foreach"]), totals),
                *fused.run(rule, _waiting(ways["fused"]), totals, plan.memory),
            ]
            if not partials:
                break
            totals.append(tuple(_add_up(parts) for parts in zip(*partials, strict=True)))
        for job in ways["empty"]:
            job.done = True
    finally:
        for job in jobs:
            del job.grad  # it is the user's to free
            if job.done and job.rests.master is not None:
                job.version = job.param._version
        plan.counters.count(jobs if all(job.done for job in jobs) else [job for job in jobs if job.done])
    return totals


def _ways(rule: type[Optimizer], jobs: list[Job], memory: dict[str, Any]) -> dict[Way, list[Job]]:
    """The jobs by how they are carried, as before where they are the same."""
    before = memory.get("ways")
    if before is not None and before[0] == jobs:
        ways: dict[Way, list[Job]] = before[1]
        return ways
    ways = {"loop": [], "foreach": [], "fused": [], "empty": []}
    for job in jobs:
        ways["empty" if job.param.numel() == 0 else chosen(rule, job)].append(job)
    memory["ways"] = jobs, ways
    return ways


def _waiting(jobs: list[Job]) -> list[Job]:
    return jobs if not any(job.done for job in jobs) else [job for job in jobs if not job.done]


def chosen(rule: type[Optimizer], job: Job) -> Way:
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
