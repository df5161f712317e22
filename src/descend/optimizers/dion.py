"""Dion: orthonormalised momentum of low rank, with error feedback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.options import Common
from descend.engine.ranges import Betas, Count, Fraction, Lr, Needs, NonNegative, Not, Range, WeightDecay, own
from descend.engine.slots import Slot, signed
from descend.engine.tensorlist import TensorList
from descend.linear import orthonormal, product, transpose
from descend.optimizers.adam import bias_correction
from descend.optimizers.routed import MatrixRule, as_matrices, from_matrices, matrices_shape
from descend.randomness import normal
from descend.terms import accumulate, assign


class Dion(MatrixRule):
    """Dion, a step along the leading directions of the momentum, found by power iteration from one step to the next.

    ::

        M ← M + G
        P = orthonormal columns of M·Q,  R = MᵀP            power_iters times, Q = R in between
        M ← M − (1−mu)·P·Rᵀ                                 what was stepped in is forgotten
        Q ← columns of R brought to length 1
        W ← W − lr·weight_decay·W − lr·√(m/n)·P·Qᵀ

    for an m×n matrix W; Q has r = rank_fraction·min(m, n) columns and starts as random numbers. A wide matrix is taken
    transposed. Everything that is not a matrix goes to AdamW.

    Args:
        params: parameters or groups of parameters; see :func:`~descend.muon_param_groups`.
        lr: learning rate, ≥ 0.
        mu: the share of the step's directions that the momentum keeps, in [0, 1].
        betas: decay rates of AdamW's averages, each in [0, 1).
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        rank_fraction: rank of the step as a share of the smaller side, in (0, 1].
        rank_multiple_of: the rank is rounded up to a multiple of this, ≥ 1.
        eps: added to the length of Q's columns, and AdamW's eps, ≥ 0.
        power_iters: power iterations a step, ≥ 1.
        fallback_lr_scale: the fallback's learning rate in units of lr, ≥ 0.
        fallback: the rule of all other parameters, by its name ("lion", "package.module:Class"); None: AdamW.
        fallback_options: its options.
        use_fallback: treat all parameters of the group as the fallback's.
        split: number of equal parts along the rows that are matrices of their own, ≥ 1.
        stacked: the last two dimensions are matrices, all before them a batch (stacked experts).
        seed: of the random start; it depends on it, the shape and the element, and on nothing else.
        **common: see :class:`~descend.engine.options.Common`.

    Warns:
        UserWarning: if no parameter is a matrix and no group says that this is meant.

    Example:
        >>> layer = torch.nn.Linear(8, 8)
        >>> optimizer = Dion(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(8)).sum().backward()
        >>> optimizer.step()

    Reference:
        Ahn et al., Dion: Distributed Orthonormalized Updates, 2025, arXiv 2504.05295.
    """

    refused: ClassVar = {"capturable": "its QR decomposition and random start are decided on the host"}

    def __init__(
        self,
        params: Any,
        lr: Lr = 0.01,
        mu: Fraction = 0.95,
        betas: Betas = (0.9, 0.95),
        weight_decay: WeightDecay = 0.01,
        rank_fraction: Annotated[float, Range(gt=0, le=1)] = 1.0,
        rank_multiple_of: Annotated[Count, Needs(rank_fraction=Not(1))] = 1,
        eps: NonNegative = 1e-8,
        *,
        power_iters: Count = 1,
        fallback_lr_scale: NonNegative = 1.0,
        fallback: str | None = None,
        fallback_options: Mapping[str, Any] | None = None,
        use_fallback: bool = False,
        split: Count = 1,
        stacked: bool = False,
        seed: int = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @classmethod
    def serves(cls, h: Any, p: Tensor) -> bool:
        return not h.use_fallback and not p.is_complex() and (p.dim() == 2 or (h.stacked and p.dim() > 2))

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        *batch, rows, columns = matrices_shape(h, p)
        short = min(rows, columns)
        rank = h.rank_multiple_of * math.ceil(h.rank_fraction * short / h.rank_multiple_of)
        return {"momentum": signed(least_bits=8), "Q": Slot(shape=(*batch, short, min(rank, short)))}

    @staticmethod
    def gain(h: Any, p: Tensor) -> float:
        rows, columns = matrices_shape(h, p)[-2:]
        return (rows / columns) ** 0.5 if columns else 1.0

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {**bias_correction(t, h), "first": t == 1, "forget": 1 - h.mu}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        m = as_matrices(s.momentum.add_(g), k)
        wide = k.matrices[-2] < k.matrices[-1]
        m = transpose(m) if wide else m
        if k.first:
            assign(s.Q, _start(s.Q, k.seed))
        right = s.Q
        for _ in range(k.power_iters):
            left = orthonormal(product(m, right))
            right = product(transpose(m), left)
        # Nothing can be learned from a momentum of zeros: there is no step, and Q stays.
        alive = (m * m).sum((-2, -1), keepdim=True) > 0
        left = left * alive
        right = torch.where(alive, right, s.Q)
        stepped = product(left, transpose(right))
        accumulate(s.momentum, 1.0, from_matrices(transpose(stepped) if wide else stepped, k), -k.forget)
        assign(s.Q, right / torch.linalg.vector_norm(right, dim=-2, keepdim=True).add_(k.eps))
        step = product(left, transpose(s.Q))
        return from_matrices(transpose(step) if wide else step, k)


def _start(like: Any, seed: int) -> Any:
    """Standard normal numbers that depend on the seed, the shape and the element."""
    first = like.tensors[0] if isinstance(like, TensorList) else like
    index = torch.arange(first.numel(), device=first.device)
    return normal(index, seed, *first.shape).to(first.dtype).reshape(first.shape)
