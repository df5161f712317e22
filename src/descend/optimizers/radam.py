"""RAdam: Adam whose adaptive step waits until its variance is known."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import Common
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.optimizers.adam import bias_correction, moments
from descend.terms import Quotient, adam_ratio, choose, either, rectify


class RAdam(Optimizer):
    """RAdam, rectified Adam.

    ::

        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·r·m̂·√(1−β₂ᵗ)/(√v + eps)    where ρ > 5
        p ← p − lr·m̂                           elsewhere

    with the length ρ of the average and its rectification r of :func:`descend.terms.rectify`.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decay, ≥ 0.
        decoupled_weight_decay: decay the parameter by lr·weight_decay, as in the paper and in timm before 1.0.12.
            False adds weight_decay·p to the gradient, as torch does by default.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = RAdam(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020, arXiv 1908.03265.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        *,
        decoupled_weight_decay: Annotated[bool, ActsWith("weight_decay")] = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        rho, r = rectify(t, h.betas[1])
        gain = corrected["debias1"] * choose(rho > 5, r / corrected["debias2"], 1.0)
        return {**corrected, "trusted": choose(rho > 5, 1.0, 0.0), "gain": gain}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_weight_decay else "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | Quotient:
        moments(g, s, k)
        return either(k.trusted, adam_ratio(s.exp_avg, s.exp_avg_sq, 1.0, k.eps), s.exp_avg)
