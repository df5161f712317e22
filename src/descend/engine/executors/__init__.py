"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from descend.engine.executors import foreach, fused, loop, offload
from descend.engine.executors.profile import profile
from descend.engine.executors.sums import NoGradient, StepGenerator, Totals, answer
from descend.engine.job import Job
from descend.engine.plan import Plan
from descend.engine.rule import Rule
from descend.engine.sharding import gathering

Way = Literal["gathered", "empty", "offloaded", "loop", "foreach", "fused"]
_EXECUTORS: Mapping[str, Callable[..., list[StepGenerator]]] = {
    "loop": loop.run,
    "foreach": foreach.run,
    "fused": fused.run,
}


def run(
    rules: Iterable[type[Rule]], jobs: list[Job], plan: Plan, process_group: Any = None
) -> Mapping[type[Rule], Totals]:
    """Carry all jobs over one step.

    Args:
        rules: of all parameters, in an order that all processes have.
        jobs: the parameters to move.
        plan: where these come from, which keeps what executors remember from step to step.
        process_group: over which sums over all tensors go besides.

    Returns:
        For each rule the sums over all of its tensors that it asked for, a tuple a round.
    """
    rules, moving = tuple(dict.fromkeys(rules)), jobs
    try:
        while True:
            try:
                return answer(*_begin(moving, plan, rules), rules, process_group)
            except NoGradient as found:
                # Matrices have been to their owners, whether or not they had gradients there.
                moving = [job for job in moving if not (job.done or is_gathered(job) or job in found.jobs)]
    finally:
        for job in jobs:
            del job.grad  # it is the user's to free
        plan.settle()
        plan.counters.count([job for job in jobs if job.done])


def _begin(jobs: list[Job], plan: Plan, rules: Sequence[type[Rule]]) -> tuple[list[StepGenerator], list[Job]]:
    """Move the parameters that need no sums from elsewhere; the generators of the others, and the shards among them."""
    generators: list[StepGenerator] = []
    absent = [job for job in jobs if not job.present]  # whether these move is found out on the way
    kept = {} if absent else plan.memory(jobs)
    if "ways" not in kept:
        kept["ways"] = _ways(jobs, rules)
        kept["capturable"] = any(job.group["capturable"] and job.device.type == "cuda" for job in jobs)
    ways, shards = kept["ways"]
    if kept["capturable"]:
        plan.keep_captured(kept)
    for (way, rule), members in ways.items():
        memory = kept.setdefault((way, rule), {})
        if way == "gathered":
            gathering.run(members, _move_whole)
        elif way == "empty":
            generators.append(_leave(members))
        elif way == "offloaded":
            generators.append(offload.steps(members, memory if plan.is_of_all else {}, _begin_batch))
        else:
            generators += _EXECUTORS[way](members, memory)
    return generators, shards


def _leave(jobs: list[Job]) -> StepGenerator:
    """Count the step of parameters without elements."""
    for job in jobs:
        job.done = True
    yield from ()


def _begin_batch(jobs: list[Job], memory: dict[str, Any], totals: Totals) -> list[StepGenerator]:
    """The same for parameters whose state has come to their device."""
    kept: dict[int, Way] = memory.setdefault("ways", {})
    ways: dict[Way, list[Job]] = {}
    for job in jobs:
        if id(job) not in kept:
            kept[id(job)] = chosen(job)
        ways.setdefault(kept[id(job)], []).append(job)
    return [generator for way, members in ways.items() for generator in _EXECUTORS[way](members, memory, totals)]


def _move_whole(job: Job) -> None:
    loop.run([job], {})


def _ways(jobs: list[Job], rules: Sequence[type[Rule]]) -> tuple[dict[tuple[Way, Any], list[Job]], list[Job]]:
    """The jobs by how they are carried and by their rule, and which are shards that need sums from elsewhere."""
    ways: dict[tuple[Way, Any], list[Job]] = {}
    shards: list[Job] = []
    for job in jobs:
        if is_gathered(job):
            ways.setdefault(("gathered", None), []).append(job)  # the matrices of all rules travel together
        elif job.crosses and profile(job.rule, job).rounds:
            shards.append(job)
            ways.setdefault((chosen(job), job.rule), []).append(job)
        elif job.present:
            usual: Way = "offloaded" if job.offloaded else chosen(job)
            ways.setdefault(("empty" if job.local_param.numel() == 0 else usual, job.rule), []).append(job)
    # Rule by rule; what has no elements comes after all that may raise.
    places = {rule: i for i, rule in enumerate(rules)}
    ways = dict(sorted(ways.items(), key=lambda item: (item[0][0] == "empty", places.get(item[0][1], -1))))
    return ways, shards


def is_gathered(job: Job) -> bool:
    """Whether a parameter in pieces is put together for its step: rules of matrices, and state of another shape."""
    if not job.crosses:
        return False
    return job.rule.reach == "matrix" or any(slot.shape is not None for slot in job.slots.values())


def chosen(job: Job) -> Way:
    """How this parameter is carried: as its group asks, else by its device and size."""
    if job.group["fused"]:
        return "fused"
    wanted = job.group["foreach"]
    if wanted is None:
        native = type(job.param) in (Tensor, torch.nn.Parameter)
        on_gpu = job.local_param.device.type in ("cuda", "xpu")
        if (native or job.layout) and job.group["fused"] is None and fused.serves(job.rule, job):
            return "fused"
        wanted = native and (on_gpu or job.numel <= foreach.FEW)
    served = not profile(job.rule, job).shaped or foreach.is_stacked(job)
    return "foreach" if wanted and job.layout is None and served else "loop"
