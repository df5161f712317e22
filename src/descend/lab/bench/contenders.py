"""This package's optimizers as the bench makes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from descend.engine.optimizer import Optimizer
from descend.lab.names import created

EXECUTORS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
}
LR, WEIGHT_DECAY = 1e-4, 1e-2


def ours(rule: str, params: Sequence[nn.Parameter], executor: str | None = None) -> Optimizer:
    """Our optimizer of a name, with the options that every contender gets."""
    return created(rule, params, LR, WEIGHT_DECAY, **EXECUTORS.get(executor or "", {}))
