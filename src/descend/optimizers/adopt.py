"""ADOPT: Adam that divides by the second moment as it was before this gradient."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import Common
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.update import decay_amount
from descend.terms import choose, ema, ema_sq


class Adopt(Optimizer):
    """ADOPT, which converges with any β₂.

    ::

        u = clamp(g/max(√v, eps), ±(t−1)^clip_exp)
        m ← β₁m + (1−β₁)u
        p ← p − lr·m
        v ← β₂v + (1−β₂)g²

    The first step sets v to g² and does nothing else.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: least denominator, ≥ 0.
        clip_exp: exponent of the growing clip; None: no clip.
        weight_decay: decay, ≥ 0; added to the gradient unless ``decoupled``.
        decoupled: decay the parameter by lr·weight_decay.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adopt(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Taniguchi et al., ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate, 2024, arXiv 2411.02853.
        The exponent of the clip is timm's 0.333; the authors' code has 0.25.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.9999),
        eps: NonNegative = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: WeightDecay = 0.0,
        decoupled: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        started = choose(t == 1, 0.0, 1.0)
        scalars = {
            "weight1": (1 - h.betas[0]) * started,
            "weight2": choose(t == 1, 1.0, 1 - h.betas[1]),
            "gain": started,
            "started": started,
        }
        if h.clip_exp is not None:
            scalars["bound"] = choose(t == 1, 0.0, (t - 1) ** h.clip_exp)
        if h.decoupled:
            scalars["decay_amount"] = decay_amount(h) * started
        return scalars

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled else "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        u = g / torch.sqrt(s.exp_avg_sq).clamp_min_(k.eps)
        if k.clip_exp is not None:
            u.clamp_(-k.bound, k.bound)
        ema(s.exp_avg, u, k.weight1)
        ema_sq(s.exp_avg_sq, g, k.weight2)
        return s.exp_avg
