"""LaProp: Adam that normalises before it averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import OWN_STEP, Common
from descend.engine.ranges import Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.terms import accumulate, adam_ratio, choose, ema_sq


class LaProp(Optimizer):
    """LaProp, which separates momentum from adaptivity.

    ::

        v ← β₂v + (1−β₂)g²
        m ← β₁m + (1−β₁)·lr·g/(√v̂ + eps)
        l ← β₁l + (1−β₁)·lr
        p ← p − lr/l·m                      lr/l = 1/(1−β₁ᵗ) while lr is constant
        p ← p − lr·weight_decay·p

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = LaProp(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Ziyin, Wang, Ueda, LaProp: Separating Momentum and Adaptivity in Adam, 2020, arXiv 2002.04839.
    """

    refused: ClassVar[Mapping[str, str]] = OWN_STEP

    carried: ClassVar[Mapping[str, float]] = {"exp_avg_lr_1": 0.0}
    foreign_names: ClassVar[Mapping[str, str | None]] = {"exp_avg_lr_2": None}

    def __init__(
        self,
        params: Any,
        lr: Lr = 4e-4,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-15,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2 = h.betas
        c.exp_avg_lr_1 = c.exp_avg_lr_1 * beta1 + (1 - beta1) * h.lr
        moving = c.exp_avg_lr_1 != 0
        return {
            "weight2": 1 - beta2,
            "debias2": (1 - beta2**t) ** -0.5,
            "rate_inside": (1 - beta1) * h.lr,
            "step_size": choose(moving, h.lr / choose(moving, c.exp_avg_lr_1, 1.0), 0.0),
        }

    @staticmethod
    def decay(h: Any) -> Decay:
        return "after"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        ema_sq(s.exp_avg_sq, g, k.weight2)
        return accumulate(s.exp_avg, k.beta1, adam_ratio(g, s.exp_avg_sq, k.debias2, k.eps), k.rate_inside)
