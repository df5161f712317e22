"""State that is stored in the host's memory, and is on the parameters' device, batch by batch, for as long as a step takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from descend.engine.executors.sums import StepGenerator, Totals, over_all
from descend.engine.host import on_host
from descend.engine.job import Job, is_dense, real

#: Bytes of state in a batch, if not of one parameter. There is room for two, which stays: one arrives while the other is
#: worked on.
BATCH_BYTES = 64 << 20
_ALIGNED = 64

Begin = Callable[[list[Job], dict[str, Any], Totals], list[StepGenerator]]


def steps(jobs: Sequence[Job], memory: dict[str, Any], begin: Begin) -> StepGenerator:
    """Carry jobs of one rule whose state is on the host, batch by batch; once more for each sum over all tensors.

    Args:
        jobs: parameters on accelerators.
        memory: where batches are kept from step to step.
        begin: moves jobs whose state is on the device, given the sums that are known, and returns what asks for more.
    """
    totals: Totals = ()
    while parts := _pass(jobs, memory, begin, totals):
        totals = [*totals, tuple((yield over_all(jobs[0], parts)))]


def _pass(jobs: Sequence[Job], memory: dict[str, Any], begin: Begin, totals: Totals) -> list[list[Tensor]]:
    """Each batch as far as it comes with these sums; its part of the next."""
    parts: list[list[Tensor]] = []
    for device, batches in _batches(jobs, memory).items():
        streams = [_Stream(device, i) for i in range(2)]
        try:
            for i, batch in enumerate(batches):
                waiting = batch.waiting()
                if not waiting:
                    continue
                with streams[i % 2].running():
                    _fetch(waiting)
                    try:
                        asking = begin([staged for _, staged in waiting], batch.memory, totals)
                        parts += [part for generator in asking for part in next(generator).parts]
                    finally:
                        _put_back(waiting)
        finally:
            for stream in streams:
                stream.finish()
    return parts


@functools.cache
def _side_stream(device: torch.device, i: int) -> torch.cuda.Stream:
    """The same ones always: the allocator keeps what it freed by stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Stream:
    """A queue of an accelerator in which copies and kernels follow one another; elsewhere they do so anyway."""

    def __init__(self, device: torch.device, i: int) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._outer = torch.cuda.current_stream(device)
            self._inner = _side_stream(device, i)
            self._inner.wait_stream(self._outer)

    def running(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._inner) if self._cuda else nullcontext()

    def finish(self) -> None:
        """Let others see what was done: the next kernels, and the host, whose memory was written."""
        if self._cuda:
            self._outer.wait_stream(self._inner)
            self._inner.synchronize()


class _Batch:
    """Parameters with state on the host, and the room for it on the device."""

    def __init__(self, jobs: list[Job], room: Tensor) -> None:
        self.jobs = jobs
        self.memory: dict[str, Any] = {}
        self._staged = []
        self._strides = [job.local_param.stride() for job in jobs]
        at = 0
        for job in jobs:
            state = {}
            for name in job.stored:
                state[name] = _view(room, at, job.local_state[name])
                at += _room(job.local_state[name])
            self._staged.append(replace(job, local_state=state))

    def is_stale(self) -> bool:
        """Whether parameters have come to lie otherwise in memory, as their state has to."""
        return any(job.local_param.stride() != stride for job, stride in zip(self.jobs, self._strides, strict=True))

    def waiting(self) -> list[tuple[Job, Job]]:
        """The jobs that are not done, each with the one whose state is on the device."""
        return [(job, staged) for job, staged in zip(self.jobs, self._staged, strict=True) if not job.done]


def _fetch(waiting: Sequence[tuple[Job, Job]]) -> None:
    for job, staged in waiting:
        staged.grad, staged.known, staged.carried, staged.group = job.grad, job.known, job.carried, job.group
        staged.done = False
        for name in job.stored:
            staged.local_state[name].copy_(job.local_state[name], non_blocking=True)


def _put_back(waiting: Sequence[tuple[Job, Job]]) -> None:
    for job, staged in waiting:
        del staged.grad
        job.done = staged.done
        if job.done:
            for name in job.stored:
                job.local_state[name].copy_(
                    staged.local_state[name], non_blocking=job.local_param.device.type == "cuda"
                )


def _batches(jobs: Sequence[Job], memory: dict[str, Any]) -> dict[torch.device, list[_Batch]]:
    """The jobs in batches, as before where parameters lie as they did."""
    batches: dict[torch.device, list[_Batch]] | None = memory.get("batches")
    if batches is not None and not any(batch.is_stale() for some in batches.values() for batch in some):
        return batches
    batches = {}
    for device in dict.fromkeys(job.local_param.device for job in jobs):
        cut = list(_cut([job for job in jobs if job.local_param.device == device]))
        most = max(sum(map(_weight, some)) for some in cut)
        rooms = [torch.empty(most, dtype=torch.uint8, device=device) for _ in cut[:2]]
        batches[device] = [_Batch(some, rooms[i % 2]) for i, some in enumerate(cut)]
    memory["batches"] = batches
    return batches


def _cut(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    batch: list[Job] = []
    weight = 0
    for job in jobs:
        _lay_as_parameter(job)
        if batch and weight + _weight(job) > BATCH_BYTES:
            yield batch
            batch, weight = [], 0
        batch.append(job)
        weight += _weight(job)
    yield batch


def _lay_as_parameter(job: Job) -> None:
    """Give the state the parameter's memory layout, which it can lack after a checkpoint from elsewhere."""
    p = job.local_param.detach()
    for name, slot in job.stored.items():
        if slot.like_parameter and real(job.local_state[name]).stride() != real(p).stride():
            there = {part: t.to(p.device) for part, t in job.local_state.items() if part in job.stored}
            for part, t in job.storage.laid_as(p, name, there, job.stored).items():
                job.hold(part, on_host(t))


def _weight(job: Job) -> int:
    return sum(_room(job.local_state[name]) for name in job.stored)


def _room(t: Tensor) -> int:
    return -(-t.nbytes // _ALIGNED) * _ALIGNED


def _view(room: Tensor, at: int, like: Tensor) -> Tensor:
    """A tensor in this room, as `like` is."""
    flat = room[at : at + like.nbytes].view(like.dtype)
    return flat.as_strided(like.shape, like.stride()) if is_dense(like) else flat.view(like.shape)
