"""Sums that a step needs from more than the tensors in hand: asked for by generators, answered for all of them together.

An executor moves what it can at once. The rest it leaves as generators: each yields what it has to sum, and is sent the
sums. One collective a round answers all of them, of every rule.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from descend.engine.context import Dims
from descend.engine.executors.profile import Scope
from descend.engine.job import Job
from descend.engine.rule import Rule
from descend.engine.sharding.collectives import Sum, complete, total_over

Totals = Sequence[tuple[Tensor, ...]]


@dataclass
class SumRequest:
    """Sums that a generator waits for.

    Attributes:
        scope: over the elements of its own tensors, or over those of all tensors.
        job: whose they are; the first of several that lie alike.
        parts: the sums over what is here, one list a parameter or bundle; one list alone where it is of shards.
        dims: of each sum, the dimensions that it goes along; None: all.
    """

    scope: Scope
    job: Job
    parts: list[list[Tensor]]
    dims: tuple[Dims, ...]


StepGenerator = Generator[SumRequest, list[Tensor], None]
_Waiting = tuple[StepGenerator, SumRequest]


class NoGradient(Exception):
    """Raised where jobs turn out to have a gradient on no process at all, before any of them has moved."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__("no gradient anywhere")
        self.jobs = jobs


def over_all(job: Job, parts: list[list[Tensor]]) -> SumRequest:
    """The request for sums over all tensors to which whole parameters of one rule give their parts."""
    return SumRequest("global", job, parts, (None,) * len(parts[0]))


def answer(
    generators: Iterable[StepGenerator], shards: Sequence[Job], rules: Sequence[type[Rule]], process_group: Any = None
) -> Mapping[type[Rule], Totals]:
    """Carry all generators to their end.

    Args:
        generators: of the step.
        shards: the jobs among theirs that are spread over processes, in an order that all processes have.
        rules: of all parameters, in an order that all processes have.
        process_group: over which sums over all tensors go besides.

    Returns:
        For each rule its sums over all tensors, a tuple a round.

    Raises:
        NoGradient: before a shard has moved, where no process has a gradient for it.
    """
    totals: dict[type[Rule], list[tuple[Tensor, ...]]] = {rule: [] for rule in rules}
    place = {id(job): i for i, job in enumerate(shards)}
    waiting = sorted(_next(generators), key=lambda pair: place.get(id(pair[1].job), -1))
    unsure = shards if waiting else ()
    summed: list[_Waiting] = []
    while waiting or summed or process_group is not None:
        _over_processes([request for _, request in waiting], unsure)
        unsure = ()
        summed += [pair for pair in waiting if pair[1].scope == "global"]
        waiting = [
            found
            for generator, request in waiting
            if request.scope == "tensor"
            for found in _sent(generator, request.parts[0])
        ]
        latest = _ready(rules, waiting, summed)
        if process_group is not None:
            latest = total_over(process_group, latest, rules)
            if not latest and not waiting:
                break
        for rule, total in latest.items():
            totals[rule].append(total)
        answered = [pair for pair in summed if pair[1].job.rule in latest]
        summed = [pair for pair in summed if pair[1].job.rule not in latest]
        for generator, request in answered:
            total = latest[request.job.rule]
            waiting += _sent(generator, [x.to(part.device) for x, part in zip(total, request.parts[0], strict=True)])
    return totals


def _next(generators: Iterable[StepGenerator]) -> list[_Waiting]:
    """The generators that ask for something, each with what."""
    return [(generator, request) for generator in generators for request in [next(generator, None)] if request]


def _sent(generator: StepGenerator, sums: list[Tensor]) -> list[_Waiting]:
    """The generator with its next request, unless it has ended."""
    try:
        return [(generator, generator.send(sums))]
    except StopIteration:
        return []


def _ready(
    rules: Sequence[type[Rule]], waiting: Sequence[_Waiting], summed: Sequence[_Waiting]
) -> dict[type[Rule], tuple[Tensor, ...]]:
    """The sums over all tensors of the rules whose generators have all come to ask for them."""
    busy = {request.job.rule for _, request in waiting}
    parts: dict[type[Rule], list[list[Tensor]]] = {}
    for _, request in summed:
        parts.setdefault(request.job.rule, []).extend(request.parts)
    return {rule: _added_up(parts[rule]) for rule in rules if rule in parts and rule not in busy}


def _added_up(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Sum by sum, over all parts, on the device of the first."""
    columns = zip(*parts, strict=True)
    return tuple(torch.stack([x.to(column[0].device) for x in column]).sum() for column in columns)


def _over_processes(requests: Sequence[SumRequest], unsure: Sequence[Job]) -> None:
    """Complete what is asked over the processes, in place; the same collective says which jobs have a gradient anywhere."""
    sums = [
        Sum(r.job.layout, r.parts[0], [r.job.crossed(d if r.scope == "tensor" else None) for d in r.dims])
        for r in requests
        if r.job.crosses
    ]
    bits = [
        Sum(job.layout, [torch.tensor(float(job.present), device=job.local_param.device)], [job.crossed(None)])
        for job in unsure
    ]
    complete([*sums, *bits])
    if bits:
        present = torch.stack([bit.values[0] for bit in bits]).tolist()  # one read by the host
        absent = [job for job, bit in zip(unsure, present, strict=True) if bit == 0]
        if absent:
            raise NoGradient(absent)
