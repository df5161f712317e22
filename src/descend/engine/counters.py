"""How often each parameter has moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from descend.engine.job import Job
from descend.engine.placing import LARGEST_COUNT


def new_counters(counts: Sequence[float]) -> list[Tensor]:
    """Step counters on the host as views of one tensor, so that one read sees all and one addition counts all."""
    dtype = torch.float64 if any(count >= LARGEST_COUNT for count in counts) else torch.float32
    return list(torch.tensor(counts, dtype=dtype, device="cpu").unbind())


def as_counter(value: Any, device: torch.device | None = None) -> Tensor:
    """A step counter as it is, where it can count in place; a number, or a tensor of other dtype, as a new one.

    Raises:
        ValueError: if it is not one number.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
        counter = value.reshape(())
        return counter if device is None or counter.device == device else counter.to(device)
    try:
        return new_counters([float(value)])[0].to(device or "cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"state 'step' is {value!r}, expected one number: how often the parameter has moved") from None


class Counters:
    """The step counters of a plan's parameters on the host."""

    def __init__(self) -> None:
        self._pointers: list[int] = []
        self._together: Tensor | None = None

    def read(self, jobs: Sequence[Job]) -> list[float]:
        """The steps that these parameters have taken."""
        if not jobs:
            return []
        steps = [job.state["step"] for job in jobs]
        pointers = list(map(Tensor.data_ptr, steps))
        if pointers != self._pointers:
            self._pointers, self._together = pointers, _together(steps)
        values: list[float] = (torch.stack(steps) if self._together is None else self._together).tolist()
        if max(values) >= LARGEST_COUNT - 1 and _widen(jobs):
            self._pointers, self._together = [], None
        return values

    def count(self, jobs: Sequence[Job]) -> None:
        """Count the step of parameters that have moved, and keep what their scalars carry to the next."""
        on_device = [job for job in jobs if job.group["capturable"]]
        on_host = [job for job in jobs if not job.group["capturable"]] if on_device else jobs
        if on_host:
            if self._together is not None and len(on_host) == len(self._pointers):
                self._together.add_(1)
            else:
                torch._foreach_add_([job.state["step"] for job in on_host], 1)
            _carry(on_host)
        if on_device:
            _count_on_device(on_device)


def _together(steps: Sequence[Tensor]) -> Tensor | None:
    """One tensor of all counters, where they lie one after another."""
    first = steps[0]
    size, dtype = first.element_size(), first.dtype
    in_row = all(
        t.data_ptr() == first.data_ptr() + i * size and t.dtype == dtype and t.dim() == 0 for i, t in enumerate(steps)
    )
    same = in_row and all(t.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for t in steps)
    return first.as_strided((len(steps),), (1,)) if same else None


def _widen(jobs: Sequence[Job]) -> bool:
    """Let counters that float32 would stop go on in float64; whether there were any."""
    stopping = [
        job for job in jobs if job.state["step"].dtype != torch.float64 and job.state["step"] >= LARGEST_COUNT - 1
    ]
    for job in stopping:
        job.state["step"] = job.state["step"].double()
    return bool(stopping)


def _carry(jobs: Sequence[Job]) -> None:
    for name, some in _carrying(jobs):
        held = [job.state[name] for job in some]
        torch._foreach_zero_(held)
        torch._foreach_add_(held, [job.carried[name] for job in some])


def _carrying(jobs: Sequence[Job]) -> Iterator[tuple[str, list[Job]]]:
    """Each carried scalar, with the parameters whose rule carries it."""
    names = dict.fromkeys(name for rule in {job.rule: None for job in jobs} for name in rule.carried)
    return ((name, [job for job in jobs if name in job.carried]) for name in names)


def _count_on_device(jobs: Sequence[Job]) -> None:
    """The same without a look at any number; steps that a GradScaler skips don't count."""
    skipped = jobs[0].known.get("found_inf")
    steps = [job.state["step"] for job in jobs]
    torch._foreach_add_(steps, 1)
    if skipped is not None:
        torch._foreach_sub_(steps, [skipped.float()] * len(steps))
    for name, some in _carrying(jobs):
        held, values = [job.state[name] for job in some], [job.carried[name] for job in some]
        if skipped is not None:
            values = [torch.where(skipped > 0, before, value) for before, value in zip(held, values, strict=True)]
        torch._foreach_copy_(held, values)
