"""Bundles of any number of parameters: one launch of a written kernel moves them all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from itertools import accumulate
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.bundle import Bundle, Tables
from descend.engine.executors.kernels import Signature, leaves
from descend.engine.executors.tiles import Unwritten, Written, function, written
from descend.engine.job import Job

_ALIGNED = 16  # bytes that are loaded at once


def is_written(signature: Signature) -> bool:
    """Whether one launch serves all parameters of a signature: flat texts on a GPU, of operations that have a form."""
    if signature.shaped or signature.device.type != "cuda":
        return False
    try:
        _kernels(signature)
    except Unwritten:
        return False
    return True


def _kernels(signature: Signature) -> list[tuple[Written, Any]]:
    """The kernels of all passes, written from the text of one parameter, each with what Triton launches."""
    alone = replace(signature, bundle=1)
    return [_compiled(alone, stage) for stage in range(len(signature.rounds) + 1)]


def compile_ahead(signature: Signature, stage: int) -> None:
    """Have Triton compile a kernel without a launch."""
    made, function = _kernels(signature)[stage]
    known = [signature.compute_dtype] * stage
    whole, short = torch.int64, torch.int32
    arguments = [whole, whole, whole, torch.float64, short, short, whole, *known, *made.outputs, 1]
    with torch.cuda.device(signature.device):
        function.warmup(*arguments, grid=(1,), enable_fp_fusion=False)


@cache
def is_runnable(device: torch.device) -> bool:
    """Whether Triton is here, and compiles for this device; for its launches it also needs a C compiler."""
    if find_spec("triton") is None:
        return False
    try:
        _placed([0], device)
    except Exception as error:
        warnings.warn(
            f"Triton does not run on {device}, so steps are multi-tensor operations: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


@cache
def _compiled(signature: Signature, stage: int) -> tuple[Written, Any]:
    """A kernel, and what Triton launches."""
    made = written(signature, stage)
    return made, function(made)


def launch(function: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel. Products and sums are rounded one by one, as everywhere else."""
    device = arguments[0].device
    with nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        function[(programs,)](*arguments, **constants, enable_fp_fusion=False)


