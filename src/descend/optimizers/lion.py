"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer
from descend.engine.options import Common
from descend.engine.ranges import Betas, Lr, WeightDecay, own
from descend.engine.slots import Slot, signed
from descend.terms import blend, ema


class Lion(Optimizer):
    """Lion, evolved sign momentum.

    ::

        u = sign(β₁m + (1−β₁)g)
        m ← β₂m + (1−β₂)g
        p ← p − lr·weight_decay·p − lr·u

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0; three to ten times smaller than AdamW's.
        betas: weight of the momentum in the step, and its decay rate, each in [0, 1).
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Lion(layer.parameters(), lr=1e-3)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, arXiv 2302.06675.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-4,
        betas: Betas = (0.9, 0.99),
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"weight1": 1 - h.betas[0], "weight2": 1 - h.betas[1]}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        u = blend(s.exp_avg, g, k.weight1).sign_()
        ema(s.exp_avg, g, k.weight2)
        return u
