"""Kernels in C++ of texts that see rows and columns: loops over the dimensions, and numbers for some of them only.

Dimensions that no sum tells apart are one axis. A value belongs to the axes that it differs along: an element to all of
them, a row's sum to the first. Values are noted as expressions first, and written where they are needed: in the loop of
the last of their axes, or, what differs along the innermost axis but not along the first, once for each chunk of rows.
Before the chunks come sums of what is a sum itself, and after them all that is stored for some of the axes only.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.cpp_writer import CppWriter, functions, indented, name_of
from descend.engine.executors.kernels import Signature
from descend.engine.executors.writer import Mask, Node, Unwritten, Written, base, dtype_of, is_node, is_single

Axis = tuple[int, ...]  # dimensions, one after another in memory

_HEAD = """\
extern "C" void {name}(
    const int64_t* held, const int64_t* given, const int64_t* rows_of, const double* table, const int32_t* jobs,
    const int32_t* chunks, const int64_t* sizes, const int32_t* firsts, const void* const* known,
    const int64_t* const* known_at, {kind}* partials, const int64_t* partials_at, {kind}* totals,
    const int64_t* totals_at, int64_t job_count, int64_t program_count, int threads) {{"""
_OF_JOBS = "for (int64_t job = 0; job < job_count; job++) {"
_OF_CHUNKS = "for (int64_t program = 0; program < program_count; program++) {"
_NAME = re.compile(r"\b[vxg]\d+\b")


@dataclass(frozen=True)
class _Text:
    """Code for each element along these axes."""

    mask: Mask
    text: str

    @property
    def names(self) -> list[str]:
        """The values that it takes."""
        return _NAME.findall(self.text)


@dataclass(frozen=True)
class _Value(_Text):
    """How a value is computed, and its dtype."""

    kind: str


@dataclass(frozen=True)
class _Line(_Text):
    """Something to do, and the argument that it changes."""

    changes: str = ""


@dataclass(frozen=True)
class _Sum(_Text):
    """A value to add up, and which of the sums it is."""

    which: int


def axes_of(signature: Signature) -> list[Axis]:
    """The dimensions in the order of memory; those that everything has or lacks together are one axis."""
    order = signature.order or (0,)
    every = range(len(order))
    apart = [dims for _, kinds in signature.rounds for dims in kinds if dims is not None]
    apart += [slot.reduce for _, slot, _ in signature.slots if isinstance(slot.reduce, tuple)]
    kept = [frozenset(every) - {d % len(order) for d in dims} for dims in apart]
    axes: list[Axis] = []
    for dim in order:
        before = axes[-1][-1] if axes else None
        if before == dim - 1 and all((before in mask) == (dim in mask) for mask in kept):
            axes[-1] = (*axes[-1], dim)
        else:
            axes.append((dim,))
    return axes


class ShapedCppWriter(CppWriter):
    """Lines of C++ in loops over axes."""

    def __init__(self, signature: Signature, stage: int) -> None:
        super().__init__(signature, stage)
        if any(scope == "global" for scope, _ in signature.rounds) or signature.in_pieces:
            raise Unwritten("sums over all tensors, or over shards, of a text that needs shapes")
        self.axes = axes_of(signature)
        self.all = frozenset(range(len(self.axes)))
        self.values: dict[str, _Value] = {}
        self.pointers: list[str] = []
        self.early: list[str] = []  # sums of what is a sum itself
        self.main: list[_Line | _Sum] = []
        self.late: list[_Line | _Sum] = []
        self.kind = name_of(signature.compute_dtype)

    # ---- reading the graph

    def begin(self, graph: Any) -> None:
        """Note which sums are given back, and where those of earlier stages lie."""
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        self.outputs: list[Node] = list(output.args[0]) if self.stage < len(self.signature.rounds) else []
        self.sums = len(self.outputs)
        first: Tensor = self.places[0].meta["val"]
        self.symbols = {symbol: d for d, symbol in enumerate(map(_symbol, first.shape)) if symbol is not None}
        if len(self.symbols) != first.dim():
            raise Unwritten("dimensions of a fixed length")
        self.masks = tuple(self._mask(node.meta["val"]) for node in self.outputs)
        known = iter(self.known)
        for earlier, (_, kinds) in enumerate(self.signature.rounds[: self.stage]):
            at = [f"known_at[{earlier}][job]"]
            for _ in kinds:
                place = next(known)
                i, mask = self.places.index(place), self._mask(place.meta["val"])
                if place in self.needed:
                    where = f"(const {self.kind}*)known[{earlier}] + {' + '.join(at)}"
                    self.pointers.append(f"const {self.kind}* p{i} = {where};")
                    self._read(i, place, mask)
                at.append(self._count(mask))

    def _read(self, i: int, place: Node, mask: Mask) -> None:
        """An argument's number for these axes."""
        self.names[place] = f"x{i}"
        self.values[f"x{i}"] = _Value(mask, f"p{i}[{self._place(mask)}]", name_of(dtype_of(place)))

    def argument(self, i: int, place: Node, table: str, row: int) -> None:
        """A pointer, and a load."""
        value: Tensor = place.meta["val"]
        dtype = name_of(value.dtype)
        self.pointers.append(f"{dtype}* p{i} = ({dtype}*){table}[{row} * job_count + job];")
        if not is_single(value):
            self._read(i, place, self._mask(value))

    def _mask(self, value: Tensor) -> Mask:
        """The axes that a value differs along, which its sizes tell."""
        dims: set[int] = set()
        for size in value.shape:
            symbol = _symbol(size)
            if symbol in self.symbols:
                dims.add(self.symbols[symbol])
            elif symbol is not None or size != 1:
                raise Unwritten(f"a dimension of {size}")
        mask = frozenset(i for i, axis in enumerate(self.axes) if axis[0] in dims)
        if len(dims) != sum(len(self.axes[i]) for i in mask):
            raise Unwritten(f"an axis in part: {tuple(value.shape)}")
        return mask

    def _place(self, mask: Mask) -> str:
        """Where the number for these axes lies: elements in the order of memory, all else in that of dimensions."""
        order = sorted(mask) if mask == self.all else sorted(mask, key=lambda i: self.axes[i])
        made = ""
        for i in order:
            made = f"({made}) * n{i} + i{i}" if made else f"i{i}"
        return made or "0"

    def _count(self, mask: Mask) -> str:
        return " * ".join(f"n{i}" for i in sorted(mask)) or "1"

    def let(self, node: Node, expression: str) -> None:
        """Noted, to be written where it is needed."""
        name = f"v{len(self.names)}"
        self.names[node] = name
        self.values[name] = _Value(self._mask(node.meta["val"]), expression, name_of(dtype_of(node)))

    def scalar(self, name: str, pointer: str, dtype: torch.dtype) -> None:
        """A load of one number."""
        self.values[name] = _Value(frozenset(), f"*({pointer})", name_of(dtype))

    def operation(self, node: Node) -> None:
        """Sums are of elements and given back, or of what is a sum itself and needed at once."""
        if base(node) != "sum":
            super().operation(node)
            return
        source, name = node.args[0], f"g{len(self.names)}"
        source_mask, mask = self._mask(source.meta["val"]), self._mask(node.meta["val"])
        if node in self.outputs:
            j = self.outputs.index(node)
            self.names[node] = name
            self.values[name] = _Value(mask, f"t{j}[{self._place(mask)}]", self.kind)
        elif source_mask == self.all or mask:
            raise Unwritten("a sum that is needed at once")
        else:
            self.names[node] = name
            self.values[name] = _Value(mask, f"early[job * EARLY + {len(self.early)}]", self.kind)
            self.early.append(self.value(source))

    def give(self, graph: Any) -> None:
        """Sums of elements are taken chunk by chunk, others when all chunks are done."""
        for j, node in enumerate(self.outputs):
            if base(node) != "sum" or self.outputs.index(node) != j:
                raise Unwritten("what is given back is no sum")
            source = self.value(node.args[0])
            of_elements = self.values[source].mask == self.all
            line = _Sum(self.values[source].mask, source, j)
            (self.main if of_elements else self.late).append(line)

    def store(self, i: int, place: Node, made: str, value: Node) -> None:
        """Elements where they are computed; others when all chunks are done, and none will read the last one."""
        mask = self._mask(place.meta["val"])
        (self.main if mask == self.all else self.late).append(
            _Line(mask, f"p{i}[{self._place(mask)}] = {made};", f"x{i}")
        )

    def single(self, i: int, made: str, dtype: torch.dtype) -> None:
        """Likewise."""
        self.late.append(_Line(frozenset(), f"*p{i} = {made};", f"x{i}"))

    def size(self, x: Node, dtype: torch.dtype) -> str:
        """In double precision, as Python has it, and then as a scalar of the arithmetic."""
        return f"{name_of(dtype)}({self._size(x)})"

    def _size(self, x: Any) -> str:
        if not is_node(x):
            return f"{float(x)!r}"
        if base(x) == "sym_size":
            size = x.meta["val"]
            return f"double(d{self.symbols[size.node.expr]})" if not isinstance(size, int) else f"{float(size)!r}"
        signs = {operator.mul: "*", operator.add: "+", operator.sub: "-", operator.truediv: "/"}
        if x.target in signs:
            return f"({self._size(x.args[0])} {signs[x.target]} {self._size(x.args[1])})"
        if x.target is operator.pow:
            return f"std::pow({self._size(x.args[0])}, {self._size(x.args[1])})"
        if x.target is torch.sym_float:
            return self._size(x.args[0])
        raise Unwritten(str(x.target))

    def index(self, value: Tensor) -> str:
        """There are none."""
        raise Unwritten("places of elements in a text that needs shapes")

    # ---- writing

    def source(self, name: str, known: int) -> str:
        """The functions that lines call, and the kernel."""
        lines: list[str] = []
        if self.early:
            lines += [
                f"Buffer<{self.kind}> kept_early(job_count * EARLY);",
                f"{self.kind}* const early = kept_early.data;",
            ]
            lines += [self._parallel, _OF_JOBS, *indented(self._early()), "}"]
        if self._is_read_late():
            raise Unwritten("a number of some axes that depends on one of others which changes")
        if self.main:
            lines += [self._parallel, _OF_CHUNKS, *indented(self._chunk()), "}"]
        if self.late or self.sums:
            lines += [self._parallel, _OF_JOBS, *indented(self._late()), "}"]
        text = "\n".join([functions() + _HEAD.format(name=name, kind=self.kind), *indented(lines), "}\n"])
        return re.sub(r"\bEARLY\b", str(len(self.early)), text)

    _parallel = "#pragma omp parallel for num_threads(threads) if (threads > 1)"

    def _of_job(self) -> list[str]:
        """The sizes, the scalars' row and where everything lies."""
        ndim = len(self.signature.order or (0,))
        dims = [f"const int64_t d{d} = sizes[job * {ndim + 1} + {d}];" for d in range(ndim)]
        axes = [f"const int64_t n{i} = {' * '.join(f'd{d}' for d in axis)};" for i, axis in enumerate(self.axes)]
        row = f"const double* row = table + rows_of[job] * {self.signature.columns};"
        return [*dims, *axes, row, *self.pointers]

    def _early(self) -> list[str]:
        lines = self._of_job()
        for k, source in enumerate(self.early):
            lines += self._total(source, f"early[job * EARLY + {k}]")
        return lines

    def _chunk(self) -> list[str]:
        """Some rows of one parameter."""
        ndim = len(self.signature.order or (0,))
        lines = [
            "const int64_t job = jobs[program];",
            *self._of_job(),
            f"const int64_t step = sizes[job * {ndim + 1} + {ndim}], begin = chunks[program] * step;",
            "const int64_t end = n0 - begin < step ? n0 : begin + step;",
            *self._sums("partials + partials_at[program]"),
        ]
        buffered = self._buffered()
        for name in buffered:
            kind, count = self.values[name].kind, self._count(self.values[name].mask - {0})
            lines.append(f"Buffer<{kind}> kept_{name}({count}); {kind}* const all_{name} = kept_{name}.data;")
        of_all_rows = [name for name in buffered if 0 not in self.values[name].mask]
        of_one_row = [name for name in buffered if name not in of_all_rows]
        lines += self._filled(of_all_rows, ())
        each_row = self._filled(of_one_row, of_all_rows)
        return [*lines, *self._nest(self.all, self.main, buffered=buffered, chunked=True, each_row=each_row)]

    def _filled(self, names: Sequence[str], buffered: Sequence[str]) -> list[str]:
        """Loops that fill the buffers of these values."""
        lines = []
        for mask in dict.fromkeys(self.values[name].mask for name in names):
            mine = [name for name in names if self.values[name].mask == mask]
            fill = [_Line(mask - {0}, f"all_{name}[{self._place(mask - {0})}] = {name};") for name in mine]
            lines += self._nest(mask - {0}, fill, buffered=buffered)
        return lines

    def _late(self) -> list[str]:
        """What one parameter's sums and numbers become when all of its chunks are done."""
        lines = [*self._of_job(), *self._sums("totals")]
        of_elements = {line.which for line in self.main if isinstance(line, _Sum)}
        for j, mask in enumerate(self.masks):
            if j in of_elements and 0 not in mask:
                offset, count = self._before(j, "0"), self._count(mask)
                lines.append(f"add_up(t{j}, {count}, partials + {offset}, partials_at, firsts[job], firsts[job + 1]);")
        stores = [line for line in self.late if isinstance(line, _Line)]
        for mask in dict.fromkeys(line.mask for line in stores):
            lines += self._nest(mask, [line for line in stores if line.mask == mask])
        for line in self.late:
            if isinstance(line, _Line):
                continue
            if goal := self.masks[line.which]:
                add = f"t{line.which}[{self._place(goal)}] += {line.text};"
                lines += self._nest(line.mask, [_Line(line.mask, add)], clause=None)
            else:
                lines += self._total(line.text, f"t{line.which}[0]")
        return lines

    def _is_read_late(self) -> bool:
        """Whether one of the last loops takes the former value of what another one has changed."""
        stores = [line for line in self.late if isinstance(line, _Line)]
        changed = {line.changes: line.mask for line in stores}
        return any(changed.get(name, line.mask) != line.mask for line in stores for name in self._needed_by([line]))

    def _total(self, source: str, place: str) -> list[str]:
        """One sum over all axes of a value."""
        mask = self.values[source].mask
        take = self._nest(mask, [_Line(mask, f"s += {source};")], "reduction(+:s)")
        return ["{", f"    {self.kind} s = 0;", *indented(take), f"    {place} = s;", "}"]

    def _before(self, j: int, start: str) -> str:
        """Where the partial sums of a kind begin."""
        counts = [self._count(mask) for mask in self.masks[:j] if 0 not in mask]
        return " + ".join([start, *counts])

    def _sums(self, rest: str) -> list[str]:
        """Pointers to this stage's sums: rows have theirs to themselves, what is the same for all rows is in `rest`."""
        lines = []
        for j, mask in enumerate(self.masks):
            whole = " + ".join(["totals + totals_at[job]", *map(self._count, self.masks[:j])])
            at = whole if 0 in mask or rest == "totals" else self._before(j, rest)
            lines.append(f"{self.kind}* const t{j} = {at};")
        return lines

    def _needed_by(self, lines: Iterable[_Line | _Sum], stop: Sequence[str] = ()) -> list[str]:
        """The values that these lines are made from, in order; those of `stop` are there."""
        todo = [name for line in lines for name in line.names]
        found: set[str] = set()
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [] if name in stop else self.values[name].names
        return [name for name in self.values if name in found]

    def _buffered(self) -> list[str]:
        """What is computed once, and not for each element: what differs along the innermost axis, and not along all.

        What differs along the first axis too is computed once for each of its rows, all else once for a chunk.
        """
        inner = len(self.axes) - 1
        apart = [n for n, v in self.values.items() if inner in v.mask and v.mask != self.all and n.startswith("v")]
        found = self._needed_by(self.main, apart)
        rows = [_Line(frozenset(), self.values[n].text) for n in found if n in apart and 0 in self.values[n].mask]
        found += self._needed_by(rows, apart)
        return [name for name in self.values if name in apart and name in found]

    def _nest(
        self,
        mask: Mask,
        lines: Sequence[_Line | _Sum],
        clause: str | None = "",
        buffered: Sequence[str] = (),
        chunked: bool = False,
        each_row: Sequence[str] = (),
    ) -> list[str]:
        """Loops over these axes, with each value in the loop of the last axis that it differs along.

        Args:
            mask: the axes.
            lines: what is done in the innermost loop.
            clause: of the innermost loop as one of vectors; None: one after another.
            buffered: values that have been computed before.
            chunked: whether the first axis has a part of its rows only.
            each_row: lines for each of them.
        """
        axes = sorted(mask)
        at: list[list[str]] = [[] for _ in range(len(axes) + 1)]
        after: list[list[str]] = [[] for _ in range(len(axes) + 1)]

        def depth(of: Mask) -> int:
            return max((axes.index(i) + 1 for i in of if i in axes), default=0)

        at[min(1, len(axes))] += each_row

        for name in self._needed_by(lines, buffered):
            value = self.values[name]
            made = f"all_{name}[{self._place(value.mask - {0})}]" if name in buffered else value.text
            at[depth(value.mask)].append(f"const {value.kind} {name} = {made};")
        reduced = []
        for line in lines:
            if isinstance(line, _Line):
                at[depth(line.mask)].append(line.text)
                continue
            j, goal = line.which, self.masks[line.which]
            place = f"t{j}[{self._place(goal)}]"
            if axes[-1] in goal:
                at[-1].append(f"{place} += {line.text};")
            else:
                reduced.append(f"s{j}")
                at[-2].append(f"{self.kind} s{j} = 0;")
                at[-1].append(f"s{j} += {line.text};")
                after[-2].append(f"{place} += s{j};")
        clause = f"reduction(+:{', '.join(reduced)})" if reduced else clause
        inside = at[-1]
        for k in reversed(range(len(axes))):
            i = axes[k]
            begin, end = ("begin", "end") if chunked and i == 0 else ("0", f"n{i}")
            pragma = [f"#pragma omp simd {clause}".rstrip()] if k == len(axes) - 1 and clause is not None else []
            loop = [*pragma, f"for (int64_t i{i} = {begin}; i{i} < {end}; i{i}++) {{", *indented(inside), "}"]
            inside = [*at[k], *loop, *after[k]]
        return ["{", *indented(inside), "}"]


def _symbol(size: Any) -> Any:
    """What a size is called in a trace; None where it is a constant."""
    return None if isinstance(size, int) else size.node.expr


def counts(kernel: Written, shape: Sequence[int]) -> tuple[int, int]:
    """How many sums a pass gives of a parameter of this shape, and how many of them each chunk has for itself."""
    axes = axes_of(kernel.signature)
    each = [(mask, prod(shape[d] for i in mask for d in axes[i])) for mask in kernel.masks]
    return sum(n for _, n in each), sum(n for mask, n in each if 0 not in mask)
