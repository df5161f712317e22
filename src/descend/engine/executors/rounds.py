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
    """Carriers in lockstep.

    Args:
        carriers: of the parameters in pieces, the same ones in the same order on every process.
        jobs: all of these parameters, of which others have the rest.
    """

    def __init__(self, carriers: Sequence[Carrier], jobs: Sequence[Job]) -> None:
        self._jobs = jobs
        self._known = False
        self._waiting: list[tuple[Carrier, Ask]] = []
        for carrier in carriers:
            self._go_on(carrier, None)

    def advance(self, latest: Mapping[type[Rule], tuple[Tensor, ...]]) -> list[tuple[type[Rule], tuple[Tensor, ...]]]:
        """Carry on with the latest sums over all tensors of each rule, until the end or until the next are needed.

        Returns:
            For each that waits for the next its rule and its sums, complete over the processes.

        Raises:
            Absent: before anything has moved.
        """
        waiting, self._waiting = self._waiting, []
        for carrier, ask in waiting:
            total = latest.get(ask.job.rule) if ask.scope == "overall" else None
            if total is not None:
                self._go_on(carrier, [x.to(partial.device) for x, partial in zip(total, ask.partials, strict=True)])
            else:
                self._waiting.append((carrier, ask))
        while any(ask.scope == "own" for _, ask in self._waiting):
            now = [(carrier, ask) for carrier, ask in self._waiting if ask.scope == "own"]
            self._waiting = [(carrier, ask) for carrier, ask in self._waiting if ask.scope != "own"]
            for (carrier, _), answer in zip(now, self._sum([ask for _, ask in now]), strict=True):
                self._go_on(carrier, answer)
        asks = [ask for _, ask in self._waiting]
        return [(ask.job.rule, tuple(answer)) for ask, answer in zip(asks, self._sum(asks), strict=True)]

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
