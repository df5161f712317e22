"""What a text asks for: found by running it once on a few numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from descend.engine.job import Job
from descend.engine.known import Across, Dims, Known, State
from descend.engine.rule import Rule
from descend.engine.slots import Slot
from descend.engine.text import advance

Scope = Literal["own", "overall"]


@dataclass(frozen=True)
class Profile:
    """What a text asks for.

    Attributes:
        rounds: the rounds of sums over a parameter's elements, in order, each with the dimensions that its sums go along.
        small: for every round over one tensor, whether it only adds up what earlier rounds gave, and so is not listed;
            of a parameter in pieces every round is.
        shaped: whether the text needs the parameter's shape.
    """

    rounds: tuple[tuple[Scope, tuple[Dims, ...]], ...] = ()
    small: tuple[bool, ...] = ()
    shaped: bool = False

    @property
    def overall(self) -> int:
        """The number of rounds over all tensors."""
        return sum(scope == "overall" for scope, _ in self.rounds)

    @property
    def whole(self) -> bool:
        """Whether the text must have the whole tensor in hand."""
        return self.shaped or any(scope == "own" for scope, _ in self.rounds)


def profile(rule: type[Rule], job: Job) -> Profile:
    """The profile of the rule's text under this job's flags."""
    if rule.reach == "matrix":
        return Profile(shaped=True)
    stages = job.known["centralize_grad"] or job.known["adaptive_grad_clip"] is not None
    ndim = job.value.dim()
    shaped = ndim > 1 and (stages or rule.reach == "rows")
    return _profile(rule, flags(job), scalars(job), tuple(job.slots.items()), ndim if shaped else 1, job.crosses)  # type: ignore[arg-type]


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
    ndim: int,
    in_pieces: bool,
) -> Profile:
    across = _Counting(ndim, in_pieces)
    shape = (2,) * ndim
    k = Known(
        {**dict.fromkeys(scalars, 0.5), **dict(flags), "numel": float(2**ndim), "ndim": ndim, "shape": shape}, across
    )
    p, g = torch.ones(shape, device="cpu"), torch.ones(shape, device="cpu")
    with torch.no_grad():
        advance(rule, p, g, State({name: slot.new(p).to(p.dtype) for name, slot in slots}), k)
    return Profile(tuple(across.rounds), tuple(across.small), shaped=ndim > 1)


class _Counting(Across):
    """Notes the rounds of a text that runs on a tensor of two elements along each dimension."""

    def __init__(self, ndim: int, in_pieces: bool) -> None:
        self.ndim = ndim
        self.in_pieces = in_pieces
        self.rounds: list[tuple[Scope, tuple[Dims, ...]]] = []
        self.small: list[bool] = []

    def own(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        small = all(d is not None and x.numel() << len(d) < 1 << self.ndim for x, d in zip(partials, dims, strict=True))
        self.small.append(small and not self.in_pieces)
        if not self.small[-1]:
            self.rounds.append(("own", dims))
        return partials

    def overall(self, begin: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        partials = begin()
        self.rounds.append(("overall", (None,) * len(partials)))
        return partials
