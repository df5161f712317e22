"""Adan: Adam with the change of the gradient as a third average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import OWN_STEP, Common
from descend.engine.ranges import ActsWith, Beta, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.update import decay_amount, shape_direction
from descend.terms import Quotient, accumulate, adam_ratio, assign, choose, ema, ema_sq, plus, scale


class Adan(Optimizer):
    """Adan, adaptive Nesterov momentum.

    ::

        d = g − g',  0 at the first step
        m ← β₁m + (1−β₁)g
        δ ← β₂δ + (1−β₂)d
        n ← β₃n + (1−β₃)(g + β₂d)²
        u = [m/(1−β₁ᵗ) + β₂δ/(1−β₂ᵗ)]/(√(n/(1−β₃ᵗ)) + eps)
        p ← (p − lr·u)/(1 + lr·weight_decay),  or p(1 − lr·weight_decay) − lr·u with no_prox

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the three averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        no_prox: decay as AdamW does rather than by a proximal step.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` masks m only, as in timm.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adan(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Xie et al., Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, 2022,
        arXiv 2208.06677.
    """

    refused: ClassVar[Mapping[str, str]] = OWN_STEP

    own_stages: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: tuple[Beta, Beta, Beta] = (0.98, 0.92, 0.99),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        no_prox: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        averages = {"exp_avg": signed(), "exp_avg_sq": positive(), "exp_avg_diff": signed()}
        return {**averages, "neg_pre_grad": signed()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2, beta3 = h.betas
        weight = decay_amount(h)
        proximal = {} if h.no_prox else {"decay_factor": 1 / (1 + weight), "decay_amount": weight / (1 + weight)}
        return {
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "weight3": 1 - beta3,
            "debias1": 1 / (1 - beta1**t),
            "lead": beta2 * (1 - beta1**t) / (1 - beta2**t),
            "debias3": (1 - beta3**t) ** -0.5,
            "later": choose(t == 1, 0.0, 1.0),
            **proximal,
        }

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.no_prox else "after"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        change = scale(s.neg_pre_grad.add_(g), k.later)
        m = ema(s.exp_avg, g, k.weight1)
        ema(s.exp_avg_diff, change, k.weight2)
        ema_sq(s.exp_avg_sq, accumulate(change, k.beta2, g), k.weight3)
        assign(s.neg_pre_grad, g).neg_()
        ahead = plus(shape_direction(m, g, k), s.exp_avg_diff, k.lead)
        return adam_ratio(ahead, s.exp_avg_sq, k.debias3, k.eps) * k.debias1
