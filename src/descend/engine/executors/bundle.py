"""A bundle: parameters that kernels are called with together, the views of them that go in, and the table of scalars."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from descend.engine.executors.kernels import Signature, blank, kernel, leaves, over_bundle, vectors
from descend.engine.executors.sums import StepGenerator, SumRequest, Totals
from descend.engine.job import Job, flatten, real, resolved


class Tables:
    """The numbers of this step on their devices; those that are on the host arrive in one copy."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = bundles
        self._made: dict[Any, tuple[Tensor, Tensor]] = {}
        self.numbers: dict[torch.device, dict[float, Tensor]] = {}

    def of(self, bundle: Bundle) -> tuple[Tensor, Tensor]:
        """Addresses and rows as whole numbers, and a row of scalars for each place in a bundle."""
        key = bundle.alike
        if key not in self._made:
            self._made.update(_copied([one for one in self._bundles if not one.jobs[0].group["capturable"]]))
        return self._made[key]

    def number(self, value: Any, device: torch.device) -> Tensor:
        """A scalar that is on its device, or comes there once a step."""
        if isinstance(value, Tensor):
            return value.to(torch.float64)
        kept = self.numbers.setdefault(device, {})
        if value not in kept:
            kept[value] = torch.full((), value, dtype=torch.float64, device=device)
        return kept[value]


def _copied(bundles: Sequence[Bundle]) -> dict[Any, tuple[Tensor, Tensor]]:
    """The numbers of bundles whose scalars are on the host, by what they have alike."""
    found: dict[torch.device, dict[Any, Bundle]] = {}
    for bundle in bundles:
        found.setdefault(bundle.signature.device, {}).setdefault(bundle.alike, bundle)
    made: dict[Any, tuple[Tensor, Tensor]] = {}
    for device, alike in found.items():
        whole: list[int] = []
        real: list[float] = []
        places = []
        for bundle in alike.values():
            integers, doubles = bundle.given()
            places.append((len(whole), len(integers), len(real), len(doubles)))
            # Kernels take memory to begin at multiples of 16 bytes.
            whole += [*integers, *[0] * (len(integers) % 2)]
            real += [*doubles, *[0.0] * (len(doubles) % 2)]
        here = torch.tensor(real, dtype=torch.float64, device="cpu")
        if whole:
            here = torch.cat([torch.tensor(whole, dtype=torch.int64, device="cpu").view(torch.float64), here])
        # From pinned memory the device fetches by itself; the allocator waits until it has before it gives it again.
        there = (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)
        for (key, bundle), (first, count, start, size) in zip(alike.items(), places, strict=True):
            start += len(whole)
            table = there[start : start + size].view(-1, len(bundle.signature.scalars))
            made[key] = there[first : first + count].view(torch.int64), table
    return made


def _places(signature: Signature, jobs: Sequence[Job]) -> Tensor:
    """For each piece its first element's place, the lengths of a slice here and there, and the size of the whole."""
    rows = []
    for job in [*jobs, *[jobs[0]] * (signature.bundle - len(jobs))]:
        assert job.layout is not None
        sizes = job.whole if signature.shaped else (math.prod(job.whole),)
        rows.append([job.layout.first, *job.layout.slice_lengths(), *sizes])
    return torch.tensor(rows, dtype=torch.float64, device=signature.device)


