"""How often each parameter has moved."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from descend.engine.job import Job


class Counters:
    """The step counters on the host as views of one tensor: one read sees all, one addition counts all."""

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] = []
        self._pointers: list[int] = []
        self._values = torch.zeros(0, device="cpu")

    def read(self, jobs: Sequence[Job]) -> list[float]:
        """The steps that these parameters have taken."""
        states = [job.home for job in jobs]
        same = len(states) == len(self._states) and all(map(operator.is_, states, self._states))
        if not same or _pointers(states) != self._pointers:
            self._take(states)
        values: list[float] = self._values.tolist()
        return values

    def _take(self, states: list[dict[str, Any]]) -> None:
        values = torch.stack([state["step"] for state in states]) if states else torch.zeros(0, device="cpu")
        for state, view in zip(states, values.unbind(), strict=True):
            state["step"] = view
        self._values, self._pointers, self._states = values, _pointers(states), states

    def count(self, jobs: list[Job]) -> None:
        """Count the step of parameters that have moved, and keep what their scalars carry to the next."""
        on_device = [job for job in jobs if job.group["capturable"]]
        on_host = [job for job in jobs if not job.group["capturable"]] if on_device else jobs
        if on_host:
            if len(on_host) == len(self._states):
                self._values.add_(1)
            else:
                torch._foreach_add_([job.home["step"] for job in on_host], 1)
            for name in on_host[0].carried:
                held = [job.home[name] for job in on_host]
                torch._foreach_zero_(held)
                torch._foreach_add_(held, [job.carried[name] for job in on_host])
        if on_device:
            _count_on_device(on_device)


def _pointers(states: list[dict[str, Any]]) -> list[int]:
    return list(map(Tensor.data_ptr, map(operator.itemgetter("step"), states)))


def _count_on_device(jobs: list[Job]) -> None:
    """The same without a look at any number; steps that a GradScaler skips don't count."""
    skipped = jobs[0].known.get("found_inf")
    steps = [job.home["step"] for job in jobs]
    torch._foreach_add_(steps, 1)
    if skipped is not None:
        torch._foreach_sub_(steps, [skipped.float()] * len(steps))
    for name in jobs[0].carried:
        held, values = [job.home[name] for job in jobs], [job.carried[name] for job in jobs]
        if skipped is not None:
            values = [torch.where(skipped > 0, before, value) for before, value in zip(held, values, strict=True)]
        torch._foreach_copy_(held, values)