class Tiled(Bundle):
    """Parameters whose addresses a kernel reads from a table."""

    def __init__(self, signature: Signature, jobs: list[Job]) -> None:
        super().__init__(replace(signature, bundle=len(jobs)), jobs)
        device = signature.device
        last: Written = self.kernels[-1][0]
        self._to = [self._memory[i] for i in last.singles]
        lengths = [sum(x.numel() for x in leaves(param)) for param in self._params]
        rows = [length // (signature.storage.length or 1) for length in lengths]
        firsts = [0, *accumulate(-(-n // last.chunk) for n in rows)]
        self._programs = firsts[-1]
        starts = torch.tensor(firsts, dtype=torch.int32, device="cpu")
        jobs_of = torch.repeat_interleave(starts.diff())
        chunks = torch.arange(self._programs, device="cpu") - starts[jobs_of]
        self._where = tuple(x.to(device) for x in (jobs_of.int(), chunks.int(), torch.tensor(rows, device="cpu")))
        self._firsts = starts.to(device)
        self._apart = _there(range(len(jobs)), device) if self.places is not None else None
        self._placed: tuple[list[int], Tensor] | None = None
        self._now: list[Tensor] = []

    def _look(self) -> None:
        """Note where parameters and state lie besides."""
        super()._look()
        count = range(len(self.jobs))
        held = [[*leaves((self._params[i], [column[i] for column in self._state]))] for i in count]
        addresses = [[t.data_ptr() for t in column] for column in zip(*held, strict=True)]
        self._aligned = self.signature.aligned and not any(a % _ALIGNED for column in addresses for a in column)
        self._memory = _there(addresses, self.signature.device)

    def _compiled(self) -> list[Any]:
        return _kernels(replace(self.signature, aligned=self._aligned))

    @property
    def alike(self) -> Any:
        """No two have gradients at the same addresses."""
        return id(self)

    def _known(self) -> dict[int, Mapping[str, Any]]:
        """What is known of a step, a row of the table each."""
        return {id(known): known for known in map(attrgetter("known"), self.jobs)}

    def _integers(self) -> list[int]:
        """Where gradients lie, and which row of the table is each parameter's."""
        grads = self._laid()
        if self._aligned and any(g.data_ptr() % _ALIGNED for g in grads):
            grads = [g.clone() if g.data_ptr() % _ALIGNED else g for g in grads]
        self._now = grads
        addresses = [g.data_ptr() for g in grads]
        length, lanes = self.signature.storage.length, self.signature.storage.lanes
        if lanes > 1 and length:
            size = grads[0].element_size()
            addresses = [a + lane * (length // lanes) * size for lane in range(lanes) for a in addresses]
        rows = {identity: i for i, identity in enumerate(self._known())}
        return addresses + [rows[id(job.known)] for job in self.jobs]

    def given(self) -> tuple[list[int], list[float]]:
        """A row of scalars for all parameters of which the same is known."""
        return self._integers(), [k[name] for k in self._known().values() for name in self.signature.scalars]

    def _on_device(self, tables: Tables) -> tuple[Tensor, Tensor]:
        """The same where scalars are tensors; addresses go with launches, since no copy may come from the host."""
        integers, device = self._integers(), self.signature.device
        placed = self._placed
        if torch.cuda.is_current_stream_capturing():
            placed = integers, _placed(integers, device)  # at each replay, to memory of the graph
        elif placed is None or placed[0] != integers:
            placed = self._placed = integers, _placed(integers, device)
        known = self._known().values()
        numbers = [tables.number(k[name], device) for k in known for name in self.signature.scalars]
        return placed[1], torch.stack(numbers).view(len(known), -1)

    def _passes(self, tables: Tables) -> Callable[[int, Sequence[Tensor]], Sequence[Tensor]]:
        is_here = not self.jobs[0].group["capturable"]
        whole, table = tables.of(self) if is_here else self._on_device(tables)
        addresses, rows = whole[: -len(self.jobs)], whole[-len(self.jobs) :]
        if self.places is not None and self._apart is not None:
            table, rows = torch.cat([table[rows], self.places], 1), self._apart
        grads, self._now = self._now, []
        return partial(self._pass, (self._memory, addresses, rows, table, *self._where), grads)

    def _pass(
        self, tables: Sequence[Tensor], grads: Sequence[Tensor], stage: int, sums: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Run a pass; `grads` are the memory that the tables name, which is there until the last one and not longer."""
        kernel, function = self.kernels[stage]
        count, partials, outs = len(grads), None, []
        if kernel.singles:
            outs.append(self._memory.new_empty(len(kernel.singles), count, dtype=kernel.single_dtype))
        if kernel.sums:
            partials = self._memory.new_empty(self._programs, kernel.sums, dtype=self.signature.compute_dtype)
            outs.append(partials)
        if self._programs:
            launch(function, self._programs, *tables, *sums, *outs, count)
        if partials is not None:
            return (_totals(partials, self._firsts),)
        for i, to in enumerate(self._to):
            launch(_fixed("scatter"), count, outs[0][i], to)
        return ()


def _there(numbers: Any, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device)


def _fixed(name: str) -> Any:
    """One of the kernels that no rule changes."""
    from descend.engine.executors import triton_functions

    return getattr(triton_functions, name)


def _totals(partials: Tensor, firsts: Tensor) -> Tensor:
    """The sums of each parameter, of those of its chunks."""
    count, kinds = firsts.numel() - 1, partials.shape[1]
    totals = partials.new_empty(count, kinds)
    launch(_fixed("total"), count, partials, firsts, totals, KINDS=kinds, WIDTH=256)
    return totals


_AT_ONCE = 32


def _placed(integers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device, brought there as arguments of launches."""
    made = torch.empty(len(integers), dtype=torch.int64, device=device)
    for start in range(0, len(integers), _AT_ONCE):
        some = integers[start : start + _AT_ONCE]
        launch(_fixed("place"), 1, made, start, len(some), *some, *[0] * (_AT_ONCE - len(some)))
    return made
