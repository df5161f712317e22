"""Kernels in C++, compiled and called."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.cpp_library import library
from descend.engine.executors.cpp_shaped_writer import counts
from descend.engine.executors.writer import Chunks, Written

_FEW = 1 << 15  # elements that one thread moves before another has woken up


class CppKernel:
    """One pass on the CPU, in torch's threads."""

    def __init__(self, kernel: Written) -> None:
        self.written = kernel
        self.function: Any = getattr(library(kernel.source), kernel.name)
        self.function.restype = None
        pointers = 14 if kernel.signature.shaped else 11
        self.function.argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 2 + [ctypes.c_int]

    def run(self, tables: Sequence[Tensor], sums: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
        """Move parameters, or give their sums."""
        kernel, count = self.written, chunks.count
        numbers = partials = totals = None
        if kernel.singles:
            numbers = torch.empty(len(kernel.singles), count, dtype=kernel.single_dtype, device="cpu")
        if kernel.sums:
            dtype = kernel.signature.compute_dtype
            partials = torch.empty(chunks.programs, kernel.sums, dtype=dtype, device="cpu")
            totals = torch.empty(count, kernel.sums, dtype=dtype, device="cpu")
        outs = [None if x is None else x.data_ptr() for x in (numbers, partials, totals)]
        ends = count, chunks.programs, _threads(chunks)
        self.function(*map(Tensor.data_ptr, tables), _array(sums), *outs, *ends)
        return () if totals is None else (totals,)

    def compile_ahead(self, device: torch.device) -> None:
        """It is compiled."""


class CppShapedKernel(CppKernel):
    """One pass of a text that needs shapes; its sums are of several shapes, one after another in one tensor."""

    def run(self, tables: Sequence[Tensor], sums: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
        """Move parameters, or give their sums."""
        kernel = self.written
        mine = spans(kernel, chunks) if kernel.sums else _NONE
        known_at = [chunks.places_of_sums[stage].totals for stage in range(kernel.stage)]
        dtype = kernel.signature.compute_dtype
        totals, partials = (torch.zeros(n, dtype=dtype, device="cpu") for n in mine.lengths)
        outs = partials, mine.partials, totals, mine.totals
        self.function(
            *map(Tensor.data_ptr, (*tables, chunks.firsts)),
            *map(_array, (sums, known_at)),
            *map(Tensor.data_ptr, outs),
            *(chunks.count, chunks.programs, _threads(chunks)),
        )
        return (totals,) if kernel.sums else ()


@dataclass(frozen=True)
class _Spans:
    """Where the sums of each parameter begin among those of all, and where those that each chunk has for itself."""

    totals: Tensor
    partials: Tensor
    lengths: tuple[int, int]


def spans(kernel: Written, chunks: Chunks) -> _Spans:
    """The places of a pass's sums."""
    kept = chunks.places_of_sums
    if kernel.stage not in kept:
        found = [counts(kernel, shape) for shape in chunks.shapes]
        totals = [0, *accumulate(whole for whole, _ in found)]
        each = [part for (_, part), n in zip(found, chunks.firsts.diff().tolist(), strict=True) for _ in range(n)]
        partials = [0, *accumulate(each)]
        kept[kernel.stage] = _Spans(_whole(totals), _whole(partials), (totals[-1], partials[-1]))
    found_spans: _Spans = kept[kernel.stage]
    return found_spans


def _threads(chunks: Chunks) -> int:
    return 1 if chunks.size < _FEW else torch.get_num_threads()


def _array(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*map(Tensor.data_ptr, tensors))


def _whole(numbers: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device="cpu")


_NONE = _Spans(_whole([]), _whole([]), (0, 0))
