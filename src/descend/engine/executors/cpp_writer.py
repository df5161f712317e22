"""Kernels in C++: each thread walks over chunks; a chunk is one loop over its elements, or one for each row of blocks.

Lines stand for single numbers, and the compiler makes vectors of them. A row of a block is several loops where its
largest number has to be known before others can go on; what they need of each other waits in a buffer.
"""

from __future__ import annotations

import math
import re
from importlib.resources import files
from typing import Any, ClassVar

import torch
from torch import Tensor

from descend.engine.executors.kernels import Signature
from descend.engine.executors.writer import CHUNK, FORMS, Node, Unwritten, Writer, base, dtype_of, is_single

_NAMES = {
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.int16: "int16_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
    torch.bool: "bool",
    torch.bfloat16: "bfloat16",
    torch.float16: "_Float16",
    torch.float32: "float",
    torch.float64: "double",
}
_HEAD = """\
extern "C" void {name}(
    const int64_t* held, const int64_t* given, const int64_t* rows_of, const double* table, const int32_t* jobs,
    const int32_t* chunks, const int64_t* sizes, const void* const* known, void* numbers, void* partials, void* totals,
    int64_t job_count, int64_t program_count, int threads) {{
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t program = 0; program < program_count; program++) {{
        const int64_t job = jobs[program], chunk = chunks[program], first = chunk * {chunk}, size = sizes[job];
        const int64_t left = size - first < {chunk} ? size - first : {chunk};
        const double* row = table + rows_of[job] * {columns};\
"""


