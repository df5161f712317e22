"""StableAdamW: AdamW whose learning rate falls where the second moment is out of date."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.options import Common
from descend.engine.ranges import Betas, Lr, Range, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.optimizers.adam import moments
from descend.terms import Quotient, adam_ratio, clip_ratio


class StableAdamW(Optimizer):
    """StableAdamW, AdamW with Adafactor's update clipping.

    ::

        m ← β̂₁m + (1−β̂₁)g
        v ← β̂₂v + (1−β̂₂)g²                         β̂ = β(1−βᵗ⁻¹)/(1−βᵗ), which needs no bias correction
        lrₜ = lr/max(1, RMS(g/max(√v, eps)))
        p ← p − lrₜ·weight_decay·p − lrₜ·m/(√v + eps)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, and its least value where lr is reduced, > 0.
        weight_decay: decoupled decay, in units of lrₜ, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = StableAdamW(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Wortsman et al., Stable and low-precision training for large-scale vision-language models, 2023,
        arXiv 2304.13013.
    """

    reach: ClassVar[Reach] = "tensor"

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.99),
        eps: Annotated[float, Range(gt=0, why="a gradient that was always zero is divided by it")] = 1e-6,
        weight_decay: WeightDecay = 1e-2,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2 = h.betas
        return {"weight1": (1 - beta1) / (1 - beta1**t), "weight2": (1 - beta2) / (1 - beta2**t)}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> tuple[Quotient, Any]:
        moments(g, s, k)
        slower = clip_ratio(k.rms(g / torch.sqrt(s.exp_avg_sq).clamp_min(k.eps)), 1.0)
        return adam_ratio(s.exp_avg, s.exp_avg_sq, 1.0, k.eps) * (1 / slower), k.decay_amount / slower
