"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.executors import foreach, loop
from descend.engine.executors.profile import profile
from descend.engine.job import Job

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer

Totals = list[tuple[Tensor, ...]]
Executor = Callable[[type["Optimizer"], Sequence[Job], Totals], list[tuple[Any, ...]]]


def run(rule: type[Optimizer], jobs: Sequence[Job]) -> None:
    """Carry all jobs over one step, in as many passes as the rule asks for sums over all tensors."""
    for job in jobs:
        if job.param.numel() == 0:
            job.finish()
    plans: list[tuple[Executor, list[Job]]] = [
        (loop.run, [job for job in jobs if not job.done and not uses_foreach(rule, job)]),
        (foreach.run, [job for job in jobs if not job.done and uses_foreach(rule, job)]),
    ]
    totals: Totals = []
    while any(not job.done for job in jobs):
        partials: list[tuple[Any, ...]] = []
        for execute, mine in plans:
            partials += execute(rule, [job for job in mine if not job.done], totals)
        if partials:
            totals.append(tuple(_add_up(parts) for parts in zip(*partials, strict=True)))


def uses_foreach(rule: type[Optimizer], job: Job) -> bool:
    """Whether this parameter goes through multi-tensor operations: as asked, else as torch decides for the device."""
    if profile(rule, job).shaped:
        return False
    wanted = job.group["foreach"]
    if wanted is None:
        return type(job.param) in (Tensor, torch.nn.Parameter) and job.param.device.type in ("cuda", "xpu")
    return bool(wanted)


def _add_up(parts: Sequence[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.stack([part.to(device) for part in parts]).sum()
