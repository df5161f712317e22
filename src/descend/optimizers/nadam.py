"""NAdam: Adam with Nesterov's momentum and a momentum schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import COUPLED_DECAY, Common
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.optimizers.adam import bias_correction, moments
from descend.terms import Quotient, adam_ratio, blend


class NAdam(Optimizer):
    """NAdam as torch has it.

    ::

        μₜ = β₁(1 − ½·0.96^(t·momentum_decay)),  Pₜ = ∏ μ
        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·[(1−μₜ)/(1−Pₜ)·g + μₜ₊₁/(1−Pₜμₜ₊₁)·m]/(√v̂ + eps)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decay, ≥ 0.
        momentum_decay: how fast the momentum approaches β₁, ≥ 0.
        decoupled_weight_decay: decay the parameter by lr·weight_decay rather than adding to the gradient.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = NAdam(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016.
    """

    carried: ClassVar[Mapping[str, float]] = {"mu_product": 1.0}
    foreign_names: ClassVar[Mapping[str, str | None]] = {"m_schedule": "mu_product"}

    def __init__(
        self,
        params: Any,
        lr: Lr = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        momentum_decay: NonNegative = 4e-3,
        decoupled_weight_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {**bias_correction(t, h), **momentum_schedule(t, h.betas[0], h.momentum_decay, c)}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_weight_decay else "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        moments(g, s, k)
        return adam_ratio(blend(s.exp_avg, g, k.share_g), s.exp_avg_sq, k.debias2, k.eps)


class Nadam(NAdam):
    """NAdam as timm had it: NAdam with the older name of its schedule and coupled decay.

    ::

        g ← g + weight_decay·p
        μₜ = β₁(1 − ½·0.96^(t·schedule_decay)),  Pₜ = ∏ μ
        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·[(1−μₜ)/(1−Pₜ)·g + μₜ₊₁/(1−Pₜμₜ₊₁)·m]/(√v̂ + eps)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        schedule_decay: how fast the momentum approaches β₁, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Nadam(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016.
    """

    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        schedule_decay: NonNegative = 4e-3,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(self, params, own(locals()), **common)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {**bias_correction(t, h), **momentum_schedule(t, h.betas[0], h.schedule_decay, c)}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"


def momentum_schedule(t: Any, beta1: Any, decay: Any, c: Any) -> dict[str, Any]:
    """The gradient's share in NAdam's step, and the sum of its and of its average's; carries the product of momenta."""
    now = beta1 * (1 - 0.5 * 0.96 ** (t * decay))
    ahead = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * decay))
    c.mu_product = c.mu_product * now
    of_gradient, of_average = (1 - now) / (1 - c.mu_product), ahead / (1 - c.mu_product * ahead)
    return {"share_g": of_gradient / (of_gradient + of_average), "gain": of_gradient + of_average}
