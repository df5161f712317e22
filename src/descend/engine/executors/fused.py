"""Compiled execution: the same text as one pass over memory, eight parameters a call."""

from __future__ import annotations

import math
import operator
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from descend.engine.executors import loop
from descend.engine.executors.kernels import Signature, blank, kernel, leaves, over_bundle, signature_of, vectors
from descend.engine.executors.profile import flags, profile
from descend.engine.executors.sums import StepGenerator, SumRequest, Totals
from descend.engine.job import Job, flatten, is_dense, is_plain, real, resolved
from descend.engine.rule import Rule

_VECTOR = 16


def run(jobs: list[Job], memory: dict[str, Any], totals: Totals = ()) -> list[StepGenerator]:
    """Carry the jobs of a rule over one step; generators of the bundles that need sums from elsewhere."""
    seen = _seen(jobs)
    if memory.get("seen") != seen or any(bundle.is_stale() for bundle in memory["bundles"]):
        memory["tiny"], memory["bundles"] = _bundled(jobs)
        memory["seen"] = seen
    tiny, bundles = memory["tiny"], memory["bundles"]
    generators = loop.run(tiny, memory, totals) if tiny else []
    tables = _Tables(bundles)
    for bundle in bundles:
        steps = bundle.steps(totals, tables)
        if bundle.signature.asks > len(totals):
            generators.append(steps)
        else:
            next(steps, None)
    return generators


def _seen(jobs: list[Job]) -> tuple[Any, ...]:
    """What kernels depend on and jobs do not show: gradients as they come, and flags that depend on the step."""
    # With `capturable` no flag can depend on the step, which nobody on the host knows.
    flagged = {id(job.known): job for job in jobs if not job.group["capturable"]}
    return [(job.grad.dtype, type(job.grad)) for job in jobs], [flags(job) for job in flagged.values()]


def _bundled(jobs: list[Job]) -> tuple[list[Job], list[Bundle]]:
    """The jobs that no kernel serves, and bundles of the others with all their kernels made."""
    rule = jobs[0].rule
    tiny = [job for job in jobs if not compiles(rule, job)]
    kinds: dict[tuple[Signature, Any], list[Job]] = {}
    for job in jobs:
        if compiles(rule, job):
            across = job.layout and (job.layout.mesh, job.layout.sharded)
            kinds.setdefault((signature_of(rule, job), across), []).append(job)
    # On a GPU scratch would cost launches of its own: a step inside backward moves one parameter.
    kinds = {
        (replace(key[0], bundle=1) if len(members) == 1 and key[0].device.type == "cuda" else key[0], key[1]): members
        for key, members in kinds.items()
    }
    for signature, _ in kinds:
        for stage in range(len(signature.rounds) + 1):
            kernel(signature, stage)
    bundles = [
        Bundle(signature, members[start : start + signature.bundle])
        for (signature, _), members in kinds.items()
        for start in range(0, len(members), signature.bundle)
    ]
    return tiny, bundles


def compiles(rule: type[Rule], job: Job) -> bool:
    """Whether a kernel serves this parameter.

    It is handed the memory of its arguments: classes with a dispatch of their own go through the loop. Lengths of 0 and 1 would be compiled for themselves. Flat views need memory without gaps. Compilers count with 32 bits
    on accelerators, and the guard that would notice more is not asked. Rows of a few numbers each, as in convolutions,
    fill no vector of the processor: compiled, their sums take several times as long as one after another. Blocks lie
    across rows; and those of 4-bit numbers across memory that has another order than the dimensions.
    """
    value, shaped = job.view, profile(rule, job).shaped
    few = value.dim() > 2 and job.whole[-1] < _VECTOR and shaped
    # Pieces of inner dimensions need not be dense, on some processes and not on others, where sums have to match.
    inner = job.layout is not None and any(d > 0 for _, d in job.layout.sharded) and bool(profile(rule, job).rounds)
    paired = job.storage.in_order and not (job.storage.lanes > 1 and job.local_param.is_contiguous())
    blocked = job.storage.length is not None and (shaped or paired)
    countable = value.numel() < 1 << 31 or value.device.type == "cpu"
    served = rule.reach != "matrix" and not few and not blocked and not inner
    plain = type(job.grad).__torch_dispatch__ is Tensor.__torch_dispatch__ and all(map(is_plain, _stored(job)))
    # Every process has to come to the same answer, also one whose piece is empty.
    return served and plain and math.prod(job.whole) > 1 and countable and is_dense(value)


def _stored(job: Job) -> list[Tensor]:
    """The parameter and its state."""
    return [job.local_param, *(job.local_state[name] for name in job.stored)]


def check(kind: str, name: str, p: Tensor) -> None:
    """Raise unless a parameter can be compiled for: dtype and layout, and a compiler on this machine."""
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise RuntimeError(
            f"{kind}: `fused=True` requires all the params to be floating point Tensors; parameter {name} is {p.dtype}"
        )
    if not is_dense(p):
        raise RuntimeError(
            f"{kind}: fused=True needs parameters that fill their memory without gaps; parameter {name} has strides "
            f"{p.stride()} for shape {tuple(p.shape)}: use p.contiguous(), or fused=False"
        )
    missing = _missing_compiler(p.device.type)
    if missing:
        raise RuntimeError(
            f"{kind}: fused=True compiles for {p.device.type}, and there is no {missing}; foreach=True works without"
        )


