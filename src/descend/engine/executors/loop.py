"""The reference executor: one parameter after another, large elementwise ones in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from descend.engine.context import AnsweredReducer, Dims, Known, NeedSums, State
from descend.engine.executors.profile import profile
from descend.engine.executors.sums import StepGenerator, SumRequest, Totals, over_all
from descend.engine.job import Job, flatten, is_dense, real, resolved, values_of
from descend.engine.update import apply_update, cast_scalars, commit, compute_update

# Elements of a piece, those of all tensors in hand together: many enough to hide the calls, few enough for the caches, and
# for the allocator to have temporaries at hand.
CHUNK = 1 << 21


def run(jobs: Sequence[Job], memory: dict[str, Any], totals: Totals = ()) -> list[StepGenerator]:
    """Carry the jobs of a rule over one step; generators of those that need sums from elsewhere.

    Args:
        jobs: of one rule.
        memory: nothing is kept.
        totals: sums over all tensors that are known already.
    """
    waiting = _move(jobs, totals)
    whole = [pair for pair in waiting if not pair[0].crosses]
    shards = [_steps([pair], totals) for pair in waiting if pair[0].crosses]
    return [_steps(whole, totals), *shards] if whole else shards


def _steps(waiting: list[tuple[Job, _Context]], answers: Totals) -> StepGenerator:
    """Ask for what whole parameters, or one shard, have to sum with others, until they have moved."""
    while waiting:
        asked = [_request(job, context) for job, context in waiting]
        parts, dims, first = [partials for partials, _ in asked], asked[0][1], waiting[0][0]
        request = over_all(first, parts) if dims is None else SumRequest("tensor", first, parts, dims)
        answers = [*answers, tuple((yield request))]
        waiting = _move([job for job, _ in waiting], answers)


def _move(jobs: Sequence[Job], answers: Totals) -> list[tuple[Job, _Context]]:
    """Carry the jobs over one step, except those that need more sums from elsewhere; these are returned."""
    waiting: list[tuple[Job, _Context]] = []
    contexts: dict[Any, _Context] = {}
    for job in jobs:
        key = id(job.known), job.ndim, job.units, job.device, job.layout and job.layout.sharded
        context = contexts.get(key)
        if context is None:
            context = contexts[key] = _Context(job, answers)
        if context.waits:
            waiting.append((job, context))
            continue
        k, g = context.k, job.grad
        context.reducer.asked = 0
        try:
            if job.is_plain and context.is_plain and g.dtype is job.compute_dtype and job.numel <= context.most:
                p = job.local_param
                if g.stride() == p.stride() or (g.is_contiguous() and p.is_contiguous()):
                    k.numel, k.ndim, k.shape = job.numel, job.ndim, job.shape
                    apply_update(job.rule, p, g, job.live, k)
                    job.done = True
                    continue
            for first, p, g, s in _pieces(job, context.most, k):
                context.reducer.asked = 0
                if job.is_plain and context.is_plain and g.dtype is job.compute_dtype:
                    apply_update(job.rule, p, g, State.of(s), k)
                else:
                    commit(
                        compute_update(
                            job.rule, job.storage, job.compute_dtype, p, g, s, k, job.rng(first), apart=k.skips
                        ),
                        k,
                    )
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise RuntimeError(f"{job.rule.__name__}: parameter {_name(job)}: {error}") from error
        job.done = True
    return waiting


class _Context:
    """What parameters that know the same have in common for the length of a pass.

    Attributes:
        waits: whether their text needs a sum from elsewhere that is not known yet.
        most: the elements that it may have in hand of a tensor.
        is_plain: whether it may work on the tensors themselves.
    """

    def __init__(self, job: Job, answers: Totals) -> None:
        needs = profile(job.rule, job)
        crosses = job.crossed if job.crosses else None
        asked = [s for s, dims in needs.rounds if s == "global" or (crosses is not None and any(map(crosses, dims)))]
        self.waits = len(asked) > len(answers)
        self.most = math.inf if needs.whole else 1.5 * CHUNK / needs.held
        self.k = _known(job)
        self.reducer = self.k.reducer = AnsweredReducer(
            [tuple(x.to(job.device) for x in sums) for sums in answers], crosses
        )
        self.is_plain = not self.k.skips


def _name(job: Job) -> str:
    """The parameter's own name where the group has names, its place in the group, and its shape."""
    place = next(i for i, p in enumerate(job.group["params"]) if p is job.param)
    names = job.group.get("param_names")
    return f"{repr(names[place]) if names else f'{place} of its group'} of shape {tuple(job.param.shape)}"


def _known(job: Job) -> Known:
    k = Known(job.known)
    return cast_scalars(k, job.compute_dtype) if job.group["capturable"] else k


def _pieces(job: Job, most: float, k: Known) -> Iterator[tuple[int, Tensor, Tensor, dict[str, Tensor]]]:
    """The parameter, gradient and state, at once or flat in storage order, piece by piece, each with its first place.

    Tensors without data need no pieces: there are no temporaries to bound, and a planned shard may have 2^41 elements.
    """
    p, g = values_of(job)
    s = {name: real(job.local_state[name]) for name in job.stored}
    alike = all(
        slot.per_block or (slot.like_parameter and s[name].stride() == p.stride()) for name, slot in job.stored.items()
    ) and (p.is_contiguous() or not job.storage.in_order)
    if p.numel() <= most or not alike or not is_dense(p) or p.is_meta:
        if alike:
            p, g, s = job.seen(p), job.seen(g), {name: _seen(job, name, t) for name, t in s.items()}
        k.measure(job.whole if job.layout else tuple(p.shape))
        yield 0, p, g, s
        return
    k.measure(job.whole if job.layout else tuple(p.shape))
    p, g, s = flatten(p), flatten(g), {name: flatten(t) for name, t in s.items()}
    length = job.storage.length or 1
    count = round(1.5 * p.numel() / most)
    piece = math.ceil(p.numel() / count / length) * length
    cut = [torch.split(t, piece // (job.stored[name].per_block or 1)) for name, t in s.items()]
    for i, (p_part, g_part, *parts) in enumerate(zip(torch.split(p, piece), torch.split(g, piece), *cut, strict=True)):
        yield i * piece, p_part, g_part, dict(zip(s, parts, strict=True))


def _seen(job: Job, name: str, t: Tensor) -> Tensor:
    return job.seen(t) if job.stored[name].like_parameter else t


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
        vars(self)[name] = value
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._names


def _request(job: Job, context: _Context) -> tuple[list[Tensor], tuple[Dims, ...] | None]:
    """What the text asks for after the sums that are known, and along which dimensions; nothing is changed."""
    k = context.k
    context.reducer.asked = 0
    if job.is_plain:
        p, g, load = job.local_param, resolved(job.grad), job.local_state.__getitem__
        k.measure(tuple(p.shape))
    else:
        (_, updated, g, s), *_ = _pieces(job, math.inf, k)
        p, load = job.storage.parameter(updated, s, job.compute_dtype), partial(_slot, job, updated, s)
    try:
        apply_update(job.rule, p.clone() if job.crosses else p, g.to(job.compute_dtype), Scratch(job.slots, load), k)
    except NeedSums as need:
        return list(need.partials), need.dims  # and not the exception, which holds the frames and their temporaries
    raise AssertionError(f"{job.rule.__name__} asks for fewer sums than it did on trial")


def _slot(job: Job, p: Tensor, stored: Mapping[str, Tensor], name: str) -> Tensor:
    return job.storage.slot(name, p, stored, job.compute_dtype)
