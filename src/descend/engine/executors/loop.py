"""The reference executor: one parameter after another, large elementwise ones in pieces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from descend.engine.executors.profile import Profile, profile
from descend.engine.job import Job, flatten, is_dense, real, values_of
from descend.engine.known import Known, OverallKnown, Pause, State
from descend.engine.text import advance, advance_stored, cast_scalars

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer

# Elements a piece: large enough to hide the calls, small enough that the allocator has its temporaries at hand.
CHUNK = 1 << 20


def run(rule: type[Optimizer], jobs: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> list[tuple[Any, ...]]:
    """Carry the jobs over one step, or as far as the first sum over all tensors that `totals` lacks.

    Returns:
        The partial sums of the jobs that stopped there.
    """
    partials: list[tuple[Any, ...]] = []
    shared: dict[tuple[int, int, bool], tuple[Profile, Known]] = {}
    for job in jobs:
        key = id(job.known), job.param.dim(), job.units
        if key not in shared:
            shared[key] = profile(rule, job), _known(job)
        needs, k = shared[key]
        there = [tuple(total.to(job.param.device) for total in sums) for sums in totals]
        k.across = OverallKnown(there)
        if needs.overall > len(totals):
            partials.append(partial_sums(rule, job, k))
            continue
        for first, p, g, s in _pieces(job, needs.whole, k):
            k.across = OverallKnown(there)
            advance_stored(rule, job.rests, job.maths, p, g, s, k, job.dice(first))
        job.done = True
    return partials


def _known(job: Job) -> Known:
    k = Known(job.known)
    return cast_scalars(k, job.maths) if job.group["capturable"] else k


def _pieces(job: Job, whole: bool, k: Known) -> Iterator[tuple[int, Tensor, Tensor, dict[str, Tensor]]]:
    """The parameter, gradient and state, at once or flat in storage order, piece by piece, each with its first place."""
    p, g = values_of(job)
    s = {name: real(job.state[name]) for name in job.resting}
    alike = all(
        slot.per_block or (slot.like_parameter and s[name].stride() == p.stride()) for name, slot in job.resting.items()
    )
    if whole or p.numel() <= CHUNK or not alike or not is_dense(p):
        if alike:
            p, g, s = job.seen(p), job.seen(g), {name: _seen(job, name, t) for name, t in s.items()}
        k.measure(p)
        yield 0, p, g, s
        return
    k.measure(p)
    p, g, s = flatten(p), flatten(g), {name: flatten(t) for name, t in s.items()}
    length = job.rests.length or 1
    piece = max(CHUNK // length, 1) * length
    for start in range(0, p.numel(), piece):
        many = min(piece, p.numel() - start)
        cut = {
            name: t.narrow(0, start // length, many // length)
            if job.resting[name].per_block
            else t.narrow(0, start, many)
            for name, t in s.items()
        }
        yield start, p.narrow(0, start, many), g.narrow(0, start, many), cut


def _seen(job: Job, name: str, t: Tensor) -> Tensor:
    return job.seen(t) if job.resting[name].like_parameter else t


class Scratch(State):
    """State whose slots are loaded and copied when they are first used, so that a text can run without effect."""

    _names: Collection[str]
    _load: Callable[[str], Any]

    def __init__(self, names: Collection[str], load: Callable[[str], Any]) -> None:
        self.__dict__.update(_names=names, _load=load)

    def __getattr__(self, name: str) -> Tensor:
        if name not in self._names:
            return super().__getattr__(name)
        value: Tensor = self._load(name).clone()
        setattr(self, name, value)
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._names


def partial_sums(rule: type[Optimizer], job: Job, k: Known) -> tuple[Any, ...]:
    """The partial sums of the first round over all tensors that is not known yet; nothing is changed."""
    p, g = values_of(job)
    k.measure(p)
    resting = {name: real(job.state[name]) for name in job.resting}
    value = job.rests.parameter(p, resting, job.maths)
    s = Scratch(job.slots, lambda name: job.rests.slot(name, p, resting, job.maths))
    try:
        advance(rule, value, g.to(job.maths), s, k)
    except Pause as pause:
        return tuple(pause.partials)
    raise AssertionError(f"{rule.__name__} asks for fewer sums than it did on trial")
