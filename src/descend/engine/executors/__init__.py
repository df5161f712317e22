"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from descend.engine import offload
from descend.engine.executors import foreach, fused, loop
from descend.engine.executors.profile import falls_back, profile
from descend.engine.executors.rounds import Absent, Rounds
from descend.engine.job import Job
from descend.engine.sharding import owners
from descend.engine.sharding.collectives import total_over

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer
    from descend.engine.plan import Plan

Way = Literal["loop", "foreach", "fused", "empty", "offloaded", "loop in pieces", "fused in pieces", "gathered"]
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
    totals: Totals = []
    try:
        ways = _ways(rule, jobs, plan.memory)
        if ways["gathered"]:
            owners.run(ways["gathered"], lambda whole: _move_whole(rule, whole))
        absent: list[Job] = []
        while True:
            try:
                totals = _advance(rule, ways, plan)
                break
            except Absent as found:
                absent += found.jobs
                ways = _ways(rule, [job for job in jobs if job not in absent], plan.memory)
        for job in ways["empty"]:
            job.done = True
    finally:
        for job in jobs:
            del job.grad  # it is the user's to free
            if job.done and job.rests.master is not None:
                job.version = job.leaf._version
        plan.settle()
        plan.counters.count(jobs if all(job.done for job in jobs) else [job for job in jobs if job.done])
    return totals


def _advance(rule: type[Optimizer], ways: dict[Way, list[Job]], plan: Plan) -> Totals:
    """Pass by pass, with the sums over all tensors in between."""
    totals: Totals = []
    pieces = ways["loop in pieces"], ways["fused in pieces"]
    carriers = [*(loop.carry(rule, job) for job in pieces[0]), *fused.carriers(rule, pieces[1], plan.memory)]
    rounds = Rounds(carriers, [*pieces[0], *pieces[1]])
    while True:
        partials = [
            *_pass(rule, ways, totals, plan.memory),
            *offload.run(
                ways["offloaded"],
                plan.memory if plan.is_of_all else {},
                lambda batch, memory: _pass(rule, _by_way(rule, batch), totals, memory),
            ),
            *rounds.advance(totals[-1] if totals else None),
        ]
        total = tuple(_add_up(parts) for parts in zip(*partials, strict=True)) if partials else None
        if plan.process_group is not None:
            everywhere = total_over(plan.process_group, total)
            total = everywhere if total is None or everywhere is None else everywhere[: len(total)]
        if total is None:
            return totals
        totals.append(total)


def _pass(rule: type[Optimizer], ways: Mapping[Way, list[Job]], totals: Totals, memory: dict[str, Any]) -> Totals:
    """Whole parameters with their state beside them, as far as the next sum over all tensors; their part of it."""
    return [
        *loop.run(rule, _waiting(ways["loop"]), totals),
        *foreach.run(rule, _waiting(ways["foreach"]), totals),
        *fused.run(rule, _waiting(ways["fused"]), totals, memory),
    ]


def _by_way(rule: type[Optimizer], jobs: Sequence[Job]) -> Mapping[Way, list[Job]]:
    ways = defaultdict[Way, list[Job]](list)
    for job in jobs:
        ways[chosen(rule, job)].append(job)
    return ways


def is_gathered(rule: type[Optimizer], job: Job) -> bool:
    """Whether a parameter in pieces is put together for its step: rules of matrices, and state of another shape."""
    if not job.crosses:
        return False
    of_matrices = rule.reach == "matrix" and not falls_back(job)
    return of_matrices or any(slot.shape is not None for slot in job.slots.values())


def _move_whole(rule: type[Optimizer], job: Job) -> None:
    loop.run(rule, [job], [])


def _ways(rule: type[Optimizer], jobs: list[Job], memory: dict[str, Any]) -> dict[Way, list[Job]]:
    """The jobs by how they are carried, as before where they are the same."""
    before = memory.get("ways")
    if before is not None and before[0] == jobs and all(job.present for job in jobs):
        ways: dict[Way, list[Job]] = before[1]
        return ways
    ways = {way: [] for way in get_args(Way)}
    for job in jobs:
        if is_gathered(rule, job):
            ways["gathered"].append(job)
        elif job.crosses and profile(rule, job).rounds:
            ways["fused in pieces" if job.group["fused"] else "loop in pieces"].append(job)
        elif job.present:
            usual: Way = "offloaded" if job.offloaded else chosen(rule, job)
            ways["empty" if job.param.numel() == 0 else usual].append(job)
    if all(job.present for job in jobs):
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
        native = type(job.leaf) in (Tensor, torch.nn.Parameter)
        wanted = native and job.param.device.type in ("cuda", "xpu")
    return "foreach" if wanted and job.layout is None and not profile(rule, job).shaped else "loop"


def _add_up(parts: Sequence[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.stack([part.to(device) for part in parts]).sum()
