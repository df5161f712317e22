"""Bundles of any number of parameters: one launch of a written kernel moves them all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import accumulate
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.bundle import Bundle, Tables
from descend.engine.executors.cpp_launch import CppKernel, CppShapedKernel
from descend.engine.executors.cpp_shaped_writer import ShapedCppWriter, axes_of
from descend.engine.executors.cpp_writer import CppWriter
from descend.engine.executors.kernels import Signature, compiling, leaves
from descend.engine.executors.triton_launch import TritonKernel, placed
from descend.engine.executors.triton_writer import TritonWriter
from descend.engine.executors.writer import CHUNK, Chunks, Unwritten, Writer, Written
from descend.engine.job import Job

Kernel = TritonKernel | CppKernel
_Way = tuple[type[Writer], Callable[[Written], Kernel]]

_ALIGNED = 16  # bytes that a GPU loads at once
# By device, and whether the text needs shapes: what writes its kernels, and what launches them.
_WAYS: dict[tuple[str, bool], _Way] = {
    ("cuda", False): (TritonWriter, TritonKernel),
    ("cpu", False): (CppWriter, CppKernel),
    ("cpu", True): (ShapedCppWriter, CppShapedKernel),
}
_ROWS = 8  # of a chunk at least, so that what is the same for all rows is computed not too often
_CHUNKS = 256  # of a parameter at most, for the same reason


def has_writer(device: torch.device, shaped: bool) -> bool:
    """Whether kernels of a device are written here, for texts that need shapes or for others."""
    # Other systems' compilers, and where torch has its threads there, have not been tried.
    return (device.type, shaped) in _WAYS and (device.type != "cpu" or sys.platform == "linux")


def is_written(signature: Signature) -> bool:
    """Whether one launch serves all parameters of a signature: texts of operations that have a form."""
    if not has_writer(signature.device, signature.shaped):
        return False
    try:
        kernels(signature)
    except Unwritten:
        return False
    return True


def written(signature: Signature, stage: int) -> Written:
    """The text of the kernel of a pass. Raises :class:`Unwritten`."""
    writer, _ = _WAYS[signature.device.type, signature.shaped]
    return writer(signature, stage).write()


def kernels(signature: Signature) -> list[Kernel]:
    """The kernels of all passes, written from the text of one parameter."""
    alone, found = replace(signature, bundle=1), []
    for stage in range(len(signature.rounds) + 1):
        made = _compiled(alone, stage)
        if isinstance(made, Unwritten):
            raise made
        found.append(made)
    return found


@cache
def _compiled(signature: Signature, stage: int) -> Kernel | Unwritten:
    """A kernel, or why there is none: to find that out takes as long."""
    with compiling(signature.describe(stage)), torch.no_grad():
        _, kernel = _WAYS[signature.device.type, signature.shaped]
        try:
            return kernel(written(signature, stage))
        except Unwritten as reason:
            return reason


class Tiled(Bundle):
    """Parameters whose addresses a kernel reads from a table."""

    def __init__(self, signature: Signature, jobs: list[Job]) -> None:
        super().__init__(replace(signature, bundle=len(jobs)), jobs)
        device = signature.device
        last: Written = self.kernels[-1].written
        lengths = [sum(x.numel() for x in leaves(param)) for param in self._params]
        shapes = [tuple(next(leaves(param)).shape) for param in self._params]
        if signature.shaped:
            cut = [_rows(signature, shape) for shape in shapes]
            sizes, counts = [[*shape, step] for shape, (_, step) in zip(shapes, cut, strict=True)], [n for n, _ in cut]
        else:
            sizes = [[length // (signature.storage.length or 1)] for length in lengths]
            counts = [-(-rows // last.chunk) for (rows,) in sizes]
        starts = torch.tensor([0, *accumulate(counts)], dtype=torch.int32, device="cpu")
        jobs_of = torch.repeat_interleave(starts.diff())
        places = torch.arange(sum(counts), device="cpu") - starts[jobs_of]
        self._where = tuple(x.to(device) for x in (jobs_of.int(), places.int(), torch.tensor(sizes, device="cpu")))
        self._chunks = Chunks(len(jobs), sum(counts), starts.to(device), sum(lengths), shapes)
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
        return kernels(replace(self.signature, aligned=self._aligned))

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
        """The same where scalars are tensors."""
        integers, device = self._integers(), self.signature.device
        found = self._placed
        if device.type == "cpu":
            found = integers, torch.tensor(integers, device="cpu")
        elif torch.cuda.is_current_stream_capturing():
            found = integers, placed(integers, device)  # at each replay, to memory of the graph
        elif found is None or found[0] != integers:
            found = self._placed = integers, placed(integers, device)
        known = self._known().values()
        numbers = [tables.number(k[name], device) for k in known for name in self.signature.scalars]
        return found[1], torch.stack(numbers).view(len(known), -1)

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
        return self.kernels[stage].run(tables, sums, self._chunks)


def _rows(signature: Signature, shape: Sequence[int]) -> tuple[int, int]:
    """How many chunks a parameter of this shape is cut into, and the rows of one along its first axis."""
    rows = prod(shape[d] for d in axes_of(signature)[0])
    step = max(min(_ROWS, rows), -(-CHUNK * rows // prod(shape)), -(-rows // _CHUNKS))
    return -(-rows // step), step


def _there(numbers: Any, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device)
