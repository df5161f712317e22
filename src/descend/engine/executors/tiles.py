"""The text of a step written as one kernel of Triton that serves any number of parameters a launch.

A program of the grid walks over one chunk of one parameter, in tiles: vectors, or rows where state is kept in blocks. It
reads from tables where parameter, state and gradient lie and which scalars are theirs. The body is what tracing finds in
the text, an operation a line. Sums are taken chunk by chunk and then over the chunks of a parameter, in an order that
never changes.
"""

from __future__ import annotations

import linecache
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.kernels import Signature, example, leaves, text
from descend.engine.torch_private import traced

Node = Any  # of a graph; its arguments may be anything

CHUNK = 8192  # elements that a program moves, about
_TILE = 1024  # of these at once


class Unwritten(Exception):
    """The text has an operation that no form stands for."""


@dataclass(frozen=True)
class Written:
    """A kernel.

    Attributes:
        signature: of the text that it was written from.
        stage: which pass it is.
        name: of the function in `source`.
        singles: the arguments that are single numbers of state and change, by their place.
        sums: how many sums it gives for each chunk.
        chunk: elements that a program moves; rows where state is kept in blocks.
        single_dtype: of those numbers, where there are any.
    """

    signature: Signature
    stage: int
    name: str
    source: str
    singles: tuple[int, ...]
    sums: int
    chunk: int
    single_dtype: torch.dtype | None = None

    @property
    def outputs(self) -> tuple[torch.dtype, ...]:
        """The dtypes of what a launch fills beside parameters and state: single numbers of state, sums."""
        numbers = () if self.single_dtype is None else (self.single_dtype,)
        return (*numbers, *(self.signature.compute_dtype,) * bool(self.sums))


def written(signature: Signature, stage: int) -> Written:
    """The kernel of a pass. Raises :class:`Unwritten`."""
    return _Writer(signature, stage).write()


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
# Operations by their name without overload: {0}, {1}, ... are the arguments in the dtype of the arithmetic.
_FORMS = {
    "abs": "tl.abs({0})",
    "neg": "-{0}",
    "sign": "sign({0})",
    "sqrt": "root({0})",
    "rsqrt": "over({one}, root({0}))",
    "reciprocal": "over({one}, {0})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "floor": "tl.floor({0})",
    "round": "even({0})",
    "copysign": "copysign({0}, {1})",
    "mul": "{0} * {1}",
    "div": "over({0}, {1})",
    "floor_divide": "floored({0}, {1})",
    "remainder": "modulo({0}, {1})",
    "minimum": "smaller({0}, {1})",
    "maximum": "larger({0}, {1})",
    "clamp_min": "larger({0}, {1})",
    "clamp_max": "smaller({0}, {1})",
    "bitwise_and": "{0} & {1}",
    "bitwise_or": "{0} | {1}",
    "bitwise_xor": "{0} ^ {1}",
    "logical_and": "{0} & {1}",
    "logical_or": "{0} | {1}",
    "logical_not": "{0} == 0",
    "bitwise_not": "~{0}",
    "__lshift__": "{0} << {1}",
    "__rshift__": "{0} >> {1}",
    "where": "tl.where({0}, {1}, {2})",
}
_COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
# Keyword arguments that change no number, and those that forms read.
_READ = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "alpha", "value"}
_SAME = ("view_copy", "unsqueeze_copy", "squeeze_copy", "clone", "expand_copy", "alias_copy", "detach", "reshape")


