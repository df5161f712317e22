"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from descend.engine import offload
from descend.engine.executors import foreach, fused, loop
from descend.engine.executors.profile import profile
from descend.engine.executors.rounds import Absent, Rounds
from descend.engine.job import Job
from descend.engine.plan import Plan
from descend.engine.rule import Rule
from descend.engine.sharding import owners
from descend.engine.sharding.collectives import total_over

Way = Literal["loop", "foreach", "fused", "empty", "offloaded", "loop in pieces", "fused in pieces", "gathered"]
Totals = list[tuple[Tensor, ...]]


def run(
    rules: Iterable[type[Rule]], jobs: list[Job], plan: Plan, process_group: Any = None
) -> dict[type[Rule], Totals]:
    """Carry all jobs over one step, in as many passes as their rules ask for sums over all tensors.

    Args:
        rules: of all parameters, in an order that all processes have.
        jobs: the parameters to move.
        plan: where these come from, which keeps what executors remember from step to step.
        process_group: over which sums over all tensors go besides.

    Returns:
        For each rule the sums over all of its tensors that it asked for, a tuple a round.
    """
    totals: dict[type[Rule], Totals] = {}
    rules = tuple(dict.fromkeys(rules))
    try:
        ways = _ways(jobs, plan.memory)
        if ways["gathered"]:
            owners.run(ways["gathered"], _move_whole)
        absent: list[Job] = []
        while True:
            try:
                totals = _advance(rules, ways, plan, process_group)
                break
            except Absent as found:
                absent += found.jobs
                ways = _ways([job for job in jobs if job not in absent], plan.memory)
        for job in ways["empty"]:
            job.done = True
    finally:
        for job in jobs:
            del job.grad  # it is the user's to free
        plan.settle()
        plan.counters.count([job for job in jobs if job.done])
    return totals


def _advance(
    rules: Sequence[type[Rule]], ways: Mapping[Way, list[Job]], plan: Plan, process_group: Any
) -> dict[type[Rule], Totals]:
    """Pass by pass, with the sums over all tensors of a rule in between; those of all rules travel together."""
    by_rule = _by_rule(rules, ways)
    totals: dict[type[Rule], Totals] = {rule: [] for rule in rules}
    pieces = ways["loop in pieces"], ways["fused in pieces"]
    carriers = [loop.carry(job.rule, job) for job in pieces[0]]
    for rule, mine in by_rule.items():
        carriers += fused.carriers(rule, mine["fused in pieces"], _memory(plan.memory, rule))
    rounds = Rounds(carriers, [*pieces[0], *pieces[1]])
    latest: dict[type[Rule], tuple[Tensor, ...]] = {}
    partials: dict[type[Rule], Totals] = {rule: [] for rule in rules}
    going_on: Sequence[type[Rule]] = rules
    while True:
        for rule in going_on:
            partials[rule] = _whole(rule, by_rule[rule], totals[rule], plan)
        rounds.advance(latest)
        latest = {}
        for rule in rules:
            of_pieces = rounds.ready(rule)
            if of_pieces is not None and (found := [*partials[rule], *of_pieces]):
                latest[rule] = tuple(_add_up(parts) for parts in zip(*found, strict=True))
        if process_group is not None:
            latest = total_over(process_group, latest, rules)
        if not latest and not rounds.waits():
            return totals
        going_on = [rule for rule in rules if rule in latest]
        for rule, total in latest.items():
            totals[rule].append(total)
            partials[rule] = []


def _whole(rule: type[Rule], ways: Mapping[Way, list[Job]], totals: Totals, plan: Plan) -> Totals:
    """A pass over the whole parameters of a rule; their part of the next sums over all tensors."""
    memory = _memory(plan.memory, rule)
    offloaded = offload.run(
        ways["offloaded"],
        memory if plan.is_of_all else {},
        lambda batch, kept: _pass(rule, _by_way(batch), totals, kept),
    )
    return [*_pass(rule, ways, totals, memory), *offloaded]


def _by_rule(
    rules: Sequence[type[Rule]], ways: Mapping[Way, list[Job]]
) -> dict[type[Rule], defaultdict[Way, list[Job]]]:
    found = {rule: defaultdict[Way, list[Job]](list) for rule in rules}
    for way, jobs in ways.items():
        for job in jobs:
            found[job.rule][way].append(job)
    return found


def _memory(memory: dict[Any, Any], rule: type[Rule]) -> dict[Any, Any]:
    """What executors keep between steps of the parameters of one rule."""
    kept: dict[Any, Any] = memory.setdefault(rule, {})
    return kept


def _pass(rule: type[Rule], ways: Mapping[Way, list[Job]], totals: Totals, memory: dict[str, Any]) -> Totals:
    """Whole parameters with their state at hand, as far as the next sum over all tensors; their part of it."""
    return [
        *loop.run(rule, _waiting(ways["loop"]), totals),
        *foreach.run(rule, _waiting(ways["foreach"]), totals, memory),
        *fused.run(rule, _waiting(ways["fused"]), totals, memory),
    ]


def _by_way(jobs: Sequence[Job]) -> Mapping[Way, list[Job]]:
    ways = defaultdict[Way, list[Job]](list)
    for job in jobs:
        ways[chosen(job)].append(job)
    return ways


def is_gathered(job: Job) -> bool:
    """Whether a parameter in pieces is put together for its step: rules of matrices, and state of another shape."""
    if not job.crosses:
        return False
    return job.rule.reach == "matrix" or any(slot.shape is not None for slot in job.slots.values())


def _move_whole(job: Job) -> None:
    loop.run(job.rule, [job], [])


def _ways(jobs: list[Job], memory: dict[str, Any]) -> dict[Way, list[Job]]:
    """The jobs by how they are carried, as before where they are the same."""
    before = memory.get("ways")
    absent = [job for job in jobs if not job.present]
    if before is not None and before[0] == jobs and not absent:
        ways: dict[Way, list[Job]] = before[1]
        return ways
    ways = {way: [] for way in get_args(Way)}
    for job in jobs:
        if is_gathered(job):
            ways["gathered"].append(job)
        elif job.crosses and profile(job.rule, job).rounds:
            ways["fused in pieces" if job.group["fused"] else "loop in pieces"].append(job)
        elif job.present:
            usual: Way = "offloaded" if job.offloaded else chosen(job)
            ways["empty" if job.param.numel() == 0 else usual].append(job)
    if not absent:
        memory["ways"] = jobs, ways
    return ways


def _waiting(jobs: list[Job]) -> list[Job]:
    waiting = [job for job in jobs if not job.done]
    return jobs if len(waiting) == len(jobs) else waiting


def chosen(job: Job) -> Way:
    """How this parameter is carried: as its group asks, else by its device and size."""
    if job.group["fused"]:
        return "fused"
    wanted = job.group["foreach"]
    if wanted is None:
        native = type(job.leaf) in (Tensor, torch.nn.Parameter)
        wanted = native and (job.param.device.type in ("cuda", "xpu") or job.numel <= foreach.FEW)
    return "foreach" if wanted and job.layout is None and not profile(job.rule, job).shaped else "loop"


def _add_up(parts: Sequence[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.stack([part.to(device) for part in parts]).sum()
