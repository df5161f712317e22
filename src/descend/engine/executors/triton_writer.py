"""Kernels in Triton: a program of the grid walks over one chunk in tiles, vectors or rows of blocks."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from descend.engine.executors.kernels import Signature
from descend.engine.executors.writer import CHUNK, FORMS, Node, Writer, dtype_of, is_single

_TILE = 1024  # elements at once


_NAMES = {
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "int1",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
}


class TritonWriter(Writer):
    """Lines of Triton, whose values are tiles."""

    column: ClassVar = "c.to(tl.int64)"
    forms: ClassVar = {
        **FORMS,
        "abs": "tl.abs({0})",
        "rsqrt": "over({one}, root({0}))",
        "reciprocal": "over({one}, {0})",
        "exp": "tl.exp({0})",
        "log": "tl.log({0})",
        "floor": "tl.floor({0})",
        "copysign": "copysign({0}, {1})",
        "div": "over({0}, {1})",
        "bitwise_not": "~{0}",
    }

    def __init__(self, signature: Signature, stage: int) -> None:
        super().__init__(signature, stage)
        self.within: list[str] = []
        lanes = signature.storage.lanes
        self.padded = 1 << (self.width - 1).bit_length()  # Triton takes powers of two
        self.tile = max(1, _TILE // lanes // self.padded)
        self.chunk = max(self.tile, CHUNK // lanes // self.padded // self.tile * self.tile)

    def source(self, name: str, known: int) -> str:
        """The arguments, which chunk of which parameter is this program's, and what is done with each tile."""
        extra = [f"known{i}" for i in range(known)] + ["numbers"] * bool(self.singles) + ["partials"] * bool(self.sums)
        arguments = ["held", "given", "rows_of", "table", "jobs", "chunks", "sizes", *extra, "job_count"]
        aligned = self.signature.aligned and not self.length
        lines = [
            f"def {name}({', '.join(arguments)}):",
            "program = tl.program_id(0)",
            "job = tl.load(jobs + program)",
            "chunk = tl.load(chunks + program)",
            f"first = chunk.to(tl.int64) * {self.chunk}",
            f"size = {'tl.multiple_of(tl.load(sizes + job), 16)' if aligned else 'tl.load(sizes + job)'}",
            f"left = tl.minimum(size - first, {self.chunk}).to(tl.int32)",
            f"row = table + tl.load(rows_of + job) * {self.signature.columns}",
            *self.before,
            f"for start in range(0, {self.chunk}, {self.tile}):",
            *(f"    {line}" for line in (*self._places(), *self.within)),
            *self.after,
        ]
        return "\n    ".join(lines) + "\n"

    def _places(self) -> list[str]:
        """Which elements are a tile's."""
        if not self.length:
            return [f"at = start + tl.arange(0, {self.tile})", "mask = at < left"]
        inside = f" & (c < {self.width})" if self.padded != self.width else ""
        rows, columns = f"tl.arange(0, {self.tile})[:, None]", f"tl.arange(0, {self.padded})[None, :]"
        return [f"r = start + {rows}", f"c = {columns}", f"mask = (r < left){inside}"]

    def argument(self, i: int, place: Node, table: str, row: int) -> None:
        """A pointer, and a load in each tile."""
        value: Tensor = place.meta["val"]
        kind = f"tl.pointer_type(tl.{_NAMES[value.dtype]})"
        self.before.append(f"p{i} = tl.load({table} + {row} * job_count + job).to({kind})")
        if is_single(value):
            return
        if self.signature.aligned:
            self.before.append(f"p{i} = tl.multiple_of(p{i}, 16)")
        self.before.append(f"p{i} += first * {value.stride(0)}")
        self.names[place] = f"x{i}"
        at, mask = self._at(value)
        if self.reads(place):
            self.within.append(f"x{i} = tl.load(p{i} + {at}, mask={mask}, other=0)")

    def _at(self, value: Tensor) -> tuple[str, str]:
        """The places of a tile's elements in an argument, and which of them there are."""
        if not self.length:
            return "at", "mask"
        if self.is_of_rows(value):
            return f"r * {value.stride(0)}", "r < left"
        return f"r * {value.stride(0)} + c", "mask"

    def let(self, node: Node, expression: str) -> None:
        """Scalars come before the tiles."""
        name = f"v{len(self.names)}"
        self.names[node] = name
        (self.within if node.meta["val"].dim() else self.before).append(f"{name} = {expression}")

    def scalar(self, name: str, pointer: str, dtype: torch.dtype) -> None:
        """A load of one number."""
        self.before.append(f"{name} = tl.load({pointer})")

    def store(self, i: int, place: Node, made: str, value: Node) -> None:
        """A store in each tile."""
        at, mask = self._at(place.meta["val"])
        self.within.append(f"tl.store(p{i} + {at}, {made}, mask={mask})")

    def single(self, i: int, made: str, dtype: torch.dtype) -> None:
        """To a table, from where it goes to the state once all programs have run."""
        self.after.append(f"tl.store(numbers + {len(self.singles)} * job_count + job, {made}, mask=chunk == 0)")

    def total(self, j: int, node: Node) -> None:
        """A tile of sums, which is summed up after the last one."""
        shape = f"({self.tile}, {self.padded})" if self.length else f"({self.tile},)"
        parts = [self.cast(self._masked(t.args[0]), dtype_of(t.args[0]), dtype_of(t)) for t in self.terms(node)]
        over = f"tl.sum(tl.sum(s{j}, 1), 0)" if self.length else f"tl.sum(s{j}, 0)"
        self.before.append(f"s{j} = tl.full({shape}, 0, tl.{_NAMES[dtype_of(node)]})")
        self.within.append(f"s{j} += {' + '.join(parts)}")
        self.after.append(f"tl.store(partials + program * {self.sums} + {j}, {over})")

    def cast(self, x: str, before: torch.dtype, after: torch.dtype) -> str:
        """Rounded to the nearest number."""
        if before == after:
            return x
        return f"({x}).to(tl.{_NAMES[after]})"

    def bits(self, x: str, after: torch.dtype) -> str:
        """The same bits."""
        return f"({x}).to(tl.{_NAMES[after]}, bitcast=True)"

    def number(self, x: Any, dtype: torch.dtype) -> str:
        """A tensor of no dimension."""
        if dtype.is_floating_point:
            x = float(x)
            written = repr(x) if math.isfinite(x) else f'float("{x}")'
        else:
            written = repr(int(x))
        return f"tl.full((), {written}, tl.{_NAMES[dtype]})"

    def selected(self, condition: str, x: str, y: str) -> str:
        """Both sides are computed."""
        return f"tl.where({condition}, {x}, {y})"

    def largest(self, node: Node) -> str:
        """Over the columns."""
        return f"tl.max({self._masked(node)}, 1, keep_dims=True)"

    def _masked(self, x: Node) -> str:
        """The values of a tile, 0 where it is longer than the rows are."""
        return self.selected("mask", self.value(x), self.number(0, dtype_of(x)))
