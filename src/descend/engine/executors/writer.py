"""A step written as one kernel that serves any number of parameters a call: what is the same in every language.

A kernel walks over chunks of parameters. It reads from tables where parameter, state and gradient lie and which scalars
are theirs. Its body is what tracing finds in the text, an operation a line. Sums are taken chunk by chunk and then over
the chunks of a parameter, in an order that never changes.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from descend.engine.executors.kernels import Signature, example, leaves, text
from descend.engine.torch_private import traced

Mask = frozenset[int]  # axes by their place in memory
Node = Any  # of a graph; its arguments may be anything

CHUNK = 8192  # elements that are moved together, about


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
        chunk: elements of a chunk; rows where state is kept in blocks.
        single_dtype: of those numbers, where there are any.
        masks: the axes that each sum differs along, where texts need shapes.
    """

    signature: Signature
    stage: int
    name: str
    source: str
    singles: tuple[int, ...]
    sums: int
    chunk: int
    single_dtype: torch.dtype | None = None
    masks: tuple[Mask, ...] = ()

    @property
    def outputs(self) -> tuple[torch.dtype, ...]:
        """The dtypes of what a launch fills beside parameters and state: single numbers of state, sums."""
        numbers = () if self.single_dtype is None else (self.single_dtype,)
        return (*numbers, *(self.signature.compute_dtype,) * bool(self.sums))


@dataclass(frozen=True)
class Chunks:
    """How the parameters of a bundle are cut.

    Attributes:
        count: of parameters.
        programs: chunks of all of them.
        firsts: each one's first chunk, and behind the last one how many there are.
        size: elements of all of them.
        shapes: of each.
        places_of_sums: where each pass has the sums of each parameter, once that is known.
    """

    count: int
    programs: int
    firsts: Tensor
    size: int
    shapes: Sequence[Sequence[int]]
    places_of_sums: dict[int, Any] = field(default_factory=dict)


_COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
# Keyword arguments that change no number, and those that forms read.
_READ = {"dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "alpha", "value"}
_SAME = ("view_copy", "unsqueeze_copy", "squeeze_copy", "clone", "expand_copy", "alias_copy", "detach", "reshape")
_CHOSEN = ("select_copy", "unbind_copy", "select", "unbind")  # an element of what is a vector for no other reason


# Operations by their name without overload, as every language has them: {0}, {1}, ... are the arguments in the dtype of
# the arithmetic. Functions are in triton_functions.py and cpp_functions.h.
FORMS: Mapping[str, str] = {
    "neg": "-{0}",
    "sign": "sign({0})",
    "sqrt": "root({0})",
    "round": "even({0})",
    "mul": "{0} * {1}",
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
    "__lshift__": "{0} << {1}",
    "__rshift__": "{0} >> {1}",
}


class Writer(ABC):
    """Writes the body, a line for each operation that something needs: what is the same for all tiles comes first."""

    #: What each operation is written as.
    forms: ClassVar[Mapping[str, str]]
    #: The number of a column, as a whole number of 64 bits.
    column: ClassVar[str]

    def __init__(self, signature: Signature, stage: int) -> None:
        self.signature = replace(signature, bundle=1)
        self.stage = stage
        self.before: list[str] = []
        self.after: list[str] = []
        self.names: dict[Node, str] = {}
        self.singles: list[int] = []
        self.sums = 0
        self.masks: tuple[Mask, ...] = ()
        self.length = signature.storage.length
        self.width = (self.length or 1) // signature.storage.lanes  # a vector is rows of one column

    # ---- what a language has its own way for

    #: Elements of a chunk; rows where state is kept in blocks.
    chunk: int

    @abstractmethod
    def source(self, name: str, known: int) -> str:
        """The whole function, which takes so many tensors of known sums."""

    @abstractmethod
    def argument(self, i: int, place: Node, table: str, row: int) -> None:
        """Where an argument lies, and its elements in the tile; `row` is that of the table of addresses."""

    @abstractmethod
    def let(self, node: Node, expression: str) -> None:
        """A line that gives a node its value and name."""

    @abstractmethod
    def scalar(self, name: str, pointer: str, dtype: torch.dtype) -> None:
        """A line that reads a number which is the same for all tiles."""

    @abstractmethod
    def store(self, i: int, place: Node, made: str, value: Node) -> None:
        """Lines that keep a value in the memory of an argument."""

    @abstractmethod
    def single(self, i: int, made: str, dtype: torch.dtype) -> None:
        """A line that keeps a single number of state, which other chunks may not have read yet."""

    @abstractmethod
    def total(self, j: int, node: Node) -> None:
        """Lines that add up a sum over the tiles."""

    @abstractmethod
    def cast(self, x: str, before: torch.dtype, after: torch.dtype) -> str:
        """A number in another dtype."""

    @abstractmethod
    def bits(self, x: str, after: torch.dtype) -> str:
        """A number's bits as one of another dtype."""

    @abstractmethod
    def number(self, x: Any, dtype: torch.dtype) -> str:
        """A constant."""

    @abstractmethod
    def selected(self, condition: str, x: str, y: str) -> str:
        """One of two values, element by element."""

    @abstractmethod
    def largest(self, node: Node) -> str:
        """The largest value of each row of a tile."""

    def begin(self, graph: Any) -> None:  # noqa: B027, most need not
        """Look at the graph before anything is written."""

    # ---- the whole

    def write(self) -> Written:
        """The kernel. Raises :class:`Unwritten`."""
        here = replace(self.signature, device=torch.device("cpu"))
        arguments = example(here, self.stage)
        try:
            graph = traced(text(here, self.stage, arguments), [*leaves(arguments)])
        except RuntimeError as error:  # state of a shape of its own
            raise Unwritten(str(error)) from error
        params, state, grads, _, sums = arguments
        self.places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        self.needed = _needed(graph)
        self.rows = self.places[0].meta["val"].shape[0].node.expr
        held, given = len([*leaves((params, state))]), len([*leaves(grads)])
        self.table, *self.known = self.places[held + given :]
        self.begin(graph)
        for i, place in enumerate(self.places[: held + given]):
            if place in self.needed:
                self.argument(i, place, *(("held", i) if i < held else ("given", i - held)))
        calls = [node for node in graph.graph.nodes if node.op == "call_function" and node in self.needed]
        for node in calls:
            if base(node) != "copy_":
                self.operation(node)
        for node in calls:
            if base(node) == "copy_":
                self._store(*node.args[:2])
        if self.stage < len(self.signature.rounds):
            self.give(graph)
        name = f"{self.signature.rule.__name__.lower()}_{self.stage}"
        source = self.source(name, len(sums))
        single = next((dtype_of(self.places[i]) for i in self.singles), None)
        found = self.signature, self.stage, name, source, tuple(self.singles), self.sums, self.chunk
        return Written(*found, single, self.masks)

    def reads(self, place: Node) -> bool:
        """Whether an argument's elements are needed, and not only its place."""
        return any(
            user in self.needed and not (base(user) == "copy_" and user.args[0] is place) for user in place.users
        )

    def is_of_rows(self, value: Tensor) -> bool:
        """Whether there is one number for each row of a tile. Raises where rows are longer or shorter than all others."""
        columns = int(value.shape[1])
        if columns not in (1, self.width):
            raise Unwritten(f"rows of {columns} where others have {self.width}")
        return columns == 1

    def index(self, value: Tensor) -> str:
        """Numbers of elements, of rows or of columns, in the whole of the argument."""
        size = value.shape[0]
        if isinstance(size, int):
            return self.column
        if not self.length:
            return "first + at"
        return "first + r" if size.node.expr == self.rows else f"(first + r) * {self.width} + c"

    # ---- one operation

    def operation(self, node: Node) -> None:
        """The line of an operation, if it takes one."""
        name = base(node)
        if name in _CHOSEN or not (name == "getitem" or isinstance(node.meta["val"], Tensor)):
            return  # what takes an element of them knows where it lies, and what takes a size how to compute it
        if name == "getitem":
            self._scalar(node)
        elif name == "select_scatter":
            self.names[node] = self.value(node.args[1])
        elif not (name == "stack" or is_sum(node) or any(map(is_sum, node.all_input_nodes))):
            made = self._expression(node, name, node.meta["val"])  # sums are written where the results are
            if made in self.names.values():
                self.names[node] = made
            else:
                self.let(node, made)

    def _expression(self, node: Node, name: str, value: Tensor) -> str:
        args = node.args
        if unread := {key for key, x in node.kwargs.items() if x is not None} - _READ:
            raise Unwritten(f"{node.target} with {', '.join(sorted(unread))}")
        if str(node.target) == "aten.view_copy.dtype":
            return self.bits(self.value(args[0]), value.dtype)
        if name in _SAME:
            return self.value(args[0])
        if name in ("_to_copy", "copy"):
            source = args[name == "copy"]
            return self.cast(self.value(source), dtype_of(source), value.dtype)
        if name in ("scalar_tensor", "full", "full_like"):
            return self.number(args[0] if name == "scalar_tensor" else args[1], value.dtype)
        if name in ("zeros_like", "ones_like"):
            return self.number(int(name == "ones_like"), value.dtype)
        if name == "arange":
            return self.index(value)
        if name == "amax" and list(args[1:]) == [[-1], True]:
            return self.largest(args[0])
        if name == "isnan":
            return f"{self.value(args[0])} != {self.value(args[0])}"
        if name in _COMPARISONS:
            common = torch.result_type(*(_meta(a) for a in args))
            left, right = (self._as(a, common) for a in args)
            return f"{left} {_COMPARISONS[name]} {right}"
        wide = _wide(value.dtype)
        made = self._arithmetic(node, name, wide)
        return made if wide == value.dtype else self.cast(f"({made})", wide, value.dtype)

    def _arithmetic(self, node: Node, name: str, dtype: torch.dtype) -> str:
        args = [a for a in node.args if a is not None]
        if name == "where":
            return self.selected(self.value(args[0]), self._as(args[1], dtype), self._as(args[2], dtype))
        given = [self._as(a, dtype) for a in args]
        if name in ("add", "sub", "rsub"):
            left, right = given[:2] if name != "rsub" else (given[1], given[0])
            alpha = node.kwargs.get("alpha", args[2] if len(args) > 2 else 1)
            if alpha != 1:
                raise Unwritten(f"{name} with alpha")
            return f"{left} {'+' if name == 'add' else '-'} {right}"
        if name in ("addcmul", "addcdiv"):
            start, left, right = given[:3]
            scale = node.kwargs.get("value", 1)
            product = self.filled("mul" if name == "addcmul" else "div", (left, right), dtype)
            return f"{start} + {product}" if scale == 1 else f"{start} + {self.number(scale, dtype)} * ({product})"
        if name == "clamp":
            low, high = [*node.args[1:], None][:2]
            made = given[0]
            made = made if low is None else f"larger({made}, {self._as(low, dtype)})"
            return made if high is None else f"smaller({made}, {self._as(high, dtype)})"
        if name == "pow":
            return self._power(given[0], node.args[1], dtype)
        of_fractions = name in ("floor_divide", "remainder") and dtype.is_floating_point
        if name not in self.forms or of_fractions:
            raise Unwritten(str(node.target))
        return self.filled(name, given, dtype)

    def _power(self, x: str, exponent: Any, dtype: torch.dtype) -> str:
        if exponent in (2, 3):
            return " * ".join([f"({x})"] * exponent)
        if exponent == 0.5:
            return self.filled("sqrt", (x,), dtype)
        if not dtype.is_floating_point:
            raise Unwritten(f"powers of {dtype}")
        return f"power({x}, {self._as(exponent, dtype)})"

    def filled(self, name: str, given: Sequence[str], dtype: torch.dtype) -> str:
        """A form with its arguments."""
        arguments = [g if g.isidentifier() else f"({g})" for g in given]
        return self.forms[name].format(*arguments, one=self.number(1, dtype))

    # ---- scalars

    def _scalar(self, node: Node) -> None:
        """An element of the table, of a single number of state, or of known sums."""
        source, index = node.args
        while base(source) in ("unbind_copy", "unbind"):
            source = source.args[0]
        picked = 0
        while base(source) in ("select_copy", "select"):
            source, picked = source.args[0], 1
        name = self.names[node] = f"v{len(self.names)}"
        if source is self.table:
            self.scalar(name, f"row + {index}", torch.float64)
            return
        i = self.known.index(source)
        columns = int(source.meta["val"].shape[-1])
        self.scalar(name, f"known{i} + {f'job * {columns} + ' if picked else ''}{index}", dtype_of(source))

    def value(self, x: Any) -> str:
        """The name of a node's value."""
        if x in self.names:
            return self.names[x]
        if x.op == "call_function" and base(x) in ("select_copy", "select"):
            inner = x.args[0]
            if inner.op == "placeholder" and is_single(inner.meta["val"]):
                i = self.places.index(inner)
                self.names[x] = f"x{i}"
                self.scalar(f"x{i}", f"p{i}", dtype_of(inner))
                return f"x{i}"
            if base(inner) == "select_scatter":
                return self.value(inner)
        if x.op == "call_function" and base(x) == "sum":
            raise Unwritten("a sum of a tile within it")
        if x.op == "call_function" and base(x) == "sym_size":
            return self._symbol(x)
        raise Unwritten(str(x.target))

    def _symbol(self, x: Node) -> str:
        """A size: constant, or the number of rows."""
        size = x.meta["val"]
        return "size" if not isinstance(size, int) and not size.node.expr.is_number else str(int(size))

    def _as(self, x: Any, dtype: torch.dtype) -> str:
        """An argument in a dtype."""
        if not is_node(x):
            return self.number(x, dtype)
        value = x.meta["val"]
        if isinstance(value, Tensor):
            return self.cast(self.value(x), value.dtype, dtype)
        return self.size(x, dtype)

    def size(self, x: Node, dtype: torch.dtype) -> str:
        """What is computed from sizes."""
        if base(x) == "sym_size":
            symbol = self._symbol(x)
            return self.cast(symbol, torch.int64, dtype) if symbol == "size" else self.number(int(x.meta["val"]), dtype)
        left, right = (self._as(a, dtype) for a in x.args)
        signs = {operator.mul: "*", operator.add: "+", operator.sub: "-"}
        if x.target not in signs:
            raise Unwritten(str(x.target))
        return f"({left} {signs[x.target]} {right})"

    # ---- what is given back

    def _store(self, place: Node, value: Node) -> None:
        i, kept = self.places.index(place), place.meta["val"]
        made = self.cast(self.value(value), dtype_of(value), kept.dtype)
        if not is_single(kept):
            self.store(i, place, made, value)
            return
        self.single(i, made, kept.dtype)
        self.singles.append(i)
        if len({dtype_of(self.places[j]) for j in self.singles}) > 1:
            raise Unwritten("single numbers of several dtypes")

    def give(self, graph: Any) -> None:
        """Sums over the tile, kept from tile to tile and given at the end."""
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        ((outer,),) = output.args
        (inner,) = outer.args[0]
        self.sums = len(inner.args[0])
        for j, node in enumerate(inner.args[0]):
            self.total(j, node)

    def terms(self, node: Node) -> list[Node]:
        """What is summed over tiles: the sum of a tile, or those of several lanes."""
        if str(node.target) == "aten.sum.default":
            return [node]
        if base(node) == "add":
            return [term for part in node.args for term in self.terms(part)]
        raise Unwritten(f"{node.target} of sums")


def is_node(x: Any) -> bool:
    """Whether an argument is what another operation gave."""
    return isinstance(x, torch.fx.Node)


def base(node: Node) -> str:
    """The name of an operation without its overload."""
    if node.target is operator.getitem:
        return "getitem"
    return str(node.target).removeprefix("aten.").split(".")[0]


def is_sum(node: Node) -> bool:
    """Whether a node is the sum of a tile, or of such sums."""
    return str(node.target) == "aten.sum.default" or (
        base(node) == "add" and all(map(is_sum, node.all_input_nodes)) and node.args != ()
    )


def dtype_of(x: Any) -> torch.dtype:
    """The dtype of a node's value."""
    found: torch.dtype = x.meta["val"].dtype
    return found


def is_single(value: Tensor) -> bool:
    """Whether an argument is a single number of state."""
    return tuple(value.shape) == (1,)


def _meta(x: Any) -> Any:
    """An argument's dtype and dimension without its memory, for the rules of promotion."""
    if not is_node(x):
        return x
    value = x.meta["val"]
    return torch.empty((1,) * value.dim(), dtype=value.dtype, device="meta") if isinstance(value, Tensor) else 1


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a dtype are computed in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _needed(graph: Any) -> set[Node]:
    """The nodes that what is stored or given back depends on."""
    ends = [n for n in graph.graph.nodes if n.op == "output" or (n.op == "call_function" and base(n) == "copy_")]
    found: set[Node] = set()
    while ends:
        node = ends.pop()
        if node not in found:
            found.add(node)
            ends += node.all_input_nodes
    return found
