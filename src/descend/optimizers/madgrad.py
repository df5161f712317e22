"""MADGRAD: dual averaging with a cube root and momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import OWN_DECAY, OWN_STEP, Common, if_averaged
from descend.engine.ranges import ActsWith, Lr, NonNegative, Range, WeightDecay, own
from descend.engine.slots import Slot, position, positive, signed
from descend.engine.update import has_stages, shape_direction
from descend.terms import Quotient, add_product, add_scaled, assign, cube_root, ema, plus, scale


class MADGRAD(Optimizer):
    """MADGRAD, momentumised adaptive dual averaged gradient.

    ::

        λₜ = (lr + eps)·√t
        s ← s + λₜg
        G ← G + λₜg²
        z = x₀ − s/(∛G + eps)
        p ← momentum·p + (1−momentum)·z

    Without momentum x₀ is not kept but found from p, s and G as they were.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        momentum: weight of the old parameter in the new, in [0, 1).
        weight_decay: decay, ≥ 0; added to the gradient unless ``decoupled_decay``.
        eps: added to lr and to the denominator, ≥ 0.
        decoupled_decay: decay the parameter by lr·weight_decay.
        **common: see :class:`~descend.engine.options.Common`. Stages shape p − z.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = MADGRAD(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Defazio, Jelassi, Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for
        Stochastic Optimization, 2021, arXiv 2101.11075.
    """

    acts_with: ClassVar = if_averaged(ActsWith("momentum"))
    refused: ClassVar[Mapping[str, str]] = {"cautious_weight_decay": OWN_DECAY["cautious_weight_decay"], **OWN_STEP}

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        momentum: Annotated[float, Range(ge=0, lt=1, why="at 1 the parameter would never move")] = 0.9,
        weight_decay: WeightDecay = 0,
        eps: NonNegative = 1e-6,
        decoupled_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        sums = {"grad_sum_sq": positive(), "s": signed(least_bits=8)}
        return {**sums, "x0": position()} if h.momentum != 0 else sums

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"dual_weight": (h.lr + h.eps) * t**0.5, "pull": 1 - h.momentum}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_decay else "coupled"

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        # A door of its own: the parameter is drawn to a point z that is found from x0, not from the parameter.
        if k.decay == "decoupled":
            scale(p, k.decay_factor)
        x0 = s.x0 if "x0" in s else plus(p, Quotient(s.s, cube_root(s.grad_sum_sq, k.eps)), 1.0)
        add_scaled(s.s, g, k.dual_weight)
        add_product(s.grad_sum_sq, g, g, k.dual_weight)
        z = plus(x0, Quotient(s.s, cube_root(s.grad_sum_sq, k.eps)), -1.0)
        if has_stages(k):
            z = p - shape_direction(p - z, g, k)
        if "x0" in s:
            ema(p, z, k.pull)
        else:
            assign(p, z)