class _Writer:
    """Writes the body, a line for each operation that something needs: what is the same for all tiles comes first."""

    def __init__(self, signature: Signature, stage: int) -> None:
        self.signature = replace(signature, device=torch.device("cpu"), bundle=1)
        self.stage = stage
        self.before: list[str] = []
        self.within: list[str] = []
        self.after: list[str] = []
        self.names: dict[Node, str] = {}
        self.singles: list[int] = []
        self.sums = 0
        self.length, lanes = signature.storage.length, signature.storage.lanes
        # Columns of a tile, and the power of two that Triton takes for them; a vector is a tile of one column.
        self.width = (self.length or 1) // lanes
        self.padded = 1 << (self.width - 1).bit_length()
        self.tile = max(1, _TILE // lanes // self.padded)
        self.chunk = max(self.tile, CHUNK // lanes // self.padded // self.tile * self.tile)

    # ---- the whole

    def write(self) -> Written:
        arguments = example(self.signature, self.stage)
        try:
            graph = traced(text(self.signature, self.stage, arguments), [*leaves(arguments)])
        except RuntimeError as error:  # state of a shape of its own
            raise Unwritten(str(error)) from error
        params, state, grads, _, sums = arguments
        self.places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.needed = _needed(graph)
        self.rows = self.places[0].meta["val"].shape[0].node.expr
        held, given = len([*leaves((params, state))]), len([*leaves(grads)])
        for i, place in enumerate(self.places[: held + given]):
            if place in self.needed:
                self._argument(i, place, f"held + {i}" if i < held else f"given + {i - held}")
        self.table, *self.known = self.places[held + given :]
        calls = [node for node in graph.graph.nodes if node.op == "call_function" and node in self.needed]
        for node in calls:
            if _base(node) != "copy_":
                self._operation(node)
        for node in calls:
            if _base(node) == "copy_":
                self._store(*node.args[:2])
        if self.stage < len(self.signature.rounds):
            self._give(graph)
        name = f"{self.signature.rule.__name__.lower()}_{self.stage}"
        lines = [*self._head(name, len(sums)), *self.before, *self._loop(), *self.after]
        source = "\n    ".join(lines) + "\n"
        single = next((_dtype(self.places[i]) for i in self.singles), None)
        return Written(self.signature, self.stage, name, source, tuple(self.singles), self.sums, self.chunk, single)

    def _head(self, name: str, known: int) -> list[str]:
        """The arguments, and which chunk of which parameter is this program's."""
        extra = [f"known{i}" for i in range(known)] + ["numbers"] * bool(self.singles) + ["partials"] * bool(self.sums)
        arguments = ["held", "given", "rows_of", "table", "jobs", "chunks", "sizes", *extra, "job_count"]
        aligned = self.signature.aligned and not self.length
        return [
            f"def {name}({', '.join(arguments)}):",
            "program = tl.program_id(0)",
            "job = tl.load(jobs + program)",
            "chunk = tl.load(chunks + program)",
            f"first = chunk.to(tl.int64) * {self.chunk}",
            f"size = {'tl.multiple_of(tl.load(sizes + job), 16)' if aligned else 'tl.load(sizes + job)'}",
            f"left = tl.minimum(size - first, {self.chunk}).to(tl.int32)",
            f"row = table + tl.load(rows_of + job) * {self.signature.columns}",
        ]

    def _loop(self) -> list[str]:
        """What is done with each tile."""
        places = [f"at = start + tl.arange(0, {self.tile})", "mask = at < left"]
        if self.length:
            inside = f" & (c < {self.width})" if self.padded != self.width else ""
            rows, columns = f"tl.arange(0, {self.tile})[:, None]", f"tl.arange(0, {self.padded})[None, :]"
            places = [f"r = start + {rows}", f"c = {columns}", f"mask = (r < left){inside}"]
        body = [f"    {line}" for line in (*places, *self.within)]
        return [f"for start in range(0, {self.chunk}, {self.tile}):", *body]

    def _argument(self, i: int, place: Node, row: str) -> None:
        """Where an argument lies, and its elements in the tile; `row` is that of the table of addresses."""
        value: Tensor = place.meta["val"]
        self.before.append(f"p{i} = tl.load({row} * job_count + job).to(tl.pointer_type(tl.{_NAMES[value.dtype]}))")
        if _is_single(value):
            return
        if self.signature.aligned:
            self.before.append(f"p{i} = tl.multiple_of(p{i}, 16)")
        self.before.append(f"p{i} += first * {value.stride(0)}")
        self.names[place] = f"x{i}"
        at, mask = self._at(value)
        if self._reads(place):
            self.within.append(f"x{i} = tl.load(p{i} + {at}, mask={mask}, other=0)")

    def _at(self, value: Tensor) -> tuple[str, str]:
        """The places of a tile's elements in an argument, and which of them there are."""
        if not self.length:
            return "at", "mask"
        if int(value.shape[1]) == 1:
            return f"r * {value.stride(0)}", "r < left"
        if int(value.shape[1]) != self.width:
            raise Unwritten(f"rows of {value.shape[1]} where others have {self.width}")
        return f"r * {value.stride(0)} + c", "mask"

    def _reads(self, place: Node) -> bool:
        return any(
            user in self.needed and not (_base(user) == "copy_" and user.args[0] is place) for user in place.users
        )

    # ---- one operation

    def _operation(self, node: Node) -> None:
        base, value = _base(node), node.meta.get("val")
        if base in ("select_copy", "unbind_copy", "select", "unbind", "sym_size"):
            return  # what takes an element of them knows where it lies
        if base == "getitem":
            self._scalar(node)
            return
        if base == "select_scatter":
            self.names[node] = self._value(node.args[1])
            return
        if base == "stack" or _is_sum(node) or any(map(_is_sum, node.all_input_nodes)):
            return  # written where the results are
        expression = self._expression(node, base, value)
        name = f"v{len(self.names)}"
        self.names[node] = name
        (self.within if value.dim() else self.before).append(f"{name} = {expression}")

    def _expression(self, node: Node, base: str, value: Tensor) -> str:
        args = node.args
        if unread := {name for name, x in node.kwargs.items() if x is not None} - _READ:
            raise Unwritten(f"{node.target} with {', '.join(sorted(unread))}")
        if str(node.target) == "aten.view_copy.dtype":
            return f"({self._value(args[0])}).to(tl.{_NAMES[value.dtype]}, bitcast=True)"
        if base in _SAME:
            return self._value(args[0])
        if base == "_to_copy":
            return self._cast(self._value(args[0]), _dtype(args[0]), value.dtype)
        if base == "copy":
            return self._cast(self._value(args[1]), _dtype(args[1]), value.dtype)
        if base in ("scalar_tensor", "full", "full_like"):
            return _number(args[0] if base == "scalar_tensor" else args[1], value.dtype)
        if base in ("zeros_like", "ones_like"):
            return _number(int(base == "ones_like"), value.dtype)
        if base == "arange":
            return self._places(value)
        if base == "amax" and list(args[1:]) == [[-1], True]:
            return f"tl.max({self._masked(args[0])}, 1, keep_dims=True)"
        if base == "isnan":
            return f"{self._value(args[0])} != {self._value(args[0])}"
        if base in _COMPARISONS:
            common = torch.result_type(*(_meta(a) for a in args))
            left, right = (self._as(a, common) for a in args)
            return f"{left} {_COMPARISONS[base]} {right}"
        made = self._arithmetic(node, base, _wide(value.dtype))
        return made if _wide(value.dtype) == value.dtype else self._cast(f"({made})", _wide(value.dtype), value.dtype)

    def _arithmetic(self, node: Node, base: str, dtype: torch.dtype) -> str:
        args = [a for a in node.args if a is not None]
        if base == "where":
            return f"tl.where({self._value(args[0])}, {self._as(args[1], dtype)}, {self._as(args[2], dtype)})"
        given = [self._as(a, dtype) for a in args]
        if base in ("add", "sub", "rsub"):
            left, right = given[:2] if base != "rsub" else (given[1], given[0])
            alpha = node.kwargs.get("alpha", args[2] if len(args) > 2 else 1)
            if alpha != 1:
                raise Unwritten(f"{base} with alpha")
            return f"{left} {'+' if base == 'add' else '-'} {right}"
        if base in ("addcmul", "addcdiv"):
            start, left, right = given[:3]
            scale = node.kwargs.get("value", 1)
            product = f"{left} * {right}" if base == "addcmul" else _filled(_FORMS["div"], (left, right), dtype)
            return f"{start} + {product}" if scale == 1 else f"{start} + {_number(scale, dtype)} * ({product})"
        if base == "clamp":
            low, high = [*node.args[1:], None][:2]
            made = given[0]
            made = made if low is None else f"larger({made}, {self._as(low, dtype)})"
            return made if high is None else f"smaller({made}, {self._as(high, dtype)})"
        if base == "pow":
            return self._power(given[0], node.args[1], dtype)
        whole = base in ("floor_divide", "remainder") and dtype.is_floating_point
        if base not in _FORMS or whole:
            raise Unwritten(str(node.target))
        return _filled(_FORMS[base], given, dtype)

    def _power(self, x: str, exponent: Any, dtype: torch.dtype) -> str:
        if exponent in (2, 3):
            return " * ".join([f"({x})"] * exponent)
        if exponent == 0.5:
            return _filled(_FORMS["sqrt"], (x,), dtype)
        if not dtype.is_floating_point:
            raise Unwritten(f"powers of {dtype}")
        return f"power({x}, {self._as(exponent, dtype)})"

    def _places(self, value: Tensor) -> str:
        """Numbers of elements, of rows or of columns, in the whole of the argument."""
        size = value.shape[0]
        if isinstance(size, int):
            return "c.to(tl.int64)"
        if not self.length:
            return "first + at"
        return "first + r" if size.node.expr == self.rows else f"(first + r) * {self.width} + c"

    # ---- scalars

    def _scalar(self, node: Node) -> None:
        """An element of the table, of a single number of state, or of known sums."""
        source, index = node.args
        while _base(source) in ("unbind_copy", "unbind"):
            source = source.args[0]
        picked = 0
        while _base(source) in ("select_copy", "select"):
            source, picked = source.args[0], 1
        name = f"v{len(self.names)}"
        self.names[node] = name
        if source is self.table:
            self.before.append(f"{name} = tl.load(row + {index})")
            return
        i = self.known.index(source)
        columns = int(source.meta["val"].shape[-1])
        place = f"job * {columns} + {index}" if picked else f"{index}"
        self.before.append(f"{name} = tl.load(known{i} + {place})")

    def _value(self, x: Any) -> str:
        """The name of a node's value."""
        if x in self.names:
            return self.names[x]
        if x.op == "call_function" and _base(x) in ("select_copy", "select"):
            inner = x.args[0]
            if inner.op == "placeholder" and _is_single(inner.meta["val"]):
                i = self.places.index(inner)
                self.before.append(f"x{i} = tl.load(p{i})")
                self.names[x] = f"x{i}"
                return f"x{i}"
            if _base(inner) == "select_scatter":
                return self._value(inner)
        if x.op == "call_function" and _base(x) == "sum":
            raise Unwritten("a sum of a tile within it")
        if x.op == "call_function" and _base(x) == "sym_size":
            return self._symbol(x)
        raise Unwritten(str(x.target))

    def _symbol(self, x: Node) -> str:
        """A size: constant, or the number of rows."""
        size = x.meta["val"]
        return "size" if not isinstance(size, int) and not size.node.expr.is_number else str(int(size))

    def _as(self, x: Any, dtype: torch.dtype) -> str:
        if _is_node(x):
            value = x.meta["val"]
            if isinstance(value, Tensor):
                return self._cast(self._value(x), value.dtype, dtype)
            if _base(x) == "sym_size":
                return (
                    f"{self._symbol(x)}.to(tl.{_NAMES[dtype]})"
                    if self._symbol(x) == "size"
                    else _number(int(value), dtype)
                )
            left, right = (self._as(a, dtype) for a in x.args)
            signs = {operator.mul: "*", operator.add: "+", operator.sub: "-"}
            if x.target not in signs:
                raise Unwritten(str(x.target))
            return f"({left} {signs[x.target]} {right})"
        return _number(x, dtype)

    def _cast(self, x: str, before: torch.dtype, after: torch.dtype) -> str:
        return x if before == after else f"({x}).to(tl.{_NAMES[after]})"

    # ---- what is given back

    def _masked(self, x: Node) -> str:
        """The values of a tile, 0 where it is longer than the rows are."""
        name, value = self._value(x), x.meta["val"]
        return f"tl.where(mask, {name}, {_number(0, value.dtype)})"

    def _store(self, place: Node, value: Node) -> None:
        i, kept = self.places.index(place), place.meta["val"]
        made = self._cast(self._value(value), _dtype(value), kept.dtype)
        if not _is_single(kept):
            at, mask = self._at(kept)
            self.within.append(f"tl.store(p{i} + {at}, {made}, mask={mask})")
            return
        # Other chunks may not have read the last one yet.
        self.after.append(f"tl.store(numbers + {len(self.singles)} * job_count + job, {made}, mask=chunk == 0)")
        self.singles.append(i)
        if len({_dtype(self.places[j]) for j in self.singles}) > 1:
            raise Unwritten("single numbers of several dtypes")

    def _give(self, graph: Any) -> None:
        """Sums over the tile, kept from tile to tile and given at the end."""
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        ((outer,),) = output.args
        (inner,) = outer.args[0]
        self.sums = len(inner.args[0])
        shape = f"({self.tile}, {self.padded})" if self.length else f"({self.tile},)"
        for j, node in enumerate(inner.args[0]):
            self.before.append(f"s{j} = tl.full({shape}, 0, tl.{_NAMES[_dtype(node)]})")
            self.within.append(f"s{j} += {' + '.join(self._terms(node))}")
            over = f"tl.sum(tl.sum(s{j}, 1), 0)" if self.length else f"tl.sum(s{j}, 0)"
            self.after.append(f"tl.store(partials + program * {self.sums} + {j}, {over})")

    def _terms(self, node: Node) -> list[str]:
        """What is summed over tiles: the sum of a tile, or those of several lanes."""
        if str(node.target) == "aten.sum.default":
            return [self._cast(self._masked(node.args[0]), _dtype(node.args[0]), node.meta["val"].dtype)]
        if _base(node) == "add":
            return [term for part in node.args for term in self._terms(part)]
        raise Unwritten(f"{node.target} of sums")


def _is_node(x: Any) -> bool:
    return isinstance(x, torch.fx.Node)


def _base(node: Node) -> str:
    """The name of an operation without its overload."""
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).removeprefix("aten.").split(".")[0]


def _is_sum(node: Node) -> bool:
    """Whether a node is the sum of a tile, or of such sums."""
    return str(node.target) == "aten.sum.default" or (
        _base(node) == "add" and all(map(_is_sum, node.all_input_nodes)) and node.args != ()
    )


def _dtype(x: Any) -> torch.dtype:
    found: torch.dtype = x.meta["val"].dtype
    return found


def _meta(x: Any) -> Any:
    """An argument's dtype and dimension without its memory, for the rules of promotion."""
    if not _is_node(x):
        return x
    value = x.meta["val"]
    return torch.empty((1,) * value.dim(), dtype=value.dtype, device="meta") if isinstance(value, Tensor) else 1


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _number(x: Any, dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        x = float(x)
        written = repr(x) if math.isfinite(x) else f'float("{x}")'
    else:
        written = repr(int(x))
    return f"tl.full((), {written}, tl.{_NAMES[dtype]})"


def _filled(form: str, given: Sequence[str], dtype: torch.dtype) -> str:
    """A form with its arguments."""
    return form.format(*[g if g.isidentifier() else f"({g})" for g in given], one=_number(1, dtype))


def _is_single(value: Tensor) -> bool:
    return tuple(value.shape) == (1,)


def _needed(graph: Any) -> set[Node]:
    """The nodes that what is stored or given back depends on."""
    ends = [n for n in graph.graph.nodes if n.op == "output" or (n.op == "call_function" and _base(n) == "copy_")]
    found: set[Node] = set()
    while ends:
        node = ends.pop()
        if node not in found:
            found.add(node)
            ends += node.all_input_nodes
    return found
