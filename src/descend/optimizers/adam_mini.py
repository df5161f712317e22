"""Adam-mini: one second moment for a whole block of weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.options import Common
from descend.engine.ranges import Betas, Count, Lr, Needs, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.optimizers.adam import bias_correction, moments
from descend.terms import bounded, ema, root


class AdamMini(Optimizer):
    """Adam-mini, half of Adam's state.

    ::

        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)·mean(g²)                              one number a block
        p ← p − lr·weight_decay·p − lr·m̂/(√v̂ + eps)            m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)

    The paper's blocks are the heads of queries and keys; the output rows of values, projections, MLPs, embeddings and
    the classifier; and every other tensor as a whole: give each kind a parameter group with its own ``block``.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        block: what shares a second moment: "tensor"; "row", a slice of dimension 0; "head", one of n_heads equal parts
            of dimension 0, and a vector as a whole; or "element", which is AdamW.
        n_heads: number of heads, ≥ 1; acts with block="head".
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        ValueError: with block="head" for a tensor whose rows cannot be shared out among the heads.

    Example:
        >>> queries, rest = torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 1)
        >>> heads = {"params": queries.parameters(), "block": "head", "n_heads": 2}
        >>> optimizer = AdamMini([heads, {"params": rest.parameters(), "block": "row"}], lr=1e-2)
        >>> rest(queries(torch.ones(8))).backward()
        >>> optimizer.step()

    Reference:
        Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More, 2024, arXiv 2406.16793.
    """

    reach: ClassVar[Reach] = "rows"
    structural: ClassVar[frozenset[str]] = frozenset(("n_heads",))

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        block: Literal["tensor", "row", "head", "element"] = "tensor",
        n_heads: Annotated[Count, Needs(block="head")] = 1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        of_vectors = {"row": "element", "head": "tensor"}
        return {"block": h.block if p.dim() >= 2 else of_vectors.get(h.block, h.block)}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        block = AdamMini.traits(h, p)["block"]
        if block == "element":
            return {"exp_avg": signed(), "exp_avg_sq": positive()}
        if block == "tensor":
            return {"exp_avg": signed(), "exp_avg_sq": Slot("positive", reduce="all")}
        if block == "row":
            return {"exp_avg": signed(), "exp_avg_sq": Slot("positive", reduce=_inner(p), keepdim=True)}
        if p.shape[0] % h.n_heads:
            raise ValueError(f"block='head' with n_heads={h.n_heads}, expected a divisor of its {p.shape[0]} rows")
        return {"exp_avg": signed(), "exp_avg_sq": Slot("positive", shape=(h.n_heads,))}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        return {**corrected, "gain": corrected["debias1"]}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        if k.block == "element":
            moments(g, s, k)
            return s.exp_avg / root(s.exp_avg_sq, k.debias2, k.eps)
        ema(s.exp_avg, g, k.weight1)
        if k.block == "tensor":
            v = ema(s.exp_avg_sq, bounded(k.mean(g * g)), k.weight2)
        elif k.block == "row":
            v = ema(s.exp_avg_sq, bounded(k.means_over((g * g, _inner(g)))[0]), k.weight2)
        else:
            of_rows = bounded(k.means_over((g * g, _inner(g)))[0], k.shape[0])
            member = _members(k.n_heads, of_rows)
            of_heads = member @ of_rows.flatten() / member.sum(1).clamp_min(1.0)
            v = (ema(s.exp_avg_sq, of_heads, k.weight2) @ member).view_as(of_rows)
        return s.exp_avg / root(v, k.debias2, k.eps)


def _inner(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.dim()))


def _members(n_heads: int, of_rows: Tensor) -> Tensor:
    """A matrix with 1 where a row belongs to a head: the rows in equal parts, in order."""
    rows = of_rows.shape[0]
    head = torch.arange(rows, device=of_rows.device) * n_heads // rows
    return (head == torch.arange(n_heads, device=of_rows.device).unsqueeze(1)).to(of_rows.dtype)
