"""State in the host's memory for parameters on an accelerator."""

from __future__ import annotations

import torch
from torch import Tensor


def is_far(p: Tensor) -> bool:
    """Whether the host's memory is another one than the parameter's."""
    return p.device.type != "cpu"


def on_host(x: Tensor) -> Tensor:
    """A copy in the host's memory, from where an accelerator fetches it without waiting."""
    if x.device.type == "cpu":
        return x
    there = torch.empty_like(x, device="cpu", pin_memory=x.device.type == "cuda")
    return there.copy_(x)
