"""Which values an option takes, and when it acts, as the annotation in its constructor's signature says."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import types
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torch import Tensor
from typing_extensions import Self, Unpack, get_type_hints


@dataclass(frozen=True)
class Range:
    """Numbers between bounds; infinity is one of them only as the bound ``le=math.inf``.

    Attributes:
        gt: what the number is larger than.
        ge: what it is larger than or equal to.
        lt: what it is less than.
        le: what it is less than or equal to.
        why: the reason, for the message.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    why: str = ""

    def __contains__(self, number: float) -> bool:
        bounds = ((operator.gt, self.gt), (operator.ge, self.ge), (operator.lt, self.lt), (operator.le, self.le))
        inside = all(holds(number, bound) for holds, bound in bounds if bound is not None)
        return inside and (math.isfinite(number) or number == self.le)

    def of(self, noun: str) -> str:
        """The range in words, of a noun with its article."""
        low, high = (self.ge if self.gt is None else self.gt), (self.le if self.lt is None else self.lt)
        if low is not None and high is not None and high < math.inf:
            ends = "[" if self.gt is None else "(", "]" if self.lt is None else ")"
            text = f"{noun} in {ends[0]}{low:g}, {high:g}{ends[1]}"
        else:
            signs = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
            bounds = [f" {sign} {bound:g}" for sign, bound in signs if bound not in (None, math.inf)]
            finite = noun.replace("a number", "a finite number") if self.le != math.inf else noun
            text = finite + "".join(bounds)
        return f"{text}: {self.why}" if self.why else text


@dataclass(frozen=True)
class OneOf:
    """Values that are no literals, such as dtypes."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Not:
    """Every value but one."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return bool(other != self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"not {self.value!r}"


class Needs:
    """The option acts only where others have a value that lets it; where no group has that, giving it raises.

    ``Needs("a", b=1)`` asks for both, ``Needs("a") | Needs(b=1)`` for one of them, and ``Needs(why=...)`` says that the
    option never acts.

    Args:
        *on: options that are neither 0, None nor False.
        **equal: options with the value that they have, or a tuple of those that they may have, or ``Not(value)``.
            ``decay`` is what the rule's ``decay(h)`` says.
        why: the reason, where the names and values of the others do not say it.
    """

    raises = True

    def __init__(self, *on: str, why: str = "", **equal: Any) -> None:
        self.on = on
        self.equal = {name: value if isinstance(value, tuple) else (value,) for name, value in equal.items()}
        self.why = why
        self.instead: tuple[Needs, ...] = ()

    def __or__(self, other: Needs) -> Self:
        either = copy(self)
        either.instead = (*self.instead, other)
        return either

    def __str__(self) -> str:
        parts = [*self.on, *(f"{name}={_either(values)}" for name, values in self.equal.items())]
        return " or ".join([" and ".join(parts), *map(str, self.instead)])

    def unmet(self, h: Any) -> str:
        """What keeps the option from acting, in words; empty where nothing does."""
        reasons = [need._reason(vars(h)) for need in (self, *self.instead)]
        if not all(reasons):
            return ""
        return f": {self.why}" if self.why else f" with {' and '.join(reasons)}; it acts with {self}"

    def _reason(self, values: Mapping[str, Any]) -> str:
        for name in self.on:
            if not isinstance(values.get(name), Tensor) and not values.get(name):
                return f"{name}={values.get(name)!r}"
        for name, allowed in self.equal.items():
            value = values.get(name)
            if isinstance(value, Tensor) and None not in allowed:
                continue  # its number may change at any time
            if not any(value == one for one in allowed):
                return f"{name}={value!r}"
        return "" if self.on or self.equal else self.why


class ActsWith(Needs):
    """The same, but it warns: timm takes the option without effect, or a schedule can give the other its value later."""

    raises = False


