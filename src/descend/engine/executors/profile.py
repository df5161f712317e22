"""What a text asks for: found by running it once on a few numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from descend.engine.context import Dims, Known, Reducer, State
from descend.engine.job import Job
from descend.engine.rule import Rule
from descend.engine.slots import Slot
from descend.engine.update import apply_update

Scope = Literal["tensor", "global"]


@dataclass(frozen=True)
class Profile:
    """What a text asks for.

    Attributes:
        rounds: the rounds of sums over a parameter's elements, in order, each with the dimensions that its sums go along.
        small: for every round over one tensor, whether it only adds up what earlier rounds gave, and so is not listed;
            of a parameter in pieces every round is.
        shaped: whether the text needs the parameter's shape.
        held: how many tensors of the parameter's size there are at once: it, its gradient, its state and temporaries.
    """

    rounds: tuple[tuple[Scope, tuple[Dims, ...]], ...] = ()
    small: tuple[bool, ...] = ()
    shaped: bool = False
    held: int = 1

    @property
    def overall(self) -> int:
        """The number of rounds over all tensors."""
        return sum(scope == "global" for scope, _ in self.rounds)

    @property
    def whole(self) -> bool:
        """Whether the text must have the whole tensor in hand."""
        return self.shaped or any(scope == "tensor" for scope, _ in self.rounds)


def profile(rule: type[Rule], job: Job) -> Profile:
    """The profile of the rule's text under this job's flags."""
    if rule.reach == "matrix":
        return Profile(shaped=True)
    stages = job.known["centralize_grad"] or job.known["adaptive_grad_clip"] is not None
    ndim = job.view.dim()
    shaped = ndim > 1 and (stages or rule.reach == "rows")
    shape: tuple[int, ...] = (2,) * (ndim if shaped else 1)
    if not job.units and any(slot.shape is not None for slot in job.slots.values()):  # they fit this parameter alone
        whole = job.whole
        if 0 in whole:
            return Profile()
        shape = whole if shaped else (math.prod(whole),)
    return _profile(rule, flags(job), scalars(job), tuple(job.slots.items()), shape, job.crosses)  # type: ignore[arg-type]


def flags(job: Job) -> tuple[tuple[str, Any], ...]:
    """What decides which operations a text consists of."""
    return tuple((name, value) for name, value in job.known.items() if not isinstance(value, (float, Tensor)))


def scalars(job: Job) -> tuple[str, ...]:
    """The names of the numbers that change from step to step."""
    return tuple(name for name, value in job.known.items() if isinstance(value, (float, Tensor)))


@lru_cache(maxsize=1024)
def _profile(
    rule: Any,
    flags: tuple[tuple[str, Any], ...],
    scalars: tuple[str, ...],
    slots: tuple[tuple[str, Slot], ...],
    shape: tuple[int, ...],
    in_pieces: bool,
) -> Profile:
    across, ndim = _Counting(shape, in_pieces), len(shape)
    k = Known({**dict.fromkeys(scalars, 0.5), **dict(flags)}, across)
    k.measure(shape)
    device = "cpu" if shape == (2,) * ndim else "meta"  # a parameter's own shape may be large
    p, g = torch.ones(shape, device=device), torch.ones(shape, device=device)
    state = {name: slot.new(p).to(p.dtype) for name, slot in slots}
    watch = _Watch(rule.__name__, across, (p, g, *state.values()))
    try:
        with torch.no_grad(), watch if ndim == 1 else nullcontext():
            apply_update(rule, p, g, State(state), k)
    except _OnePart:
        raise
    except (IndexError, RuntimeError) as error:
        if ndim > 1:
            raise
        raise RuntimeError(
            f"{rule.__name__}: its lines use dimensions that a flat tensor does not have ({error}); "
            f'a rule that sees rows and columns says reach = "rows"; one that multiplies matrices says reach = "matrix"'
        ) from error
    return Profile(tuple(across.rounds), tuple(across.small), shaped=ndim > 1, held=watch.held)


class _OnePart(RuntimeError):
    """A text does by itself what it needs the whole tensor for."""


class _Watch(TorchFunctionMode):
    """Counts the tensors in hand, and raises where a text sums or looks at rows by itself: it may have a part of them."""

    def __init__(self, rule: str, across: _Counting, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.rule, self.reducer = rule, across
        self.seen = {id(x): ref(x) for x in tensors}
        self.held = len(self.seen)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        x = args[0] if args else None
        by_hand = not self.reducer.is_asked and isinstance(x, Tensor) and x.nelement() > 1
        if by_hand and name in _REDUCTIONS:
            raise _OnePart(
                f"{self.rule}: its lines reduce a tensor with {name}(), and have only a part of it in hand; "
                f"write {_REDUCTIONS[name]}, which sums over the whole parameter"
            )
        if by_hand and (name in _OF_SHAPES or func in _TURNED):
            what = f"{name}()" if name in _OF_SHAPES else "a transpose"
            raise _OnePart(
                f"{self.rule}: its lines use {what}, and have a flat part of the tensor in hand; a rule that sees rows "
                'and columns says reach = "rows", one that multiplies matrices says reach = "matrix"'
            )
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.nelement() > 1:
            self.seen[id(result)] = ref(result)
            self.held = max(self.held, sum(seen() is not None for seen in self.seen.values()))
        return result


_SUMS = "k.sums(...), for example of a comparison"
#: Reductions, and what to write instead.
_REDUCTIONS = {
    **dict.fromkeys(("norm", "vector_norm", "matrix_norm", "linalg_norm", "linalg_vector_norm"), "k.norm(x)"),
    **dict.fromkeys(("sum", "dot", "vdot", "inner", "nansum"), "k.sums(x)"),
    **dict.fromkeys(("mean", "nanmean"), "k.mean(x)"),
    **dict.fromkeys(("max", "min", "amax", "amin", "aminmax", "median", "all", "any", "argmax", "argmin"), _SUMS),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean", "prod", "logsumexp", "cumsum", "sort", "topk"), _SUMS),
}

#: What depends on the shape.
_OF_SHAPES = frozenset(
    ("matmul", "mm", "bmm", "mv", "einsum", "transpose", "t", "permute", "flip", "roll", "size", "numel", "__getitem__")
)
_TURNED = (Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__)  # type: ignore[attr-defined]


class _Counting(Reducer):
    """Notes the rounds of a text that runs on a tensor of this shape."""

    #: Whether a sum is being taken that the text has asked for.
    is_asked = False

    def sum(self, x: Any, dims: tuple[int, ...] | None = None) -> Any:
        self.is_asked = True
        total = super().sum(x, dims)
        self.is_asked = False
        return total

    def square(self, x: Any, dims: tuple[int, ...] | None = None) -> Any:
        self.is_asked = True
        total = super().square(x, dims)
        self.is_asked = False
        return total

    def __init__(self, shape: tuple[int, ...], in_pieces: bool) -> None:
        self.shape = shape
        self.in_pieces = in_pieces
        self.rounds: list[tuple[Scope, tuple[Dims, ...]]] = []
        self.small: list[bool] = []

    def tensor_sum(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        small = all(
            d is not None and x.numel() * math.prod(self.shape[i] for i in d) < math.prod(self.shape)
            for x, d in zip(partials, dims, strict=True)
        )
        self.small.append(small and not self.in_pieces)
        if not self.small[-1]:
            self.rounds.append(("tensor", dims))
        return partials

    def global_sum(self, begin: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        partials = begin()
        self.rounds.append(("global", (None,) * len(partials)))
        return partials
