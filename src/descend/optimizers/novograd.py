"""NovoGrad: one second moment a tensor."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer, Reach
from descend.engine.options import Common, if_decoupled
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, signed
from descend.terms import accumulate, add_scaled, running_max


class NvNovoGrad(Optimizer):
    """NovoGrad, normalised gradients with a second moment for every tensor.

    ::

        v ← β₂v + (1−β₂)‖g‖²,            v = ‖g‖² while v is 0
        g ← g/(√v + eps) + weight_decay·p
        m ← β₁m + g,                     or β₁m + (1−β₁)g with grad_averaging
        p ← p − lr·m

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decay inside the momentum, ≥ 0.
        grad_averaging: weigh the gradient by 1 − β₁.
        amsgrad: divide by the largest v so far.
        decoupled_decay: decay the parameter by lr·weight_decay instead.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = NvNovoGrad(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Ginsburg et al., Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks,
        2019, arXiv 1905.11286.
    """

    acts_with: ClassVar = if_decoupled("decoupled_decay")
    reach: ClassVar[Reach] = "tensor"

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.95, 0.98),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        grad_averaging: bool = False,
        amsgrad: bool = False,
        *,
        decoupled_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        averages = {"exp_avg": signed(), "exp_avg_sq": Slot("positive", reduce="all")}
        return {**averages, "max_exp_avg_sq": Slot("positive", reduce="all")} if h.amsgrad else averages

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"weight1": 1 - h.betas[0] if h.grad_averaging else 1.0}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_decay else "own"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        g_norm = k.norm(g)
        g_sq = g_norm * g_norm
        v = s.exp_avg_sq
        v.copy_(torch.where(v > 0, v * k.beta2 + g_sq * (1 - k.beta2), g_sq))
        if k.amsgrad:
            v = running_max(s.max_exp_avg_sq, v)
        accumulate(s.exp_avg, k.beta1, g, k.weight1 / (torch.sqrt(v) + k.eps))
        return add_scaled(s.exp_avg, p, k.weight1 * k.weight_decay) if k.decay == "own" else s.exp_avg
