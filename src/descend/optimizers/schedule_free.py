"""Schedule-free learning: the average of the iterates in place of a learning rate that falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.known import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import Common
from descend.engine.slots import Slot, position, positive
from descend.engine.text import shape_direction
from descend.terms import add_scaled, choose, either, ema, ema_sq, least, most, plus, rectify, root


class ScheduleFree(Optimizer):
    """What the schedule-free optimizers share: three points in place of one, and the switch between two of them.

    ::

        u = the direction at y                       y is where gradients are taken: the parameter in training
        z ← z − lrₜ·(u + weight_decay·y)
        x ← (1−cₜ)x + cₜz                            cₜ = wₜ/Σw, wₜ = tʳ·(largest lrₜ so far)^weight_lr_power
        y = (1−β)z + βx                              x is what is evaluated and saved: the parameter after eval()

    Only y or x, and z, are stored. A fresh optimizer is in training mode.
    """

    carried = {"weight_sum": 0.0, "lr_max": 0.0}
    refused = {"hyperball": "the averages of points on a sphere are inside it"}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"z": position(), "exp_avg_sq": positive()}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "own"

    @staticmethod
    def interpolation(h: Any) -> Any:
        """β, the weight of x in y."""
        return h.betas[0]

    @classmethod
    def check(cls, h: Any) -> None:  # type: ignore[override]
        if not 0 < cls.interpolation(h) < 1:
            raise ValueError(f"{_name(h)}={cls.interpolation(h)!r}, expected a number in (0, 1): the average is read from it")

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        u = shape_direction(cls.direction(p, g, s, k), g, k)
        decayed = p + p * torch.sign(p * u).clamp_max(0.0) if k.cautious_weight_decay else p
        u = plus(u, decayed, k.pull)
        ema(p, s.z, k.share)
        add_scaled(p, u, -k.step_y)
        add_scaled(s.z, u, -k.step_z)

    # ------------------------------------------------------------------ the two modes

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, in the mode of the others."""
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("train_mode", self.param_groups[0].get("train_mode", True))

    def train(self) -> None:
        """Put y, where gradients are taken, into the parameters. Call it before training goes on."""
        self._switch(True)

    def eval(self) -> None:
        """Put x, the average, into the parameters. Call it before the model is evaluated or saved.

        The running statistics of BatchNorm belong to y: before an evaluation, send some training batches through the
        model with ``model.train()`` and ``optimizer.eval()``.
        """
        self._switch(False)

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            beta = float(self.interpolation(_Options(group)))
            towards_z = 1 - beta if train else 1 - 1 / beta
            for p in group["params"]:
                if "z" in self.state.get(p, {}):
                    z = self.state[p]["z"]
                    p.copy_(p.to(z.dtype).lerp(z, towards_z))
            group["train_mode"] = train

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient by one step.

        Raises:
            RuntimeError: in evaluation mode, where the parameters are not the point that gradients belong to.
        """
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__}: step() after eval(), while the parameters hold the average; "
                "call optimizer.train() before training goes on"
            )
        return super().step(closure)
