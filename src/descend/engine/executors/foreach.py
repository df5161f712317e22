"""Multi-tensor execution: the same text on lists of tensors, in batches that are bounded in bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.executors import loop
from descend.engine.executors.profile import flags, profile
from descend.engine.job import Job, real, values_of
from descend.engine.known import Known, OverallKnown, Pause, State
from descend.engine.tensorlist import TensorList
from descend.engine.text import advance

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer

# What a batch's parameters may weigh; temporaries are a few times that, and never grow with the model.
BATCH_BYTES = 32 << 20


def run(rule: type[Optimizer], jobs: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> list[tuple[Any, ...]]:
    """Carry the jobs over one step, or as far as the first sum over all tensors that `totals` lacks."""
    partials: list[tuple[Any, ...]] = []
    for batch in _batches(jobs):
        if profile(rule, batch[0]).overall > len(totals):
            partials.append(_partial_sums(rule, batch, totals))
            continue
        _advance(rule, batch, totals)
        for job in batch:
            job.done = True
    return partials


def _batches(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that one call can serve: the same scalars, device, dtypes; in order, up to the bytes of a batch."""
    kinds: dict[Any, list[Job]] = {}
    for job in jobs:
        key = (id(job.known), job.param.device, job.param.dtype, job.grad.dtype, flags(job), tuple(job.slots))
        kinds.setdefault(key, []).append(job)
    for kind in kinds.values():
        batch: list[Job] = []
        weight = 0
        for job in kind:
            size = job.param.numel() * job.param.element_size()
            if batch and weight + size > BATCH_BYTES:
                yield batch
                batch, weight = [], 0
            batch.append(job)
            weight += size
        yield batch


def _advance(rule: type[Optimizer], batch: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> None:
    maths = batch[0].maths
    params, grads, slots = _gather(batch)
    p, g = _load(params, maths), _load(grads, maths)
    s = {name: _load(tensors, maths) for name, tensors in slots.items()}
    state = State({name: TensorList(tensors) for name, tensors in s.items()})
    advance(rule, TensorList(p), TensorList(g), state, _known(batch, totals))  # type: ignore[arg-type]
    _store(params, p)
    for name, tensors in slots.items():
        _store(tensors, s[name])


def _partial_sums(rule: type[Optimizer], batch: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> tuple[Any, ...]:
    """The batch's part of the first sums over all tensors that are not known yet; nothing is changed."""
    maths = batch[0].maths
    params, grads, slots = _gather(batch)
    p, g = TensorList(_load(params, maths)), TensorList(_load(grads, maths))
    state = loop.Scratch({name: TensorList(tensors) for name, tensors in slots.items()}, maths)
    try:
        advance(rule, p, g, state, _known(batch, totals))  # type: ignore[arg-type]
    except Pause as pause:
        return tuple(pause.partials)
    raise AssertionError(f"{rule.__name__} asks for fewer sums than it did on trial")


def _gather(batch: Sequence[Job]) -> tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]:
    """The batch's parameters, gradients and, slot by slot, its state."""
    values = [values_of(job) for job in batch]
    slots = {name: [real(job.state[name]) for job in batch] for name in batch[0].slots}
    return [p for p, _ in values], [g for _, g in values], slots


def _known(batch: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> Known:
    first = batch[0]
    there = [tuple(total.to(first.param.device) for total in sums) for sums in totals]
    known = {name: v.to(first.maths) if isinstance(v, Tensor) else v for name, v in first.known.items()}
    numel = tuple(float(real(job.param).numel()) for job in batch)
    return Known({**known, "numel": numel, "ndim": 1, "shape": ()}, OverallKnown(there))


def _load(tensors: Sequence[Tensor], maths: torch.dtype) -> list[Tensor]:
    return [t.to(maths) for t in tensors]


def _store(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    changed = [(t, v) for t, v in zip(tensors, values, strict=True) if t is not v]
    if changed:
        torch._foreach_copy_([t for t, _ in changed], [v for _, v in changed])
