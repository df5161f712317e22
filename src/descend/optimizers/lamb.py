"""LAMB: Adam with a trust ratio for every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer, Reach
from descend.engine.options import OWN_STEP, Common, if_decoupled
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, Positive, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.optimizers.adam import bias_correction
from descend.terms import Quotient, accumulate, adam_ratio, clip_ratio, either, ema_sq, trust_ratio


class Lamb(Optimizer):
    """LAMB, layer-wise adaptive moments.

    ::

        g ← g / max(1, ‖all gradients‖/max_grad_norm)
        m ← β₁m + β₃g,  β₃ = 1 − β₁ with grad_averaging, else 1
        v ← β₂v + (1−β₂)g²
        u = m̂/(√v̂ + eps) + weight_decay·p
        p ← p − lr·u·‖p‖/‖u‖                 where both norms are positive

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        bias_correction: divide the averages by 1 − βᵗ.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decay, ≥ 0. At 0 the trust ratio is off unless ``always_adapt``, as in timm.
        grad_averaging: weigh the gradient by 1 − β₁ in the first average.
        max_grad_norm: the norm that the gradients of all tensors together are clipped to, > 0; None: no clipping.
        trust_clip: let the trust ratio be at most 1.
        always_adapt: use the trust ratio without weight decay too.
        decoupled_decay: decay the parameter before the norms are taken, rather than adding to u.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Lamb(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020, arXiv 1904.00962.
        Steps are counted for each parameter; timm counts them for each group.
    """

    acts_with: ClassVar = if_decoupled("decoupled_decay")
    refused: ClassVar[Mapping[str, str]] = OWN_STEP
    waits_for_all: ClassVar[str] = "set max_grad_norm=None, which otherwise is the norm of all gradients together"

    reach: ClassVar[Reach] = "tensor"

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        bias_correction: bool = True,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-6,
        weight_decay: WeightDecay = 0.01,
        grad_averaging: bool = True,
        max_grad_norm: Positive | None = 1.0,
        trust_clip: Annotated[bool, ActsWith("weight_decay") | ActsWith("always_adapt")] = False,
        always_adapt: Annotated[bool, ActsWith(weight_decay=0)] = False,
        *,
        decoupled_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        if not h.bias_correction:
            corrected |= {"debias1": 1.0, "debias2": 1.0}
        adapts = 1.0 if h.weight_decay != 0 or h.always_adapt else 0.0
        return {**corrected, "weight3": 1 - h.betas[0] if h.grad_averaging else 1.0, "adapts": adapts}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_decay else "direction"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        if k.max_grad_norm is not None:
            g = g / clip_ratio(k.overall_norm(g), k.max_grad_norm)
        accumulate(s.exp_avg, k.beta1, g, k.weight3)
        ema_sq(s.exp_avg_sq, g, k.weight2)
        return adam_ratio(s.exp_avg, s.exp_avg_sq, k.debias2, k.eps) * k.debias1

    @staticmethod
    def rescale(p: Tensor, u: Tensor, k: Known) -> Any:
        ratio = trust_ratio(*k.norms(p, u))
        if k.trust_clip:
            ratio = torch.clamp(ratio, max=1.0)
        return either(k.adapts, ratio, 1.0)