def _missing_compiler(device: str) -> str | None:
    if device == "cpu":
        candidates = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
        if not any(shutil.which(candidate) for candidate in candidates if candidate):
            return "C++ compiler: install one (Debian: apt-get install g++, macOS: xcode-select --install)"
    elif find_spec("triton") is None and device not in ("mps", "meta"):
        return "Triton: install it (pip install triton)"
    return None


class _Tables:
    """The scalars of this step as tensors, one row a parameter; those that are on the host arrive in one copy."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self._bundles = bundles
        self._made: dict[Any, Tensor] = {}
        self._numbers: dict[torch.device, dict[float, Tensor]] = {}

    def table(self, bundle: Bundle) -> Tensor:
        """One row of scalars for each place in a bundle."""
        key = _alike(bundle)
        if key not in self._made:
            if bundle.jobs[0].group["capturable"]:
                self._made[key] = _on_device(bundle, self._numbers.setdefault(bundle.signature.device, {}))
            else:
                self._made.update(_copied([one for one in self._bundles if not one.jobs[0].group["capturable"]]))
        return self._made[key]


def _alike(bundle: Bundle) -> Any:
    """What is the same for bundles with the same scalars in all rows."""
    known = bundle.jobs[0].known
    return id(bundle) if [job for job in bundle.jobs if job.known is not known] else (id(bundle.signature), id(known))


def _filled(bundle: Bundle) -> list[Job]:
    return [*bundle.jobs, *[bundle.jobs[0]] * (bundle.signature.bundle - len(bundle.jobs))]


def _copied(bundles: Sequence[Bundle]) -> dict[Any, Tensor]:
    """The tables of bundles whose scalars are numbers, by what they have alike."""
    found: dict[torch.device, dict[Any, Bundle]] = {}
    for bundle in bundles:
        found.setdefault(bundle.signature.device, {}).setdefault(_alike(bundle), bundle)
    made: dict[Any, Tensor] = {}
    for device, alike in found.items():
        numbers: list[float] = []
        starts = []
        for bundle in alike.values():
            starts.append(len(numbers))
            for job in _filled(bundle):
                numbers += [job.known[name] for name in bundle.signature.scalars]
            numbers += [0.0] * (len(numbers) % 2)  # kernels take memory to begin at multiples of 16 bytes
        # From pinned memory the device fetches by itself; the allocator waits until it has before it gives it again.
        here = torch.tensor(numbers, dtype=torch.float64, device="cpu")
        there = (here.pin_memory() if device.type == "cuda" else here).to(device, non_blocking=True)
        for (key, bundle), start in zip(alike.items(), starts, strict=True):
            rows, columns = bundle.signature.bundle, len(bundle.signature.scalars)
            made[key] = there[start : start + rows * columns].view(rows, columns)
    return made


def _on_device(bundle: Bundle, numbers: dict[float, Tensor]) -> Tensor:
    """The table of a bundle whose scalars are tensors; `numbers` keeps those that are not."""
    device = bundle.signature.device

    def number(value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(torch.float64)
        if value not in numbers:
            numbers[value] = torch.full((), value, dtype=torch.float64, device=device)
        return numbers[value]

    names, jobs = bundle.signature.scalars, _filled(bundle)
    return torch.stack([number(job.known[name]) for job in jobs for name in names]).view(len(jobs), -1)


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
        self.kernels = [kernel(signature, stage) for stage in range(len(signature.rounds) + 1)]
        self._places = _places(signature, jobs) if signature.in_pieces else None
        self._look()

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

    def _grads(self) -> list[Tensor]:
        grads = [job.grad for job in self.jobs]
        if self._complex or any(map(Tensor.is_neg, grads)):
            grads = [real(resolved(g)) for g in grads]
        if list(map(Tensor.stride, grads)) != self._strides:
            grads = [
                g if g.stride() == stride else torch.empty_like(real(p), dtype=g.dtype).copy_(g)
                for g, p, stride in zip(grads, self._leaves, self._strides, strict=True)
            ]
        if self.signature.shaped:
            return [*(job.seen(g) for job, g in zip(self.jobs, grads, strict=True)), *self._spare_grads]
        if self.signature.storage.length is None:
            flat = [g.as_strided((g.numel(),), (1,)) for g in grads]
        elif self.signature.storage.lanes > 1:
            flat = [*chain.from_iterable(map(self._view, grads))]
        else:
            flat = [*map(self._view, grads)]
        return [*flat, *self._spare_grads]

    def steps(self, totals: Totals, tables: _Tables) -> StepGenerator:
        """Run the passes, asking for sums over all tensors that `totals` lacks, and for all sums over shards."""
        table = tables.table(self)
        if self._places is not None:
            table = torch.cat([table, self._places], 1)
        arguments = [*self._fixed, *self._grads(), table]
        shaped, where = self.signature.shaped, (self.signature.device, self.signature.compute_dtype)
        known = iter(totals)
        sums: list[tuple[Tensor, ...]] = []
        for stage, (scope, dims) in enumerate(self.signature.rounds):
            total = next(known, None) if scope == "global" else None
            if total is None:
                partial = self.kernels[stage]([*arguments, *chain.from_iterable(sums)])
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
        self.kernels[-1]([*arguments, *chain.from_iterable(sums)])
        increment_version(self._leaves)
        for job in self.jobs:
            job.done = True


@lru_cache(maxsize=256)
def _scratch(signature: Signature) -> tuple[list[Any], list[Any], list[list[Any]]]:
    """Tensors that nobody reads, to fill up a bundle."""
    return blank(signature, [(2,) * len(signature.order or (0,))] * signature.bundle)
