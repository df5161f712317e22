"""Compiling before the first step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from descend.engine.executors import chosen, fused
from descend.engine.executors.kernels import kernel, signature_of
from descend.engine.executors.tiled import is_written, kernels
from descend.engine.plan import Owner, trial_jobs
from descend.engine.unwrapped import unwrap


@dataclass(frozen=True)
class WarmUp:
    """What was compiled: for each kernel its description and the seconds it took."""

    kernels: tuple[tuple[str, float], ...]

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(seconds for _, seconds in self.kernels)

    def __str__(self) -> str:
        lines = [f"{seconds:6.2f} s  {what}" for what, seconds in self.kernels]
        return "\n".join([*lines, f"{self.seconds:6.2f} s  for {len(self.kernels)} kernels"])


@torch.no_grad()
def warm_up(optimizer: Owner) -> WarmUp:
    """Compile all kernels that the fused groups of an optimizer will need, without a step.

    Parameters that take gradients count, with gradients of their own dtype. State, parameters and step counters stay
    as they are. Kernels are shared by the whole process, so a second optimizer of the same kind finds them.

    Args:
        optimizer: an optimizer with ``fused=True``, or with groups that have it.

    Returns:
        What was compiled and how long each took; print it.
    """
    optimizer = unwrap(optimizer)  # type: ignore[type-var]
    jobs = [job for job in trial_jobs(optimizer) if chosen(job) == "fused"]
    signatures = {signature_of(job.rule, job) for job in jobs if fused.compiles(job.rule, job)}
    found = []
    for signature in signatures:
        for stage in range(len(signature.rounds) + 1):
            start = time.perf_counter()
            if is_written(signature):
                kernels(signature)[stage].compile_ahead(signature.device)
            else:
                kernel(signature, stage)
            found.append((signature.describe(stage), time.perf_counter() - start))
    return WarmUp(tuple(found))
