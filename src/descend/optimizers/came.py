"""CAME: Adafactor that takes smaller steps where its updates are unstable."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.options import Common
from descend.engine.ranges import Beta, Lr, NonNegative, Positive, WeightDecay, own
from descend.engine.slots import Slot, signed
from descend.optimizers.adafactor import factored_root, factored_slots, spread
from descend.terms import bounded, clip_ratio, ema


class CAME(Optimizer):
    """CAME, confidence-guided adaptive memory efficient optimization.

    ::

        u = g/√V,                V the average of g² + eps₁ with β₂
        u ← u/max(1, RMS(u)/clip_threshold)
        m ← β₁m + (1−β₁)u
        p ← p − lr·weight_decay·p − lr·m/√U,       U the average of (u − m)² + eps₂ with β₃

    V and U of tensors of two and more dimensions are kept as means over rows R and over columns C of the last two
    dimensions, and read as R·C/mean(R). Vectors keep V and take m itself.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        eps: (eps₁, eps₂), added to squared gradients and to squared deviations, ≥ 0.
        clip_threshold: the root mean square that updates are brought down to, > 0.
        betas: decay rates of the averages of u, of g² and of the deviations, each in [0, 1).
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = CAME(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Luo et al., CAME: Confidence-guided Adaptive Memory Efficient Optimization, 2023, arXiv 2307.02047.
    """

    reach: ClassVar[Reach] = "rows"

    def __init__(
        self,
        params: Any,
        lr: Lr = 2e-4,
        eps: tuple[NonNegative, NonNegative] = (1e-30, 1e-16),
        clip_threshold: Positive = 1.0,
        betas: tuple[Beta, Beta, Beta] = (0.9, 0.999, 0.9999),
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        return {"factored": (p.dim() - 2, p.dim() - 1) if p.dim() >= 2 else None}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        dims = CAME.traits(h, p)["factored"]
        slots = {"exp_avg": signed(), **factored_slots(dims)}
        return slots if dims is None else slots | factored_slots(dims, row="exp_avg_res_row", col="exp_avg_res_col")

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2, beta3 = h.betas
        averages = {"weight1": 1 - beta1, "weight2": 1 - beta2, "weight3": 1 - beta3}
        return {**averages, "eps1": float(h.eps[0]), "eps2": float(h.eps[1])}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        sq = (g * g).add_(k.eps1)
        if k.factored is None:
            u = torch.rsqrt(ema(s.exp_avg_sq, bounded(sq), k.weight2)) * g
            return ema(s.exp_avg, u / clip_ratio(k.rms(u), k.clip_threshold), k.weight1)
        rows, cols = spread(s.exp_avg_sq_row, s.exp_avg_sq_col, k.factored)
        u = factored_root(sq, rows, cols, k.factored, k.weight2, k) * g
        u = u / clip_ratio(k.rms(u), k.clip_threshold)
        deviation = u - ema(s.exp_avg, u, k.weight1)
        rows, cols = spread(s.exp_avg_res_row, s.exp_avg_res_col, k.factored)
        sq = (deviation * deviation).add_(k.eps2)
        return factored_root(sq, rows, cols, k.factored, k.weight3, k) * s.exp_avg
