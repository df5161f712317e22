"""MARS: variance-reduced gradients for AdamW and for Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer, Reach
from descend.engine.options import OWN_DECAY, OWN_STEP, Common
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.update import shape_direction
from descend.optimizers.adam import moments
from descend.terms import assign, choose, clip_ratio, ema, ema_sq, plus, root


class Mars(Optimizer):
    """MARS, make variance reduction shine.

    ::

        c = g + gamma·β₁/(1−β₁)·(g − g'),   c ← c/max(1, ‖c‖)          c = g at the first step
        m ← β₁m + (1−β₁)c
        v ← β₂v + (1−β₂)c²
        p ← p − lr·weight_decay·p − lr·m̂/(√v̂ + eps),   or lr·sign(m) with mars_type "lion"

    Parameters of fewer than two dimensions take AdamW's step unless ``optimize_1d``.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        gamma: how much of the change of the gradient is added, ≥ 0.
        mars_type: "adamw" or "lion".
        optimize_1d: reduce the variance of vectors too.
        lr_1d_factor: factor on lr for vectors, ≥ 0; acts without ``optimize_1d``.
        betas_1d: decay rates for vectors, each in [0, 1); None: betas. Acts without ``optimize_1d``.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` masks m before it is divided, as in timm.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Mars(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Yuan et al., MARS: Unleashing the Power of Variance Reduction for Training Large Models, 2024,
        arXiv 2411.10438.
    """

    refused: ClassVar[Mapping[str, str]] = {**OWN_DECAY, **OWN_STEP}

    reach: ClassVar[Reach] = "tensor"
    own_stages: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: Lr = 3e-3,
        betas: Betas = (0.9, 0.99),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        gamma: NonNegative = 0.025,
        mars_type: Literal["adamw", "lion"] = "adamw",
        optimize_1d: bool = False,
        lr_1d_factor: Annotated[NonNegative, ActsWith(optimize_1d=False)] = 1.0,
        betas_1d: Betas | None = None,
        **common: Unpack[Common],
    ) -> None:
        betas_1d = betas_1d or betas
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        return {"reduces": bool(h.optimize_1d or p.dim() >= 2)}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive(), "last_grad": signed()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        (beta1, beta2), (vector1, vector2) = h.betas, h.betas_1d or h.betas
        return {
            "change": choose(t == 1, 0.0, h.gamma * beta1 / (1 - beta1)),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "debias1": 1 / (1 - beta1**t),
            "debias2": (1 - beta2**t) ** -0.5,
            "vector_weight1": 1 - vector1,
            "vector_weight2": 1 - vector2,
            "vector_debias1": 1 / (1 - vector1**t),
            "vector_debias2": (1 - vector2**t) ** -0.5,
        }

    @staticmethod
    def decay(h: Any) -> Decay:
        return "direction"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        if not k.reduces:
            moments(g, s, k, (k.vector_weight1, k.vector_weight2))
            m = shape_direction(s.exp_avg, g, k)
            assign(s.last_grad, g)
            return m * k.vector_debias1 / root(s.exp_avg_sq, k.vector_debias2, k.eps)
        c = plus(g, g - s.last_grad, k.change)
        c = c / clip_ratio(k.norm(c), 1.0)
        assign(s.last_grad, g)
        m = shape_direction(ema(s.exp_avg, c, k.weight1), g, k)
        if k.mars_type == "lion":
            return torch.sign(m)
        ema_sq(s.exp_avg_sq, c, k.weight2)
        return m * k.debias1 / root(s.exp_avg_sq, k.debias2, k.eps)

    @staticmethod
    def rescale(p: Tensor, u: Tensor, k: Known) -> Any:
        return 1.0 if k.reduces else k.lr_1d_factor
