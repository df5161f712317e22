"""One parameter's part of one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from descend.engine.slots import Slot


@dataclass(eq=False)
class Job:
    """A parameter with its gradient and state, and what its rule knows at this step.

    Attributes:
        param: the parameter; complex ones appear as pairs of reals in `value`.
        grad: its gradient, which is read only.
        state: the optimizer's own state dict of this parameter.
        slots: what the rule declared for it.
        group: the parameter group.
        known: scalars and flags for the text; jobs with the same dict can run as one batch.
        carried: the carried scalars after this step, written back once it is done.
    """

    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    slots: dict[str, Slot]
    group: dict[str, Any]
    known: dict[str, Any]
    carried: dict[str, Any]
    done: bool = field(default=False)

    @property
    def maths(self) -> torch.dtype:
        """The dtype that this parameter's arithmetic is done in."""
        return torch.float64 if self.param.dtype in (torch.float64, torch.complex128) else torch.float32

    def finish(self) -> None:
        """Count the step: the parameter has moved."""
        self.state["step"] += 1
        self.write_carried()
        self.done = True

    def write_carried(self) -> None:
        """Keep the carried scalars for the next step."""
        for name, value in self.carried.items():
            if isinstance(value, Tensor):
                self.state[name].copy_(value)
            else:
                self.state[name].fill_(value)


def real(x: Tensor) -> Tensor:
    """The tensor itself; a complex one as pairs of reals in the same memory."""
    return torch.view_as_real(x) if x.is_complex() else x


def values_of(job: Job) -> tuple[Tensor, Tensor]:
    """The parameter and its gradient as reals, the gradient in the parameter's memory layout."""
    p, g = real(job.param.detach()), real(job.grad.detach())
    if g.stride() != p.stride():
        g = torch.empty_like(p, dtype=g.dtype).copy_(g)
    return p, g