class CppWriter(Writer):
    """Lines of C++, whose values are numbers."""

    column: ClassVar = "int64_t(c)"
    forms: ClassVar = {
        **FORMS,
        "abs": "absolute({0})",
        "rsqrt": "{one} / root({0})",
        "reciprocal": "{one} / {0}",
        "exp": "exponential({0})",
        "log": "logarithm({0})",
        "floor": "below({0})",
        "copysign": "signed_as({0}, {1})",
        "div": "{0} / {1}",
        "bitwise_not": "inverted({0})",
    }

    def __init__(self, signature: Signature, stage: int) -> None:
        super().__init__(signature, stage)
        self.chunk = max(1, CHUNK // signature.storage.lanes // self.width)
        #: Lines of each loop over elements, and those before it that are one for a row.
        self.loops: list[list[str]] = [[]]
        self.rows_before: list[list[str]] = [[]]
        self.loop_of: dict[str, int] = {}  # the first loop in which a value is there
        self.dtypes: dict[str, str] = {}  # of elements, which may have to wait
        self.waiting: set[str] = set()

    # ---- the whole

    def source(self, name: str, known: int) -> str:
        """The functions that lines call, and the kernel."""
        head = _HEAD.format(name=name, chunk=self.chunk, columns=self.signature.columns)
        kinds = [_NAMES[dtype_of(node)] for node in self.known[:known]]
        sums = [f"const {kind}* known{i} = (const {kind}*)known[{i}];" for i, kind in enumerate(kinds)]
        after = []
        for k, i in enumerate(self.singles):
            kind = _NAMES[dtype_of(self.places[i])]
            after.append(f"scatter(held + {i} * job_count, ({kind}*)numbers + {k} * job_count, job_count);")
        if self.sums:
            kind = _NAMES[self.signature.compute_dtype]
            after.append(f"total<{self.sums}>(({kind}*)partials, ({kind}*)totals, jobs, job_count, program_count);")
        within = indented(indented([*sums, *self.before, *self._walk(), *self.after]))
        return "\n".join([functions() + head, *within, "    }", *indented(after), "}\n"])

    def _walk(self) -> list[str]:
        """The loops over a chunk."""
        clause = f" reduction(+:{', '.join(f's{j}' for j in range(self.sums))})" if self.sums else ""
        simd = f"#pragma omp simd{clause}"
        if not self.length:
            return [simd, "for (int64_t at = 0; at < left; at++) {", *indented(self.loops[0]), "}"]
        lines = [f"{_waits_as(self.dtypes[name])} all_{name}[{self.width}];" for name in self._across()]
        for i, (before, loop) in enumerate(zip(self.rows_before, self.loops, strict=True)):
            taken = [n for n in self._across() if self.loop_of[n] < i and _mentions(loop, n)]
            kept = [n for n in self._across() if self.loop_of[n] == i]
            body = [f"const {self.dtypes[n]} {n} = to<{self.dtypes[n]}>(all_{n}[c]);" for n in taken]
            body += [*loop, *(f"all_{n}[c] = to<{_waits_as(self.dtypes[n])}>({n});" for n in kept)]
            lines += [*before, simd, f"for (int c = 0; c < {self.width}; c++) {{", *indented(body), "}"]
        return ["for (int64_t r = 0; r < left; r++) {", *indented(lines), "}"]

    def _across(self) -> list[str]:
        """The values that later loops need."""
        return [
            name
            for name in self.dtypes
            if name in self.waiting
            or any(_mentions(self.loops[i], name) for i in range(self.loop_of[name] + 1, len(self.loops)))
        ]

    # ---- what a language has its own way for

    def argument(self, i: int, place: Node, table: str, row: int) -> None:
        """A pointer, and a load."""
        value: Tensor = place.meta["val"]
        dtype = _NAMES[value.dtype]
        offset = "" if is_single(value) else f" + first * {value.stride(0)}"
        self.before.append(f"{dtype}* p{i} = ({dtype}*){table}[{row} * job_count + job]{offset};")
        if is_single(value):
            return
        self.names[place] = f"x{i}"
        if self.reads(place):
            self._line(f"x{i}", value, 0, f"p{i}[{self._at(value)}]")

    def _at(self, value: Tensor) -> str:
        if not self.length:
            return "at"
        return f"r * {value.stride(0)}{'' if self.is_of_rows(value) else ' + c'}"

    def _is_row(self, value: Tensor) -> bool:
        """Whether a value is one number for each row of blocks."""
        if not self.length:
            return False
        size = value.shape[-1]
        return int(size) == 1 if value.dim() > 1 else not isinstance(size, int) and size.node.expr == self.rows

    def _line(self, name: str, value: Tensor, loop: int, expression: str) -> None:
        """A value's line, where it belongs."""
        while len(self.loops) <= loop:
            self.loops.append([])
            self.rows_before.append([])
        self.loop_of[name] = loop
        dtype = _NAMES[value.dtype]
        line = f"const {dtype} {name} = {expression};"
        if not value.dim():
            self.before.append(line)
        elif self._is_row(value):
            self.rows_before[loop].append(line)
        else:
            self.dtypes[name] = dtype
            self.loops[loop].append(line)

    def _loop(self, nodes: Any) -> int:
        """The first loop in which all of these are there."""
        return max((self.loop_of.get(self.names.get(node, ""), 0) for node in nodes), default=0)

    def let(self, node: Node, expression: str) -> None:
        """In the first loop that has all it needs; what needs the largest of a row, in the one after."""
        name = f"v{len(self.names)}"
        self.names[node] = name
        self._line(name, node.meta["val"], self._loop(node.all_input_nodes) + (base(node) == "amax"), expression)

    def scalar(self, name: str, pointer: str, dtype: torch.dtype) -> None:
        """A load of one number."""
        self.before.append(f"const {_NAMES[dtype]} {name} = *({pointer});")

    def store(self, i: int, place: Node, made: str, value: Node) -> None:
        """A store in the loop that has the value."""
        kept: Tensor = place.meta["val"]
        lines = self.rows_before if self._is_row(kept) else self.loops
        lines[self._loop([value])].append(f"p{i}[{self._at(kept)}] = {made};")

    def single(self, i: int, made: str, dtype: torch.dtype) -> None:
        """To a table, from where it goes to the state once all chunks are done."""
        place = f"(({_NAMES[dtype]}*)numbers)[{len(self.singles)} * job_count + job]"
        self.after.append(f"if (chunk == 0) {place} = {made};")

    def total(self, j: int, node: Node) -> None:
        """One number, which the compiler makes as many of as it sees fit."""
        dtype = _NAMES[dtype_of(node)]
        self.before.append(f"{dtype} s{j} = 0;")
        for term in self.terms(node):
            (source,) = term.all_input_nodes
            made = self.cast(self.value(source), dtype_of(source), dtype_of(term))
            self.loops[self._loop([source])].append(f"s{j} += {made};")
        self.after.append(f"(({dtype}*)partials)[program * {self.sums} + {j}] = s{j};")

    def cast(self, x: str, before: torch.dtype, after: torch.dtype) -> str:
        """Rounded to the nearest number."""
        return x if before == after else f"to<{_NAMES[after]}>({x})"

    def bits(self, x: str, after: torch.dtype) -> str:
        """The same bits."""
        return f"bits<{_NAMES[after]}>({x})"

    def number(self, x: Any, dtype: torch.dtype) -> str:
        """Rounded from double, as torch does."""
        if dtype.is_floating_point:
            x = float(x)
            written = repr(x) if math.isfinite(x) else "NAN" if math.isnan(x) else "-INFINITY" if x < 0 else "INFINITY"
        else:
            written = f"{int(x)}"
        return f"{_NAMES[dtype]}({written})"

    def selected(self, condition: str, x: str, y: str) -> str:
        """Without a branch once it is compiled."""
        return f"({condition}) ? {x} : {y}"

    def largest(self, node: Node) -> str:
        """Of a row that waits in its buffer."""
        name = self.value(node)
        if not self.length or name not in self.dtypes:
            raise Unwritten("the largest of what is not a row of a block")
        self.waiting.add(name)
        return f"largest<{self.width}>(all_{name})"


def name_of(dtype: torch.dtype) -> str:
    """A dtype in C++."""
    return _NAMES[dtype]


def functions() -> str:
    """What lines call."""
    return files(__package__).joinpath("cpp_functions.h").read_text(encoding="utf-8")


def _waits_as(dtype: str) -> str:
    """What a value is kept as in a buffer: compilers load no vectors of comparisons."""
    return "int32_t" if dtype == "bool" else dtype


def _mentions(lines: list[str], name: str) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines)


def indented(lines: list[str]) -> list[str]:
    """One step further in."""
    return [f"    {line}" for line in lines]
