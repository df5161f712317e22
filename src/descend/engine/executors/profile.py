"""What a text asks for: found by running it once on a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.job import Job
from descend.engine.known import Across, Dims, Known, State
from descend.engine.text import advance

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer


@dataclass
class Profile:
    """The rounds of sums in a text (over one tensor, and over all), and whether it needs the parameter's shape."""

    own: int = 0
    overall: int = 0
    shaped: bool = False


def profile(rule: type[Optimizer], job: Job) -> Profile:
    """The profile of the rule's text under this job's flags."""
    if rule.reach not in ("elementwise", "tensor"):
        return Profile(own=1, shaped=True)
    scalars = tuple(name for name, value in job.known.items() if isinstance(value, (float, Tensor)))
    slots = tuple((name, slot.like_parameter) for name, slot in job.slots.items())
    return _profile(rule, flags(job), scalars, slots)


def flags(job: Job) -> tuple[tuple[str, Any], ...]:
    """What decides which operations a text consists of."""
    return tuple((name, value) for name, value in job.known.items() if not isinstance(value, (float, Tensor)))


@lru_cache(maxsize=1024)
def _profile(
    rule: type[Optimizer],
    flags: tuple[tuple[str, Any], ...],
    scalars: tuple[str, ...],
    slots: tuple[tuple[str, bool], ...],
) -> Profile:
    across = _Counting()
    k = Known({**dict.fromkeys(scalars, 0.5), **dict(flags), "numel": 2.0, "ndim": 1, "shape": (2,)}, across)
    s = State({name: torch.ones(2) if like else torch.ones(()) for name, like in slots})
    with torch.no_grad():
        advance(rule, torch.ones(2), torch.ones(2), s, k)
    shaped = k.centralize_grad or k.adaptive_grad_clip is not None
    return Profile(across.own_rounds, across.overall_rounds, shaped)


class _Counting(Across):
    def __init__(self) -> None:
        self.own_rounds = 0
        self.overall_rounds = 0

    def own(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        self.own_rounds += 1
        return partials

    def overall(self, partials: tuple[Any, ...]) -> tuple[Any, ...]:
        self.overall_rounds += 1
        return partials
