"""Stochastic gradient descent with momentum, and with layer-wise rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer, Reach
from descend.engine.options import COUPLED_DECAY, Common, if_averaged
from descend.engine.ranges import ActsWith, Fraction, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, signed
from descend.terms import accumulate, add_scaled, choose, either, plus


def momentum_slot(h: Any) -> dict[str, Slot]:
    """The momentum buffer, where there is momentum."""
    return {"momentum_buffer": signed()} if h.momentum != 0 else {}


def first_undamped(t: Any, h: Any) -> dict[str, Any]:
    """The weight of the gradient in the buffer: 1 at the first step, 1 − dampening later."""
    return {"undamped": choose(t == 1, 1.0, 1 - h.dampening)}


def heavy_ball(g: Tensor, s: State, k: Known) -> Tensor:
    """b ← momentum·b + (1−dampening)·g; the direction is b, or g + momentum·b with Nesterov's."""
    if "momentum_buffer" not in s:
        return g
    accumulate(s.momentum_buffer, k.momentum, g, k.undamped)
    return plus(g, s.momentum_buffer, k.momentum) if k.nesterov else s.momentum_buffer


def check_nesterov(h: Any) -> None:
    """Nesterov's momentum is only defined with momentum and without dampening."""
    if h.nesterov and (h.momentum <= 0 or h.dampening != 0):
        raise ValueError(
            f"nesterov=True with momentum={h.momentum!r} and dampening={h.dampening!r}, "
            "expected momentum > 0 and dampening = 0"
        )


class SGD(Optimizer):
    """SGD with momentum.

    ::

        g ← g + weight_decay·p
        b ← momentum·b + (1−dampening)·g          b = g at the first step
        p ← p − lr·b,  or p − lr·(g + momentum·b) with nesterov

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        momentum: factor of the buffer, in [0, 1]; 0 keeps none.
        dampening: how much of the gradient stays out of the buffer, in [0, 1].
        weight_decay: coupled (L2) decay, ≥ 0.
        nesterov: look one step ahead; needs momentum > 0 and dampening 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = SGD(layer.parameters(), lr=1e-2, momentum=0.9)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Sutskever et al., On the importance of initialization and momentum in deep learning, ICML 2013.
    """

    acts_with: ClassVar = if_averaged(ActsWith("momentum"))
    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        momentum: Fraction = 0,
        dampening: Annotated[Fraction, ActsWith("momentum")] = 0,
        weight_decay: WeightDecay = 0,
        nesterov: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return momentum_slot(h)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return first_undamped(t, h)

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"

    @staticmethod
    def check(h: Any) -> None:
        check_nesterov(h)

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        return heavy_ball(g, s, k)


class SGDW(SGD):
    """SGD with momentum and decoupled weight decay.

    ::

        b ← momentum·b + (1−dampening)·g          b = g at the first step
        p ← p − lr·weight_decay·p − lr·b,  or with g + momentum·b for b with nesterov

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        momentum: factor of the buffer, in [0, 1]; 0 keeps none.
        dampening: how much of the gradient stays out of the buffer, in [0, 1].
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        nesterov: look one step ahead; needs momentum > 0 and dampening 0.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` acts only with momentum, as in timm.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = SGDW(layer.parameters(), lr=1e-2, momentum=0.9)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Loshchilov, Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101.
    """

    refused: ClassVar[Mapping[str, str]] = {}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {**first_undamped(t, h), "caution": bool(h.caution and h.momentum != 0)}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled"


class Lars(SGD):
    """LARS, SGD whose rate for every tensor follows ‖p‖/‖g‖.

    ::

        r = trust_coeff·‖p‖/(‖g‖ + weight_decay·‖p‖ + eps),  1 where a norm is 0
        g ← r·(g + weight_decay·p)
        b ← momentum·b + (1−dampening)·g          b = g at the first step
        p ← p − lr·b,  or p − lr·(g + momentum·b) with nesterov

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        momentum: factor of the buffer, in [0, 1]; 0 keeps none.
        dampening: how much of the gradient stays out of the buffer, in [0, 1].
        weight_decay: decay inside the ratio, ≥ 0. At 0 the ratio is off unless ``always_adapt``, as in timm.
        nesterov: look one step ahead; needs momentum > 0 and dampening 0.
        trust_coeff: how far a tensor may trust itself, ≥ 0.
        eps: added to the ratio's denominator, ≥ 0.
        trust_clip: LARC's clip, r ← min(r/lr, 1).
        always_adapt: use the ratio without weight decay too.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Lars(layer.parameters(), lr=1.0, momentum=0.9)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017, arXiv 1708.03888. The rate
        stands outside the momentum, as in timm; the paper has it inside.
    """

    acts_with: ClassVar = if_averaged(ActsWith("momentum") | ActsWith("weight_decay"))
    reach: ClassVar[Reach] = "tensor"

    def __init__(
        self,
        params: Any,
        lr: Lr = 1.0,
        momentum: Fraction = 0,
        dampening: Annotated[Fraction, ActsWith("momentum")] = 0,
        weight_decay: WeightDecay = 0,
        nesterov: bool = False,
        trust_coeff: Annotated[NonNegative, ActsWith("weight_decay") | ActsWith("always_adapt")] = 1e-3,
        eps: Annotated[NonNegative, ActsWith("weight_decay") | ActsWith("always_adapt")] = 1e-8,
        trust_clip: Annotated[bool, ActsWith("weight_decay") | ActsWith("always_adapt")] = False,
        always_adapt: Annotated[bool, ActsWith(weight_decay=0)] = False,
        **common: Unpack[Common],
    ) -> None:
        Optimizer.__init__(self, params, own(locals()), **common)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        adapts = 1.0 if h.weight_decay != 0 or h.always_adapt else 0.0
        return {**first_undamped(t, h), "adapts": adapts}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "own"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        p_norm, g_norm = k.norms(p, g)
        ratio = p_norm * k.trust_coeff / (g_norm + p_norm * k.weight_decay + k.eps)
        ratio = torch.where((p_norm > 0) & (g_norm > 0), ratio, 1.0)
        if k.trust_clip:
            ratio = torch.clamp(ratio / k.lr, max=1.0)
        ratio = either(k.adapts, ratio, 1.0)
        if k.nesterov or "momentum_buffer" not in s:
            return heavy_ball(add_scaled(g * ratio, p, ratio * k.weight_decay), s, k)
        weight = ratio * k.undamped  # the same line without a temporary
        return add_scaled(accumulate(s.momentum_buffer, k.momentum, g, weight), p, weight * k.weight_decay)
