"""The reference executor: one parameter after another, large elementwise ones in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.profile import Scope, profile
from descend.engine.executors.rounds import Ask, Carrier
from descend.engine.job import Job, flatten, is_dense, real, resolved, values_of
from descend.engine.known import Across, Dims, Known, OverallKnown, Pause, State
from descend.engine.rule import Rule
from descend.engine.text import advance, advanced, cast_scalars, put

# Elements of a piece, those of all tensors in hand together: many enough to hide the calls, few enough for the caches, and
# for the allocator to have temporaries at hand.
CHUNK = 1 << 21


def run(rule: type[Rule], jobs: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> list[tuple[Any, ...]]:
    """Carry the jobs over one step, or as far as the first sum over all tensors that `totals` lacks.

    Returns:
        The partial sums of the jobs that stopped there.
    """
    partials: list[tuple[Any, ...]] = []
    contexts: dict[Any, _Context] = {}
    for job in jobs:
        key = id(job.known), job.ndim, job.units, job.device
        context = contexts.get(key)
        if context is None:
            context = contexts[key] = _Context(rule, job, totals)
        k, g = context.k, job.grad
        context.across.asked = 0
        if context.waits:
            partials.append(partial_sums(rule, job, k))
            continue
        try:
            if job.is_plain and context.is_plain and g.dtype is job.maths and job.numel <= context.most:
                p = job.param
                if g.stride() == p.stride() or (g.is_contiguous() and p.is_contiguous()):
                    k.numel, k.ndim, k.shape = job.numel, job.ndim, job.shape
                    advance(rule, p, g, job.live, k)
                    job.done = True
                    continue
            for first, p, g, s in _pieces(job, context.most, k):
                context.across.asked = 0
                if job.is_plain and context.is_plain and g.dtype is job.maths:
                    advance(rule, p, g, State.of(s), k)
                else:
                    put(advanced(rule, job.rests, job.maths, p, g, s, k, job.dice(first), apart=k.skips), k)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise RuntimeError(f"{rule.__name__}: parameter {_name(job)}: {error}") from error
        job.done = True
    return partials


class _Context:
    """What parameters that know the same have in common for the length of a pass.

    Attributes:
        waits: whether their text needs a sum over all tensors that is not known yet.
        most: the elements that it may have in hand of a tensor.
        is_plain: whether it may work on the tensors themselves.
    """

    def __init__(self, rule: type[Rule], job: Job, totals: list[tuple[Tensor, ...]]) -> None:
        needs = profile(rule, job)
        self.waits = needs.overall > len(totals)
        self.most = math.inf if needs.whole else 1.5 * CHUNK / needs.held
        self.k = _known(job)
        self.across = self.k.across = OverallKnown([tuple(x.to(job.device) for x in sums) for sums in totals])
        self.is_plain = not self.k.skips


def _name(job: Job) -> str:
    """The parameter's own name where the group has names, its place in the group, and its shape."""
    place = next(i for i, p in enumerate(job.group["params"]) if p is job.leaf)
    names = job.group.get("param_names")
    return f"{repr(names[place]) if names else f'{place} of its group'} of shape {tuple(job.leaf.shape)}"


def _known(job: Job) -> Known:
    k = Known(job.known)
    return cast_scalars(k, job.maths) if job.group["capturable"] else k


def _pieces(job: Job, most: float, k: Known) -> Iterator[tuple[int, Tensor, Tensor, dict[str, Tensor]]]:
    """The parameter, gradient and state, at once or flat in storage order, piece by piece, each with its first place."""
    p, g = values_of(job)
    s = {name: real(job.state[name]) for name in job.resting}
    alike = all(
        slot.per_block or (slot.like_parameter and s[name].stride() == p.stride()) for name, slot in job.resting.items()
    ) and (p.is_contiguous() or not job.rests.in_order)
    if p.numel() <= most or not alike or not is_dense(p):
        if alike:
            p, g, s = job.seen(p), job.seen(g), {name: _seen(job, name, t) for name, t in s.items()}
        k.measure(job.whole if job.layout else tuple(p.shape))
        yield 0, p, g, s
        return
    k.measure(job.whole if job.layout else tuple(p.shape))
    p, g, s = flatten(p), flatten(g), {name: flatten(t) for name, t in s.items()}
    length = job.rests.length or 1
    count = round(1.5 * p.numel() / most)
    piece = math.ceil(p.numel() / count / length) * length
    cut = [t.split(piece // (job.resting[name].per_block or 1)) for name, t in s.items()]
    for i, (p_part, g_part, *parts) in enumerate(zip(p.split(piece), g.split(piece), *cut, strict=True)):
        yield i * piece, p_part, g_part, dict(zip(s, parts, strict=True))


def _seen(job: Job, name: str, t: Tensor) -> Tensor:
    return job.seen(t) if job.resting[name].like_parameter else t


class _Apart(Across):
    """Answers the sums over processes that are known; pauses the text at the first one that is not."""

    def __init__(self, job: Job, known: Sequence[tuple[Tensor, ...]]) -> None:
        self.job = job
        self.known = known
        self.asked = 0

    def own(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        if not any(self.job.crossed(d) for d in dims):
            return partials
        return self._next(lambda: partials, dims)

    def overall(self, begin: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        return self._next(begin, None)

    def _next(self, begin: Callable[[], tuple[Any, ...]], dims: tuple[Dims, ...] | None) -> tuple[Any, ...]:
        if self.asked == len(self.known):
            raise Pause(begin(), dims)
        self.asked += 1
        return self.known[self.asked - 1]


def carry(rule: type[Rule], job: Job) -> Carrier:
    """Carry a job in pieces over one step; the text runs anew, on copies, each time that sums have come."""
    k, known = _known(job), list[tuple[Tensor, ...]]()
    (_, p, g, s), *_ = _pieces(job, math.inf, k)
    while True:
        k.across = _Apart(job, known)
        try:
            stored = advanced(rule, job.rests, job.maths, p, g, s, k, job.dice(), apart=True)
            break
        except Pause as pause:
            scope: Scope = "own" if pause.dims else "overall"
            dims = pause.dims or (None,) * len(pause.partials)
            known.append(tuple((yield Ask(scope, job, list(pause.partials), dims))))
    put(stored, k)
    job.done = True


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


def partial_sums(rule: type[Rule], job: Job, k: Known) -> tuple[Any, ...]:
    """The partial sums of the first round over all tensors that is not known yet; nothing is changed."""
    if job.is_plain:
        value, g, load = job.param, resolved(job.grad), job.state.__getitem__
    else:
        p, g = values_of(job)
        resting = {name: real(job.state[name]) for name in job.resting}
        value, load = job.rests.parameter(p, resting, job.maths), partial(_slot, job, p, resting)
    k.measure(tuple(value.shape))
    try:
        advance(rule, value, g.to(job.maths), Scratch(job.slots, load), k)
    except Pause as pause:
        return tuple(pause.partials)
    raise AssertionError(f"{rule.__name__} asks for fewer sums than it did on trial")


def _slot(job: Job, p: Tensor, resting: Mapping[str, Tensor], name: str) -> Tensor:
    return job.rests.slot(name, p, resting, job.maths)
