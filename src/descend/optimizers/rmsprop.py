"""RMSprop, as TensorFlow and as torch have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import COUPLED_DECAY, Common, if_averaged
from descend.engine.ranges import ActsWith, Fraction, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.terms import Quotient, accumulate, ema, ema_sq


def running_slots(h: Any, square_avg: float) -> dict[str, Slot]:
    """The average of squares, and what momentum and centring need."""
    slots = {"square_avg": positive(square_avg)}
    if h.momentum != 0:
        slots["momentum_buffer"] = signed()
    if h.centered:
        slots["grad_avg"] = signed()
    return slots


def variance(g: Tensor, s: State, k: Known) -> Tensor:
    """V ← V + (1−alpha)(g² − V), less the square of the average gradient where centred."""
    ema_sq(s.square_avg, g, 1 - k.alpha)
    if not k.centered:
        return s.square_avg
    ema(s.grad_avg, g, 1 - k.alpha)
    return s.square_avg - s.grad_avg * s.grad_avg


class RMSpropTF(Optimizer):
    """RMSprop as TensorFlow has it: V starts at 1, eps is under the root, lr may be inside the momentum.

    ::

        V ← V + (1−alpha)(g² − V)
        A ← A + (1−alpha)(g − A)                with centered, else A = 0
        d = g/√(V − A² + eps)
        b ← momentum·b + lr·d,  p ← p − b       with momentum and lr_in_momentum
        b ← momentum·b + d,     p ← p − lr·b    with momentum
        p ← p − lr·d                            else

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        alpha: decay rate of the averages, in [0, 1].
        eps: added under the root, ≥ 0.
        weight_decay: decay, ≥ 0; added to the gradient unless ``decoupled_decay``.
        momentum: factor of the buffer, in [0, 1]; 0 keeps none.
        centered: divide by the variance around the average gradient.
        decoupled_decay: decay the parameter by lr·weight_decay.
        lr_in_momentum: put lr into the buffer.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` acts only with momentum, as in timm.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = RMSpropTF(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Tieleman, Hinton, Lecture 6.5, 2012; centred: Graves, Generating Sequences With Recurrent Neural Networks,
        2013, arXiv 1308.0850. V − A² counts as at least 0 here; in timm rounding can make it NaN.
    """

    acts_with: ClassVar = if_averaged(ActsWith("momentum"))

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        alpha: Fraction = 0.9,
        eps: NonNegative = 1e-10,
        weight_decay: WeightDecay = 0,
        momentum: Fraction = 0.0,
        centered: bool = False,
        decoupled_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        lr_in_momentum: Annotated[bool, ActsWith("momentum")] = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return running_slots(h, square_avg=1.0)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        inside = h.momentum != 0 and h.lr_in_momentum
        rates = {"rate_inside": h.lr, "step_size": 1.0} if inside else {"rate_inside": 1.0}
        return {**rates, "caution": bool(h.caution and h.momentum != 0)}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_decay else "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | Quotient:
        avg = variance(g, s, k)
        if k.centered:
            avg = avg.clamp_min(0.0)
        d = Quotient(g, (avg + k.eps).sqrt_())
        if "momentum_buffer" not in s:
            return d
        return accumulate(s.momentum_buffer, k.momentum, d, k.rate_inside)


class RMSprop(Optimizer):
    """RMSprop as torch has it.

    ::

        g ← g + weight_decay·p
        V ← alpha·V + (1−alpha)g²
        A ← alpha·A + (1−alpha)g                with centered, else A = 0
        d = g/(√(V − A²) + eps)
        b ← momentum·b + d,  p ← p − lr·b       with momentum
        p ← p − lr·d                            else

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        alpha: decay rate of the averages, in [0, 1].
        eps: added to the denominator, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        momentum: factor of the buffer, in [0, 1]; 0 keeps none.
        centered: divide by the variance around the average gradient.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = RMSprop(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Tieleman, Hinton, Lecture 6.5, 2012; centred: Graves, Generating Sequences With Recurrent Neural Networks,
        2013, arXiv 1308.0850. V − A² counts as at least 0 here.
    """

    acts_with: ClassVar = if_averaged(ActsWith("momentum"))
    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        alpha: Fraction = 0.99,
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        momentum: Fraction = 0,
        centered: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return running_slots(h, square_avg=0.0)

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | Quotient:
        avg = variance(g, s, k)
        if k.centered:
            avg = avg.clamp_min(0.0)
        d = Quotient(g, torch.sqrt(avg).add_(k.eps))
        return accumulate(s.momentum_buffer, k.momentum, d) if "momentum_buffer" in s else d
