"""Parameters in pieces: all of them are carried as far as the next sums, which then go over the processes together.

Every executor carries such parameters as generators: they yield what they have to sum and are sent the sums.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from descend.engine.executors.profile import Scope
from descend.engine.job import Job
from descend.engine.known import Dims
from descend.engine.rule import Rule
from descend.engine.sharding.collectives import Sum, complete


@dataclass
class Ask:
    """Sums that a carrier waits for.

    Attributes:
        scope: over the elements of its own tensors, or over those of all tensors.
        job: whose they are; of several that one kernel carries the first, for they lie alike.
        partials: the sums over what is here.
        dims: of each sum, the dimensions that it goes along; None: all.
    """

    scope: Scope
    job: Job
    partials: list[Tensor]
    dims: tuple[Dims, ...]


Carrier = Generator[Ask, list[Tensor], None]


class Absent(Exception):
    """Raised where jobs turn out to have a gradient on no process at all."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__("no gradient anywhere")
        self.jobs = jobs


class Rounds:
    """Carriers in lockstep: whatever they wait for, of all rules, goes over the processes in one collective.

    Args:
        carriers: of the parameters in pieces, the same ones in the same order on every process.
        jobs: all of these parameters, of which others have the rest.
    """

    def __init__(self, carriers: Sequence[Carrier], jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._known = False
        self._waiting: list[tuple[Carrier, Ask]] = []
        self._overall: list[tuple[Carrier, Ask, list[Tensor]]] = []
        for carrier in carriers:
            self._go_on(carrier, None)

    def waits(self) -> bool:
        """Whether a carrier waits for sums over its own elements."""
        return any(ask.scope == "own" for _, ask in self._waiting)

    def advance(self, latest: Mapping[type[Rule], tuple[Tensor, ...]]) -> None:
        """Carry on with the latest sums over all tensors of each rule, and take one collective for what is asked then.

        Raises:
            Absent: before anything has moved.
        """
        summed, self._overall = self._overall, []
        for carrier, ask, sums in summed:
            total = latest.get(ask.job.rule)
            if total is None:
                self._overall.append((carrier, ask, sums))
            else:
                self._go_on(carrier, [x.to(partial.device) for x, partial in zip(total, ask.partials, strict=True)])
        waiting, self._waiting = self._waiting, []
        for (carrier, ask), sums in zip(waiting, self._sum([ask for _, ask in waiting]), strict=True):
            if ask.scope == "own":
                self._go_on(carrier, sums)
            else:
                self._overall.append((carrier, ask, sums))

    def ready(self, rule: type[Rule]) -> list[tuple[Tensor, ...]] | None:
        """The sums over all tensors that a rule's carriers have, complete over the processes; None: some have not yet."""
        if any(ask.job.rule is rule for _, ask in self._waiting):
            return None
        return [tuple(sums) for _, ask, sums in self._overall if ask.job.rule is rule]

    def _go_on(self, carrier: Carrier, answer: list[Tensor] | None) -> None:
        try:
            ask = next(carrier) if answer is None else carrier.send(answer)
        except StopIteration:
            return
        self._waiting.append((carrier, ask))

    def _sum(self, asks: Sequence[Ask]) -> list[list[Tensor]]:
        sums = [
            Sum(
                ask.job.layout,
                list(ask.partials),
                [ask.job.crossed(dims if ask.scope == "own" else None) for dims in ask.dims],
            )
            for ask in asks
        ]
        if asks and not self._known:
            self._known = True
            self._with_presence(sums)
        else:
            complete(sums)
        return [one.values for one in sums]

    def _with_presence(self, sums: list[Sum]) -> None:
        """The first collective also says who has a gradient anywhere."""
        bits = [
            Sum(job.layout, [torch.tensor(float(job.present), device=job.param.device)], [job.crossed(None)])
            for job in self._jobs
        ]
        complete([*sums, *bits])
        present = torch.stack([bit.values[0] for bit in bits]).tolist() if bits else []  # one read by the host
        absent = [job for job, bit in zip(self._jobs, present, strict=True) if bit == 0]
        if absent:
            raise Absent(absent)
