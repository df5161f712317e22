"""A registry of optimizers that note what the factory passes, and parameters for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from descend.catalogue import OptimInfo, OptimizerRegistry


class Recorder(torch.optim.Optimizer):
    """Takes any option and moves nothing: `defaults` are the keyword arguments that the factory passed."""

    def __init__(self, params: Any, lr: float | None = 0.25, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})

    def step(self, closure: Any = None) -> None:
        pass


class NoDefaultRate(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})


def of_recorders() -> OptimizerRegistry:
    registry = OptimizerRegistry()
    registry.register(OptimInfo("plain", Recorder, "Everything off", has_eps=False))
    registry.register(OptimInfo("heavy", Recorder, "Momentum", has_eps=False, has_momentum=True))
    registry.register(OptimInfo("pair", Recorder, "Two betas", has_betas=True, defaults={"eps": 1e-3, "warm": True}))
    registry.register(OptimInfo("triple", Recorder, "Three betas", has_betas=True, num_betas=3))
    registry.register(OptimInfo("undecayed", Recorder, "No decay", has_weight_decay=False))
    registry.register(OptimInfo("norate", NoDefaultRate, "lr required", has_eps=False))
    registry.register(OptimInfo("apart", "no_such_package.optim.Apart", "Not installed"))
    registry.register_alias("second", "plain")
    return registry


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(8, 6)), nn.Parameter(torch.ones(3))]
