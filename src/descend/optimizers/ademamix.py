"""AdEMAMix: AdamW with a second, much slower momentum."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer
from descend.engine.options import Common
from descend.engine.ranges import ActsWith, Beta, Lr, NonNegative, Positive, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.terms import Quotient, adam_ratio, choose, ema, ema_sq, least, plus


class AdEMAMix(Optimizer):
    """AdEMAMix, a mixture of two averages of the gradient.

    ::

        m₁ ← β₁m₁ + (1−β₁)g
        m₂ ← β₃m₂ + (1−β₃)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·weight_decay·p − lr·(m̂₁ + alpha·m₂)/(√v̂ + eps)      m̂₁ = m₁/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)

    Over alpha_warmup steps alpha grows linearly from 0; over beta3_warmup steps the half-life of m₂ grows linearly from
    that of m₁.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of m₁, v and m₂, each in [0, 1).
        alpha: weight of the slow average, ≥ 0; 2 to 8 in the paper.
        beta3_warmup: steps in which β₃ grows, > 0; None: off. The paper takes all steps of the training.
        alpha_warmup: steps in which alpha grows, > 0; None: off. The paper takes all steps of the training.
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = AdEMAMix(layer.parameters(), lr=1e-2, alpha_warmup=1000, beta3_warmup=1000)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Pagliardini et al., The AdEMAMix Optimizer: Better, Faster, Older, 2024, arXiv 2409.03137.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: tuple[Beta, Beta, Beta] = (0.9, 0.999, 0.9999),
        alpha: NonNegative = 2.0,
        beta3_warmup: Annotated[Positive | None, ActsWith("alpha")] = None,
        alpha_warmup: Annotated[Positive | None, ActsWith("alpha")] = None,
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg_fast": signed(), "exp_avg_slow": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2, beta3 = h.betas
        if h.beta3_warmup is not None:
            beta3 = choose(t < h.beta3_warmup, _on_the_way(beta1, beta3, t / h.beta3_warmup), beta3)
        return {
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "weight3": 1 - beta3,
            "debias1": 1 / (1 - beta1**t),
            "debias2": (1 - beta2**t) ** -0.5,
            "mix": h.alpha if h.alpha_warmup is None else h.alpha * least(t / h.alpha_warmup, 1.0),
        }

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        ema(s.exp_avg_fast, g, k.weight1)
        ema(s.exp_avg_slow, g, k.weight3)
        ema_sq(s.exp_avg_sq, g, k.weight2)
        mixed = plus(s.exp_avg_fast * k.debias1, s.exp_avg_slow, k.mix)
        return adam_ratio(mixed, s.exp_avg_sq, k.debias2, k.eps)


def _on_the_way(start: Any, end: Any, part: Any) -> Any:
    """The decay rate whose half-life lies at this part of the way; 0 has one by the authors' 1e-8."""
    end = end + 1e-8
    return end ** (1 / (part + (1 - part) * _log(end) / _log(start + 1e-8)))


def _log(x: Any) -> Any:
    return torch.log(x) if isinstance(x, Tensor) else math.log(x)