class Bundle:
    """Parameters that one call of a kernel serves, with the views of them that it takes."""

    def __init__(self, signature: Signature, jobs: list[Job]) -> None:
        self.signature = signature
        self.jobs = jobs
        self.places = _places(signature, jobs) if signature.in_pieces else None
        self._look()
        self.kernels = self._compiled()

    def _compiled(self) -> list[Any]:
        """The kernels of the passes, in order."""
        return [kernel(self.signature, stage) for stage in range(len(self.signature.rounds) + 1)]

    @property
    def alike(self) -> Any:
        """What is the same for bundles with the same scalars in all rows."""
        known = self.jobs[0].known
        apart = [job for job in self.jobs if job.known is not known]
        return id(self) if apart else (id(self.signature), id(known))

    def _filled(self) -> list[Job]:
        return [*self.jobs, *[self.jobs[0]] * (self.signature.bundle - len(self.jobs))]

    def given(self) -> tuple[list[int], list[float]]:
        """The numbers of this step that are on the host."""
        return [], [job.known[name] for job in self._filled() for name in self.signature.scalars]

    def _table(self, tables: Tables) -> Tensor:
        """One row of scalars for each place in the bundle."""
        if self.jobs[0].group["capturable"]:
            names, jobs = self.signature.scalars, self._filled()
            numbers = [tables.number(job.known[name], self.signature.device) for job in jobs for name in names]
            table = torch.stack(numbers).view(len(jobs), -1)
        else:
            _, table = tables.of(self)
        return table if self.places is None else torch.cat([table, self.places], 1)

    def _look(self) -> None:
        """View parameters and state flat, or in the parameter's shape where the text needs it."""
        flat = not self.signature.shaped
        self._leaves = [job.local_param for job in self.jobs]
        self._pointers = list(map(Tensor.data_ptr, self._leaves))
        values = [real(p.detach()) for p in self._leaves]
        self._params = [self._view(p) if flat else job.seen(p) for job, p in zip(self.jobs, values, strict=True)]
        self._strides = [p.stride() for p in values]
        self._complex = any(p.is_complex() for p in self._leaves)
        self._states = [job.local_state for job in self.jobs]
        self._held: dict[str, list[int]] = {}
        self._state: list[list[Any]] = []
        for name, slot, _ in self.signature.slots:
            column = []
            for job, p in zip(self.jobs, values, strict=True):
                state = job.local_state
                if slot.like_parameter and real(state[name]).stride() != p.stride():
                    for part, moved in job.storage.laid_as(job.local_param.detach(), name, state, job.stored).items():
                        job.hold(part, moved)
                t = real(state[name])
                if slot.per_block:
                    column.append(t.view(p.numel() // (self.signature.storage.length or 1), -1))
                elif slot.like_parameter and flat:
                    column.append(self._view(t))
                else:
                    column.append(flatten(t) if t.dim() == 0 else job.seen(t))
            self._held[name] = [state[name].data_ptr() for state in self._states]
            self._state.append(column)
        missing = self.signature.bundle - len(self.jobs)
        self._spare_grads: list[Tensor] = []
        if missing:
            params, grads, spares = _scratch(self.signature)
            self._params += params[:missing]
            self._spare_grads = [*leaves(grads[:missing])]
            for column, spare in zip(self._state, spares, strict=True):
                column += spare[:missing]
        self._fixed = [*leaves((self._params, self._state))]

    def _view(self, x: Tensor) -> Any:
        """Flat, or a row a block, or so for the halves of the blocks."""
        length = self.signature.storage.length
        if not length:
            return flatten(x)
        rows = x.as_strided((x.numel() // length, length), (length, 1))
        return torch.split(rows, length // 2, 1) if self.signature.storage.lanes > 1 else rows

    def is_stale(self) -> bool:
        """Whether other code exchanged memory since the views were taken."""
        return list(map(Tensor.data_ptr, self._leaves)) != self._pointers or any(
            list(map(Tensor.data_ptr, map(operator.itemgetter(name), self._states))) != held
            for name, held in self._held.items()
        )

    def _laid(self) -> list[Tensor]:
        """Gradients that lie in memory as their parameters do."""
        grads = [job.grad for job in self.jobs]
        if self._complex or any(map(Tensor.is_neg, grads)):
            grads = [real(resolved(g)) for g in grads]
        if list(map(Tensor.stride, grads)) != self._strides:
            grads = [
                g if g.stride() == stride else torch.empty_like(real(p), dtype=g.dtype).copy_(g)
                for g, p, stride in zip(grads, self._leaves, self._strides, strict=True)
            ]
        return grads

    def _grads(self) -> list[Tensor]:
        grads = self._laid()
        if self.signature.shaped:
            return [*(job.seen(g) for job, g in zip(self.jobs, grads, strict=True)), *self._spare_grads]
        if self.signature.storage.length is None:
            flat = [g.as_strided((g.numel(),), (1,)) for g in grads]
        elif self.signature.storage.lanes > 1:
            flat = [*chain.from_iterable(map(self._view, grads))]
        else:
            flat = [*map(self._view, grads)]
        return [*flat, *self._spare_grads]

    def _passes(self, tables: Tables) -> Callable[[int, Sequence[Tensor]], Sequence[Tensor]]:
        """What runs a pass of this step, given the sums of those before."""
        arguments = [*self._fixed, *self._grads(), self._table(tables)]
        return lambda stage, sums: self.kernels[stage]([*arguments, *sums])

    def steps(self, totals: Totals, tables: Tables) -> StepGenerator:
        """Run the passes, asking for sums over all tensors that `totals` lacks, and for all sums over shards."""
        run = self._passes(tables)
        shaped, where = self.signature.shaped, (self.signature.device, self.signature.compute_dtype)
        known = iter(totals)
        sums: list[tuple[Tensor, ...]] = []
        for stage, (scope, dims) in enumerate(self.signature.rounds):
            total = next(known, None) if scope == "global" else None
            if total is None:
                partial = run(stage, [*chain.from_iterable(sums)])
                if scope == "tensor":
                    if self.signature.in_pieces:
                        partial = yield SumRequest(scope, self.jobs[0], [list(partial)], dims if shaped else (None,))
                    sums.append(vectors(partial))
                    continue
                count = len(self.jobs)
                mine = (
                    over_bundle(partial[: len(dims) * count], count) if shaped else partial[0][:count].sum(0).unbind(0)
                )
                total = tuple((yield SumRequest(scope, self.jobs[0], [list(mine)], dims)))
            sums.append((torch.stack([x.to(*where) for x in total]),))
        run(len(self.signature.rounds), [*chain.from_iterable(sums)])
        increment_version(self._leaves)
        for job in self.jobs:
            job.done = True


@lru_cache(maxsize=256)
def _scratch(signature: Signature) -> tuple[list[Any], list[Any], list[list[Any]]]:
    """Tensors that nobody reads, to fill up a bundle."""
    return blank(signature, [(2,) * len(signature.order or (0,))] * signature.bundle)
