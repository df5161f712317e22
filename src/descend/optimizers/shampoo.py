"""Shampoo: a Kronecker-factored preconditioner, in blocks, with the length of Adam's step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.options import Common
from descend.engine.ranges import Beta, Betas, Count, Lr, Needs, NonNegative, Range, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.linear import along, gram, inverse_root
from descend.optimizers.adam import bias_correction, moments
from descend.optimizers.routed import Preconditioned, expect_matrices
from descend.terms import assign, blend, ema, finite_else, root

Block = tuple[tuple[int, int], ...]


class Shampoo(Preconditioned):
    """Shampoo, blocked and grafted: Kronecker factors give the direction, Adam the length.

    ::

        M ← β₁M + (1−β₁)G
        L ← β₂L + (1−β₂)·G·Gᵀ,   R ← β₂R + (1−β₂)·Gᵀ·G
        every precondition_frequency steps: P_L = (L̂ + eps·I)^(−1/4), P_R = (R̂ + eps·I)^(−1/4)
        U = P_L·M̂·P_R,  A = M̂/(√V̂ + grafting_eps) with V the average of G² under grafting_beta2
        W ← W − lr·weight_decay·W − lr·U·‖A‖/‖U‖

    for every block of at most max_preconditioner_dim rows and columns. Tensors of d dimensions have d factors and the
    exponent −1/(2d). Before start_preconditioning_step the step is A.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of momentum and of the factors, each in [0, 1).
        eps: added to the factors' eigenvalues, > 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        max_preconditioner_dim: the largest side of a block, ≥ 1.
        precondition_frequency: steps from one computation of the roots to the next, ≥ 1.
        start_preconditioning_step: the step at which the roots are first taken, ≥ 1; −1: precondition_frequency.
        grafting: whose length the step takes: "adam", or None for U as it is.
        grafting_beta2: decay rate of the average of squares, in [0, 1).
        grafting_eps: added to Adam's denominator, ≥ 0.
        fallback: the rule of parameters that are no matrices, by its name ("adamw", "package.module:Class"): vectors, numbers and complex parameters.
            None: they are this rule's, in the way above.
        fallback_options: its options.
        fallback_lr_scale: its learning rate in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        ValueError: if there are only vectors.

    Example:
        >>> layer = torch.nn.Linear(2, 3)
        >>> optimizer = Shampoo(layer.parameters(), lr=1e-3)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()

    Reference:
        Gupta, Koren, Singer, Shampoo: Preconditioned Stochastic Tensor Optimization, 2018, arXiv 1802.09568; blocks,
        grafting and debiasing from Shi et al., A Distributed Data-Parallel PyTorch Implementation of the Distributed
        Shampoo Optimizer for Training Neural Networks At-Scale, 2023, arXiv 2309.06497.
    """

    structural: ClassVar[frozenset[str]] = frozenset(
        ("max_preconditioner_dim", "precondition_frequency", "start_preconditioning_step")
    )
    refused: ClassVar = {"capturable": "its decompositions synchronise with the host"}

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: Annotated[float, Range(gt=0, why="factors of low rank have no inverse root without")] = 1e-12,
        weight_decay: WeightDecay = 0.0,
        max_preconditioner_dim: Count = 1024,
        precondition_frequency: Count = 50,
        start_preconditioning_step: Count | Literal[-1] = -1,
        *,
        grafting: Literal["adam"] | None = "adam",
        grafting_beta2: Annotated[Beta, Needs("grafting")] = 0.999,
        grafting_eps: Annotated[NonNegative, Needs("grafting")] = 1e-8,
        fallback: str | None = None,
        fallback_options: Annotated[Mapping[str, Any] | None, Needs("fallback")] = None,
        fallback_lr_scale: Annotated[NonNegative, Needs("fallback")] = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)
        expect_matrices(self, "AdamW", lambda h, p: p.dim() > 1, strict=True)

    @classmethod
    def is_matrix(cls, h: Any, p: Tensor) -> bool:
        return p.dim() > 1 and not p.is_complex()

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        slots = {"exp_avg": signed(least_bits=8), "exp_avg_sq": positive()}
        for name, (where, i) in block_factors(blocks_of(h, p)):
            side = where[i][1]
            slots[f"factor_{name}"] = Slot(shape=(side, side))
            slots[f"root_{name}"] = Slot(shape=(side, side), eye=True)
        return slots

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        return {"blocks": blocks_of(h, p)}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        corrected = bias_correction(t, h)
        every, start = h.precondition_frequency, h.start_preconditioning_step
        start = every if start == -1 else start
        return {
            **corrected,
            "gain": corrected["debias1"],
            "graft_weight": 1 - h.grafting_beta2,
            "graft_debias": (1 - h.grafting_beta2**t) ** -0.5,
            "refresh": t == start or (t > start and t % every == 0),
            "begun": t >= start or h.grafting is None,
        }

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        move_factors(g, s, k)
        moments(g, s, k, (k.weight1, k.graft_weight))
        d = s.exp_avg / root(s.exp_avg_sq, k.graft_debias, k.grafting_eps)
        if k.begun:
            for b, where in enumerate(k.blocks):
                u = cut(s.exp_avg, where)
                for i in range(k.ndim):
                    u = along(u, getattr(s, f"root_{b}_{i}"), i)
                adam = cut(d, where)
                if k.grafting is not None:
                    u = u * (torch.linalg.vector_norm(adam) / (torch.linalg.vector_norm(u) + 1e-16))
                assign(adam, u)
        return d


def move_factors(g: Tensor, s: State, k: Known) -> None:
    """Move the factors, and at a refresh their roots; a decomposition that fails leaves the state as it was."""
    grams = {name: (getattr(s, f"factor_{name}"), cut(g, where), i) for name, (where, i) in block_factors(k.blocks)}
    roots = {}
    for name, (factor, block, i) in grams.items() if k.refresh else ():
        moved = blend(factor, finite_else(gram(block, i), factor), k.weight2)
        roots[name] = inverse_root(moved * k.debias2**2, 2 * k.ndim, k.eps)
    for factor, block, i in grams.values():
        ema(factor, finite_else(gram(block, i), factor), k.weight2)
    for name, root_of_factor in roots.items():
        assign(getattr(s, f"root_{name}"), root_of_factor)


def blocks_of(h: Any, p: Tensor) -> tuple[Block, ...]:
    """The blocks, each as start and length along every dimension; none for what has no dimension to speak of."""
    if p.is_complex() or p.dim() == 0:
        return ()
    side = h.max_preconditioner_dim
    cuts = [[(start, min(side, n - start)) for start in range(0, n, side)] for n in p.shape]
    return tuple(itertools.product(*cuts))


def block_factors(blocks: tuple[Block, ...]) -> Iterator[tuple[str, tuple[Block, int]]]:
    """For every factor its name, and its block and dimension."""
    for b, where in enumerate(blocks):
        for i in range(len(where)):
            yield f"{b}_{i}", (where, i)


def cut(x: Tensor, where: Block) -> Tensor:
    """A block of x, as a view."""
    for dim, (start, length) in enumerate(where):
        x = x.narrow(dim, start, length)
    return x
