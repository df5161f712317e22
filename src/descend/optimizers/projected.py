"""AdamP and SGDP: steps without the part that only scales weights which a normalisation makes scale-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.options import OWN_DECAY, OWN_STEP, Common
from descend.engine.ranges import ActsWith, Betas, Fraction, Lr, NonNegative, Range, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.update import cautious, decay_amount, shape_direction
from descend.optimizers.adam import bias_correction, moments
from descend.terms import accumulate, blend, plus, root


def projected(p: Tensor, u: Tensor, g: Tensor, k: Known) -> Tensor | tuple[Tensor, Any]:
    """The step u without its radial part where p looks scale-free, and how much of p decays.

    Scale-free means that gradient and parameter are nearly orthogonal, max|cos(g, p)| < delta/√n, first in every
    slice of dimension 0 (n elements each), else in the whole tensor; then the ratio of the decay is ``wd_ratio``.
    """
    if k.ndim < 2:
        return shape_direction(u, g, k)
    u, ratio = project_out(p, u, g, k)
    return u, ratio * k.decay_amount


def project_out(p: Tensor, u: Tensor, g: Tensor, k: Known) -> tuple[Tensor, Tensor]:
    """The step without its radial part, and the factor of weight decay."""
    inner, channels = tuple(range(1, k.ndim)), (0,)
    by_channel = k.dots_over(inner, (g, p), (g, g), (p, p), (u, p))
    aligned = _cosine(by_channel, k.eps) >= k.delta / k.count(inner) ** 0.5
    counted = torch.where(aligned, torch.ones_like(by_channel[2]), 0.0)
    *by_layer, above = k.sums_over(*((total, channels) for total in (*by_channel, counted)))
    p_sq = torch.where(above == 0, by_channel[2], by_layer[2])
    projects = (above == 0) | (_cosine(by_layer, k.eps) < k.delta / k.count((*channels, *inner)) ** 0.5)
    inverse_sq = torch.where(projects, (torch.sqrt(p_sq) + k.eps) ** -2, 0.0)

    def tangential(x: Tensor, along_rows: Tensor, along_all: Tensor) -> Tensor:
        along = torch.where(above == 0, along_rows, along_all)
        # Where a sum overflows, there is no part to leave out.
        return x.addcmul(p, inverse_sq * torch.where(torch.isfinite(along), -along, 0.0))

    u = tangential(u, by_channel[3], by_layer[3])
    if k.caution:
        u = cautious(u, tangential(g, by_channel[0], by_layer[0]), k)
        (rows,) = k.dots_over(inner, (u, p))
        (whole,) = k.sums_over((rows, channels))
        u = tangential(u, rows, whole)
    return u, torch.where(projects, torch.ones_like(above) * k.wd_ratio, 1.0)


def _cosine(sums: Sequence[Tensor], eps: Any) -> Tensor:
    gp, g_sq, p_sq, _ = sums
    return torch.abs(gp) / (torch.clamp(torch.sqrt(g_sq), min=eps) * torch.clamp(torch.sqrt(p_sq), min=eps))


class AdamP(Optimizer):
    """AdamP, Adam whose steps leave out the direction of the weights where these are scale-free.

    ::

        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)g²
        u = m̂/(√v̂ + eps),  with β₁m + (1−β₁)g for m with nesterov
        u ← u − p̂(p̂·u)                            where max|cos(g, p)| < delta/√n
        p ← p − lr·weight_decay·ratio·p − lr·u      ratio = wd_ratio where projected, else 1

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator and to norms, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        delta: threshold of the cosine, ≥ 0.
        wd_ratio: factor on the decay where the step is projected, ≥ 0.
        nesterov: look one step ahead.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` masks the tangential step by the tangential
            gradient and projects once more.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = AdamP(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, 2021,
        arXiv 2006.08217.
    """

    refused: ClassVar[Mapping[str, str]] = {"cautious_weight_decay": OWN_DECAY["cautious_weight_decay"], **OWN_STEP}

    reach: ClassVar[Reach] = "rows"
    by_units: ClassVar[bool] = True
    own_stages: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        delta: NonNegative = 0.1,
        wd_ratio: Annotated[NonNegative, ActsWith("weight_decay")] = 0.1,
        nesterov: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_avg_sq": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        return {**corrected, "gain": corrected["debias1"]}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | tuple[Tensor, Any]:
        moments(g, s, k)
        m = blend(s.exp_avg, g, k.weight1) if k.nesterov else s.exp_avg
        return projected(p, m / root(s.exp_avg_sq, k.debias2, k.eps), g, k)


class SGDP(Optimizer):
    """SGDP, SGD with momentum whose steps leave out the direction of the weights where these are scale-free.

    ::

        b ← momentum·b + (1−dampening)·g
        u = b, or g + momentum·b with nesterov
        u ← u − p̂(p̂·u)                                              where max|cos(g, p)| < delta/√n
        p ← p − lr·weight_decay·ratio/(1−momentum)·p − lr·u           ratio = wd_ratio where projected, else 1

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0; there is no default.
        momentum: factor of the buffer, in [0, 1).
        dampening: how much of the gradient stays out of the buffer, in [0, 1].
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        nesterov: look one step ahead.
        eps: added to norms, ≥ 0.
        delta: threshold of the cosine, ≥ 0.
        wd_ratio: factor on the decay where the step is projected, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` masks the tangential step by the tangential
            gradient and projects once more.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = SGDP(layer.parameters(), lr=1e-2, momentum=0.9)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Heo et al., AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights, 2021,
        arXiv 2006.08217.
    """

    acts_with: ClassVar = {"grams": (ActsWith("momentum"),)}
    refused: ClassVar[Mapping[str, str]] = {"cautious_weight_decay": OWN_DECAY["cautious_weight_decay"], **OWN_STEP}

    reach: ClassVar[Reach] = "rows"
    by_units: ClassVar[bool] = True
    own_stages: ClassVar[bool] = True

    def __init__(
        self,
        params: Any,
        lr: Lr,
        momentum: Annotated[float, Range(ge=0, lt=1, why="the decay is divided by 1 − momentum")] = 0,
        dampening: Fraction = 0,
        weight_decay: WeightDecay = 0,
        nesterov: Annotated[bool, ActsWith("momentum")] = False,
        eps: NonNegative = 1e-8,
        delta: NonNegative = 0.1,
        wd_ratio: Annotated[NonNegative, ActsWith("weight_decay")] = 0.1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"momentum": signed()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"decay_amount": decay_amount(h) / (1 - h.momentum)}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | tuple[Tensor, Any]:
        accumulate(s.momentum, k.momentum, g, 1 - k.dampening)
        return projected(p, plus(g, s.momentum, k.momentum) if k.nesterov else s.momentum, g, k)
