"""How a rule runs over many parameters: one after another, as multi-tensor operations, or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from descend.engine.executors import foreach, fused, loop
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
    plans = [
        (execute, [job for job in jobs if not job.done and chosen(rule, job) == name])
        for name, execute in (("loop", loop.run), ("foreach", foreach.run), ("fused", fused.run))
    ]
    totals: Totals = []
    while any(not job.done for job in jobs):
        partials: list[tuple[Any, ...]] = []
        for execute, mine in plans:
            partials += execute(rule, [job for job in mine if not job.done], totals)
        if partials:
            totals.append(tuple(_add_up(parts) for parts in zip(*partials, strict=True)))


def chosen(rule: type[Optimizer], job: Job) -> Literal["loop", "foreach", "fused"]:
    """How this parameter is carried: as its group asks, else as torch decides for the device."""
    if job.group["fused"]:
        return "fused"
    wanted = job.group["foreach"]
    if wanted is None:
        native = type(job.param) in (Tensor, torch.nn.Parameter)
        wanted = native and job.param.device.type in ("cuda", "xpu")
    return "foreach" if wanted and not profile(rule, job).shaped else "loop"


def _add_up(parts: Sequence[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.stack([part.to(device) for part in parts]).sum()
