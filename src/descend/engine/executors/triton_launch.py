"""Kernels in Triton, compiled and launched."""

from __future__ import annotations

import linecache
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.writer import Chunks, Written


class TritonKernel:
    """One pass on a GPU; a program of the grid is a chunk."""

    def __init__(self, kernel: Written) -> None:
        self.written = kernel
        self.function = function(kernel)

    def run(self, tables: Sequence[Tensor], sums: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
        """Move parameters, or give their sums."""
        kernel, held, partials, outs = self.written, tables[0], None, []
        count, programs = chunks.count, chunks.programs
        if kernel.singles:
            outs.append(held.new_empty(len(kernel.singles), count, dtype=kernel.single_dtype))
        if kernel.sums:
            partials = held.new_empty(programs, kernel.sums, dtype=kernel.signature.compute_dtype)
            outs.append(partials)
        if programs:
            launch(self.function, programs, *tables, *sums, *outs, count)
        if partials is not None:
            totals = partials.new_empty(count, kernel.sums)
            launch(_fixed("total"), count, partials, chunks.firsts, totals, KINDS=kernel.sums, WIDTH=256)
            return (totals,)
        for i, place in enumerate(kernel.singles):
            launch(_fixed("scatter"), count, outs[0][i], held[place])
        return ()

    def compile_ahead(self, device: torch.device) -> None:
        """Compile without a launch."""
        kernel = self.written
        whole, short = torch.int64, torch.int32
        known = [kernel.signature.compute_dtype] * kernel.stage
        arguments = [whole, whole, whole, torch.float64, short, short, whole, *known, *kernel.outputs, 1]
        with torch.cuda.device(device):
            self.function.warmup(*arguments, grid=(1,), enable_fp_fusion=False)


def function(kernel: Written) -> Any:
    """What Triton launches. Its cache of compiled code is its own."""
    import triton

    from descend.engine.executors import triton_functions

    # Triton reads the source of a function where Python's debuggers do.
    file = f"<descend {kernel.signature.rule.__name__} {hash(kernel.source):x}>"
    linecache.cache[file] = len(kernel.source), None, kernel.source.splitlines(True), file
    names: dict[str, Any] = {**vars(triton_functions), "__name__": "descend.kernels"}
    exec(compile(kernel.source, file, "exec"), names)
    return triton.jit(names[kernel.name], do_not_specialize=["job_count"])


def launch(function: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel. Products and sums are rounded one by one, as everywhere else."""
    device = arguments[0].device
    with nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        function[(programs,)](*arguments, **constants, enable_fp_fusion=False)


@cache
def is_runnable(device: torch.device) -> bool:
    """Whether Triton is here, and compiles for this device; for its launches it also needs a C compiler."""
    if find_spec("triton") is None:
        return False
    try:
        placed([0], device)
    except Exception as error:
        warnings.warn(
            f"Triton does not run on {device}, so steps are multi-tensor operations: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


_AT_ONCE = 32


def placed(integers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers on a device, brought there as arguments of launches, since no copy may come from the host."""
    made = torch.empty(len(integers), dtype=torch.int64, device=device)
    for start in range(0, len(integers), _AT_ONCE):
        some = integers[start : start + _AT_ONCE]
        launch(_fixed("place"), 1, made, start, len(some), *some, *[0] * (_AT_ONCE - len(some)))
    return made


def _fixed(name: str) -> Any:
    """One of the kernels that no rule changes."""
    from descend.engine.executors import triton_functions

    return getattr(triton_functions, name)
