"""AdaBelief: Adam that trusts gradients as far as it expected them."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import Common
from descend.engine.ranges import ActsWith, Betas, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.optimizers.adam import bias_correction
from descend.terms import Quotient, adam_ratio, choose, either, ema, ema_sq, rectify, running_max


class AdaBelief(Optimizer):
    """AdaBelief, which divides by the variance of the gradient around its average.

    ::

        m ← β₁m + (1−β₁)g
        s ← β₂s + (1−β₂)(g − m)² + eps
        p ← p − lr·m̂/(√ŝ + eps)          m̂ = m/(1−β₁ᵗ), ŝ = s/(1−β₂ᵗ)

    With ``rectify`` RAdam's r multiplies the step and eps is added to the uncorrected √s; while ρ < 5 the step is
    lr·m̂, or nothing without ``degenerated_to_sgd``.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to s at every step and to the denominator, ≥ 0.
        weight_decay: decay, ≥ 0.
        amsgrad: divide by the largest s so far; acts only without ``rectify``, as in timm.
        decoupled_decay: decay the parameter by lr·weight_decay rather than adding to the gradient.
        fixed_decay: decay by weight_decay itself, whatever lr is; acts only with ``decoupled_decay``.
        rectify: RAdam's variance rectification.
        degenerated_to_sgd: take plain momentum steps while the rectification is undefined.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = AdaBelief(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, 2020,
        arXiv 2010.07468.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-16,
        weight_decay: WeightDecay = 0,
        amsgrad: Annotated[bool, ActsWith(rectify=False)] = False,
        decoupled_decay: Annotated[bool, ActsWith("weight_decay")] = True,
        fixed_decay: Annotated[bool, ActsWith("weight_decay", "decoupled_decay")] = False,
        rectify: bool = True,
        degenerated_to_sgd: Annotated[bool, ActsWith("rectify")] = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        averages = {"exp_avg": signed(), "exp_avg_var": positive()}
        return {**averages, "max_exp_avg_var": positive()} if h.amsgrad else averages

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        if not h.rectify:
            return {**corrected, "gain": corrected["debias1"]}
        rho, r = rectify(t, h.betas[1])
        trusted = rho >= 5
        gain = choose(trusted, r / corrected["debias2"], 1.0 if h.degenerated_to_sgd else 0.0)
        return {**corrected, "debias2": 1.0, "trusted": choose(trusted, 1.0, 0.0), "gain": gain * corrected["debias1"]}

    @staticmethod
    def decay(h: Any) -> Decay:
        if not h.decoupled_decay:
            return "coupled"
        return "fixed" if h.fixed_decay else "decoupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | Quotient:
        ema(s.exp_avg, g, k.weight1)
        var = ema_sq(s.exp_avg_var, g - s.exp_avg, k.weight2).add_(k.eps)
        if k.amsgrad:
            largest = running_max(s.max_exp_avg_var, var)
            var = var if k.rectify else largest
        adapted = adam_ratio(s.exp_avg, var, k.debias2, k.eps)
        return either(k.trusted, adapted, s.exp_avg) if k.rectify else adapted
