"""Adam and what is one line away from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import COUPLED_DECAY, Common
from descend.engine.ranges import Betas, Lr, NonNegative, Positive, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.terms import Quotient, adam_ratio, blend, clip_ratio, ema, ema_sq, root, running_max


def moments(g: Tensor, s: State, k: Known, weights: tuple[Any, Any] | None = None) -> None:
    """m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², with other weights than these where given."""
    weight1, weight2 = weights or (k.weight1, k.weight2)
    ema(s.exp_avg, g, weight1)
    ema_sq(s.exp_avg_sq, g, weight2)


def adapted(m: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
    """m/(√v̂ + ε), with the largest v so far under AMSGrad, and no smaller than g/clipping_threshold asks for."""
    v = running_max(s.max_exp_avg_sq, s.exp_avg_sq) if k.amsgrad else s.exp_avg_sq
    if k.clipping_threshold is None:
        return adam_ratio(m, v, k.debias2, k.eps)
    denom = root(v, k.debias2, k.eps)
    return Quotient(m, denom * clip_ratio(k.rms(g / denom), k.clipping_threshold))


def bias_correction(t: Any, h: Any) -> dict[str, Any]:
    """The weights of the averages, 1/(1−β₁ᵗ) and 1/√(1−β₂ᵗ)."""
    beta1, beta2 = h.betas
    return {
        "weight1": 1 - beta1,
        "weight2": 1 - beta2,
        "debias1": 1 / (1 - beta1**t),
        "debias2": (1 - beta2**t) ** -0.5,
    }


class AdamW(Optimizer):
    """AdamW, Adam with decoupled weight decay.

    ::

        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·weight_decay·p − lr·m̂/(√v̂ + eps)      m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        amsgrad: divide by the largest v so far.
        clipping_threshold: bring RMS(g/√v̂) down to this by a larger denominator (StableAdamW's clip); None: off.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = AdamW(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Loshchilov, Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 1e-2,
        amsgrad: bool = False,
        *,
        clipping_threshold: Positive | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        averages = {"exp_avg": signed(), "exp_avg_sq": positive()}
        return {**averages, "max_exp_avg_sq": positive()} if h.amsgrad else averages

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        return {**corrected, "gain": corrected["debias1"]}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        moments(g, s, k)
        return adapted(s.exp_avg, g, s, k)


class Adam(AdamW):
    """Adam, with weight decay added to the gradient.

    ::

        g ← g + weight_decay·p
        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·m̂/(√v̂ + eps)      m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        amsgrad: divide by the largest v so far.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adam(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Kingma, Ba, Adam: A Method for Stochastic Optimization, 2015, arXiv 1412.6980. AMSGrad: Reddi, Kale, Kumar,
        On the Convergence of Adam and Beyond, 2018, arXiv 1904.09237.
    """

    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **common)

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"


class NAdamW(AdamW):
    """AdamW with Nesterov momentum: the average is looked at one step ahead.

    ::

        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        p ← p − lr·weight_decay·p − lr·[β₁m + (1−β₁)g]/(1−β₁ᵗ) / (√v̂ + eps)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        clipping_threshold: bring RMS(g/√v̂) down to this by a larger denominator; None: off.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = NAdamW(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Dozat, Incorporating Nesterov Momentum into Adam, 2016; in this form Dahl et al., Benchmarking Neural Network
        Training Algorithms, 2023, arXiv 2306.07179.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 1e-2,
        *,
        clipping_threshold: Positive | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, clipping_threshold=clipping_threshold, **common)

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        moments(g, s, k)
        return adapted(blend(s.exp_avg, g, k.weight1), g, s, k)
