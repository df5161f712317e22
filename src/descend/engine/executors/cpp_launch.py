"""Kernels in C++, compiled and called."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.cpp_library import library
from descend.engine.executors.writer import Written

_FEW = 1 << 15  # elements that one thread moves before another has woken up


class CppKernel:
    """One pass on the CPU, in torch's threads."""

    def __init__(self, kernel: Written) -> None:
        self.written = kernel
        self.function: Any = getattr(library(kernel.source), kernel.name)
        self.function.restype = None
        self.function.argtypes = [ctypes.c_void_p] * 11 + [ctypes.c_int64] * 2 + [ctypes.c_int]

    def run(
        self, tables: Sequence[Tensor], sums: Sequence[Tensor], count: int, firsts: Tensor, programs: int, size: int
    ) -> tuple[Tensor, ...]:
        """Move `count` parameters, or give their sums."""
        kernel, held = self.written, tables[0]
        numbers = held.new_empty(len(kernel.singles), count, dtype=kernel.single_dtype) if kernel.singles else None
        partials = totals = None
        if kernel.sums:
            partials = held.new_empty(programs, kernel.sums, dtype=kernel.signature.compute_dtype)
            totals = partials.new_empty(count, kernel.sums)
        known = (ctypes.c_void_p * len(sums))(*map(Tensor.data_ptr, sums))
        outs = [None if x is None else x.data_ptr() for x in (numbers, partials, totals)]
        threads = 1 if size < _FEW else torch.get_num_threads()
        self.function(*map(Tensor.data_ptr, tables), known, *outs, count, programs, threads)
        return () if totals is None else (totals,)

    def compile_ahead(self, device: torch.device) -> None:
        """It is compiled."""