Lr = Annotated[float | Tensor, Range(ge=0)]
NonNegative = Annotated[float, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
Fraction = Annotated[float, Range(ge=0, le=1)]
Beta = Annotated[float, Range(ge=0, lt=1)]
Betas = tuple[Beta, Beta]
Count = Annotated[int, Range(ge=1)]
WeightDecay = Annotated[float, Range(ge=0), ActsWith(hyperball=False) | ActsWith(decay="coupled")]


@dataclass(frozen=True)
class Option:
    """An option as a constructor declares it.

    Attributes:
        name: its name.
        hint: its annotation; of an argument without one, what its default says.
        default: its default; ``inspect.Parameter.empty`` where it must be given.
    """

    name: str
    hint: Any
    default: Any = inspect.Parameter.empty

    @property
    def range(self) -> str:
        """The values that it takes, in words."""
        return described(self.hint)

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What it acts with."""
        return tuple(part for part in getattr(self.hint, "__metadata__", ()) if isinstance(part, Needs))

    @property
    def meaning(self) -> str:
        """The range, and what the option acts with where the declaration says so."""
        others = " and ".join(str(need) for need in self.needs if not need.why)
        return f"{self.range}; acts with {others}" if others else self.range

    def is_default(self, value: Any) -> bool:
        """Whether a value is the default, in type too."""
        return type(value) is type(self.default) and bool(value == self.default)

    def fault(self, value: Any) -> str:
        """What is wrong with a value, with what would be right; empty where nothing is, as with the default."""
        return "" if self.is_default(value) else fault(self.name, value, self.hint)


def declared(kind: Any) -> Mapping[str, Option]:
    """The options of a class, of its parents too, by name: those of its constructor and those behind ``**``."""
    return _declared(kind)


@functools.cache
def _declared(kind: Any) -> Mapping[str, Option]:
    found: dict[str, Option] = {}
    for base in reversed(kind.__mro__):
        if "__init__" in vars(base) and base is not object:
            constructor = inspect.unwrap(vars(base)["__init__"])
            for p in list(inspect.signature(constructor).parameters.values())[1:]:
                hint = _hint(constructor, p)
                if p.kind is p.VAR_KEYWORD and get_origin(hint) is Unpack:
                    common = get_type_hints(get_args(hint)[0], include_extras=True)
                    found |= {name: Option(name, own) for name, own in common.items()}
                elif p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in ("params", "defaults"):
                    found[p.name] = Option(p.name, hint, p.default)
    return found


def own(scope: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's own options, out of its ``locals()`` before it has others: all but itself, ``params`` and ``common``."""
    return {name: v for name, v in scope.items() if name not in ("self", "__class__", "params", "common")}


def _hint(function: Any, p: inspect.Parameter) -> Any:
    """The annotation of an argument, and what its default says where there is none that can be read."""
    try:
        hint = eval(p.annotation, function.__globals__) if isinstance(p.annotation, str) else p.annotation
    except NameError:
        hint = p.empty
    if hint is not p.empty:
        return hint
    return bool if isinstance(p.default, bool) else float if isinstance(p.default, (int, float)) else Any


# ------------------------------------------------------------------------------------------------- checks and words


def fault(name: str, value: Any, hint: Any) -> str:
    """What is wrong with a value for an annotation, with what would be right; empty where nothing is."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}"
        if value.is_meta:
            return ""
        value = value.item()
    faults = [_fault(name, value, kind, extras) for kind, extras in _members(hint)]
    if not faults or not all(faults):
        return ""
    within = [text for text in faults if text.startswith(f"{name}[")]
    if within or len(faults) == 1:
        return [*within, *faults][0]
    return f"{name}={value!r}, expected {described(hint)}"


def described(hint: Any) -> str:
    """The values that an annotation allows, in words."""
    words = list(dict.fromkeys(_described(kind, extras) for kind, extras in _members(hint)))
    return " or ".join(sorted(words, key=lambda text: text != "None"))


def _members(hint: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The alternatives of an annotation, each with what is annotated to it; a tensor stands for its number."""
    kind, extras = hint, ()
    while get_origin(kind) is Annotated:
        kind, extras = kind.__origin__, (*kind.__metadata__, *extras)
    if get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            for inner, own_extras in _members(one):
                yield inner, (*own_extras, *extras)
    elif kind is not Tensor:
        yield kind, extras


def _fault(name: str, value: Any, kind: Any, extras: tuple[Any, ...]) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    wrong = f"{name}={value!r}, expected {_described(kind, extras)}"
    if origin is tuple and isinstance(value, (tuple, list)):
        count = len(value) if inner[-1] is Ellipsis else len(inner)
        if len(value) != count:
            return f"{name}={value!r} has {len(value)} values, expected {count}"
        hints = inner[:1] * count if inner[-1] is Ellipsis else inner
        return next(filter(None, (fault(f"{name}[{i}]", v, hints[i]) for i, v in enumerate(value))), "")
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return next(filter(None, (fault(f"{name}[{key!r}]", v, inner[1]) for key, v in value.items())), "")
    allowed = next((part.values for part in extras if isinstance(part, OneOf)), inner if origin is Literal else None)
    if allowed is not None:
        return "" if any(type(value) is type(one) and value == one for one in allowed) else wrong
    if kind in (int, float):
        number = isinstance(value, int) and not (kind is int and isinstance(value, bool))
        number = number or (kind is float and isinstance(value, float))
        return "" if number and all(value in r for r in _ranges(extras)) else wrong
    if kind is bool:
        return "" if isinstance(value, int) else wrong
    kind = type(None) if kind is None else origin or kind
    try:
        return "" if kind is Any or isinstance(value, kind) else wrong
    except TypeError:  # a kind that nothing can be asked about, such as a TypedDict
        return ""


def _described(kind: Any, extras: tuple[Any, ...]) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if choices := [part.values for part in extras if isinstance(part, OneOf)]:
        return _either(choices[0])
    if origin is Literal:
        return _either(inner)
    if kind in (int, float):
        return _ranges(extras)[0].of("an integer" if kind is int else "a number")
    if origin is tuple:
        if inner[-1] is Ellipsis or len(set(map(described, inner))) == 1:
            count = "" if inner[-1] is Ellipsis else f"{len(inner)} "
            return f"a tuple of {count}values, each {described(inner[0])}"
        return f"({', '.join(map(described, inner))})"
    words = {bool: "True or False", type(None): "None", str: "a string", Any: "any value"}
    return words.get(kind) or f"a {getattr(origin or kind, '__name__', str(kind)).lower()}"


def _ranges(extras: tuple[Any, ...]) -> list[Range]:
    return [part for part in extras if isinstance(part, Range)] or [Range()]


def _either(values: tuple[Any, ...]) -> str:
    words = [repr(value) if not hasattr(value, "itemsize") else str(value) for value in values]
    return " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
