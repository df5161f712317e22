"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay
from descend.engine.options import Common
from descend.engine.ranges import Betas, Count, Lr, Needs, NonNegative, Range, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.update import decay_amount
from descend.linear import along, eigenbasis, gram, power_step, product, rounding, transpose, without_rounding
from descend.optimizers.routed import Preconditioned, expect_matrices
from descend.terms import assign, blend, ema, ema_sq, finite_else, root


class SOAP(Preconditioned):
    """SOAP, Adam in slowly rotating coordinates.

    ::

        G' = Q_Lᵀ·G·Q_R
        M' ← β₁M' + (1−β₁)G',  V ← β₂V + (1−β₂)G'²
        W ← W − lr·√(1−β₂ᵗ)/(1−β₁ᵗ)·Q_L·[M'/(√V + eps)]·Q_Rᵀ,  then W ← W − lr·weight_decay·W
        L ← βL + (1−β)·G·Gᵀ,   R ← βR + (1−β)·Gᵀ·G                 β = shampoo_beta
        every precondition_frequency steps: Q_L ← QR of L·Q_L, Q_R ← QR of R·Q_R, the largest eigenvalues first

    The first step computes L, R and their eigenvectors and does not move the parameters; t counts the steps after it. At
    a refresh M' is rotated into the new basis. Tensors of more dimensions have a factor for each; dimensions larger than
    max_precond_dim keep their coordinates, and so do vectors, which makes them Adam's.

    Where L or R lacks rank or has equal eigenvalues, fixed vectors choose the basis, not rounding, and rotated
    gradients that are rounding count as 0.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        shampoo_beta: decay rate of L and R, in [0, 1); negative: β₂.
        eps: added to the denominator, before the averages are corrected, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0; taken after the step.
        precondition_frequency: steps from one refresh of the bases to the next, ≥ 1.
        max_precond_dim: the largest dimension that gets a factor, ≥ 1.
        precondition_1d: give vectors a factor too.
        normalize_grads: bring every step to the root mean square 1.
        correct_bias: correct the averages for their start at 0.
        fallback: the rule of parameters that are no matrices, by its name ("adamw", "package.module:Class"): those without a factor.
            None: they are this rule's, in the way above.
        fallback_options: its options.
        fallback_lr_scale: its learning rate in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        ValueError: if there are only vectors, and precondition_1d is off.

    Example:
        >>> layer = torch.nn.Linear(2, 3)
        >>> optimizer = SOAP(layer.parameters(), lr=3e-3)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()

    Reference:
        Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024, arXiv 2409.11321.
    """

    #: Along a dimension of size 1 there is nothing to rotate.
    least_dim: ClassVar[int] = 2
    structural: ClassVar[frozenset[str]] = frozenset(("precondition_frequency", "max_precond_dim"))
    refused: ClassVar = {"capturable": "its decompositions synchronise with the host"}

    def __init__(
        self,
        params: Any,
        lr: Lr = 3e-3,
        betas: Betas = (0.95, 0.95),
        shampoo_beta: Annotated[float, Range(lt=1, why="negative for the second of betas")] = -1,
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.01,
        precondition_frequency: Count = 10,
        max_precond_dim: Count = 10000,
        *,
        precondition_1d: bool = False,
        normalize_grads: bool = False,
        correct_bias: bool = True,
        fallback: str | None = None,
        fallback_options: Annotated[Mapping[str, Any] | None, Needs("fallback")] = None,
        fallback_lr_scale: Annotated[NonNegative, Needs("fallback")] = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)
        expect_matrices(
            self, "precondition_1d=True, or AdamW", lambda h, p: p.dim() > 1 or h.precondition_1d, strict=True
        )

    @classmethod
    def factored(cls, h: Any, p: Tensor) -> tuple[int, ...]:
        """The dimensions that get a factor."""
        if p.is_complex() or (p.dim() == 1 and not h.precondition_1d):
            return ()
        return tuple(i for i, n in enumerate(p.shape) if cls.least_dim <= n <= h.max_precond_dim)

    @classmethod
    def is_matrix(cls, h: Any, p: Tensor) -> bool:
        return bool(cls.factored(h, p))

    @classmethod
    def slots(cls, h: Any, p: Tensor) -> dict[str, Slot]:
        averages = {"exp_avg": signed(least_bits=8), "exp_avg_sq": positive(least_bits=8)}
        sides = {i: (p.shape[i], p.shape[i]) for i in cls.factored(h, p)}
        factors = {f"GG_{i}": Slot(shape=side) for i, side in sides.items()}
        return {**averages, **factors, **{f"Q_{i}": Slot(shape=side) for i, side in sides.items()}}

    @classmethod
    def traits(cls, h: Any, p: Tensor) -> dict[str, Any]:
        return {"factored": cls.factored(h, p)}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2 = h.betas
        taken = t - 1
        corrects = h.correct_bias and taken > 0
        return {
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "factor_weight": 1 - (h.shampoo_beta if h.shampoo_beta >= 0 else beta2),
            "gain": (1 - beta2**taken) ** 0.5 / (1 - beta1**taken) if corrects else float(taken > 0),
            "decay_amount": decay_amount(h) if taken > 0 else 0.0,
            "first": taken == 0,
            "refresh": taken > 0 and taken % h.precondition_frequency == 0,
        }

    @staticmethod
    def decay(h: Any) -> Decay:
        return "after"

    @classmethod
    def direction(cls, p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        d = torch.zeros_like(g) if k.first else rotated_adam(g, s, k)
        factors = [getattr(s, f"GG_{i}") for i in k.factored]
        measured = [finite_else(m, f) for m, f in zip(cls.measure(g, s, k), factors, strict=True)]
        if k.first:
            # The decompositions come first: one that fails leaves the state as it was.
            bases = [eigenbasis(blend(f, m, k.factor_weight)) for f, m in zip(factors, measured, strict=True)]
            for i, basis in zip(k.factored, bases, strict=True):
                assign(getattr(s, f"Q_{i}"), basis)
        for f, m in zip(factors, measured, strict=True):
            ema(f, m, k.factor_weight)
        if k.refresh:
            refresh_bases(s, k)
        return d

    @staticmethod
    def measure(g: Tensor, s: State, k: Known) -> list[Tensor]:
        """What a gradient says of each factor."""
        return [gram(g, i) for i in k.factored]


class KLSOAP(SOAP):
    """SOAP with the factors of KL-Shampoo, each measured where the others are already divided out.

    ::

        L ← βL + (1−β)/n·G·R⁻¹·Gᵀ,   R ← βR + (1−β)/m·Gᵀ·L⁻¹·G        for an m×n matrix; the rest as in SOAP

    with R⁻¹ = Q_R·diag(1/(λ_R + eps))·Q_Rᵀ and λ_R the average, under β, of what is added to R, seen in Q_R's
    coordinates; likewise L⁻¹. Eigenvalues start at 0.1; the first step takes both inverses as I. Of all Kronecker
    products L ⊗ R is then the nearest to the gradient's covariance in Kullback-Leibler divergence. A tensor of more
    dimensions has all other factors divided out of each.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        shampoo_beta: decay rate of L and R, in [0, 1); negative: β₂.
        eps: added to the denominator and to the eigenvalues, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0; taken after the step.
        precondition_frequency: steps from one refresh of the bases to the next, ≥ 1.
        max_precond_dim: the largest dimension that gets a factor, ≥ 1.
        precondition_1d: give vectors a factor too.
        normalize_grads: bring every step to the root mean square 1.
        correct_bias: correct the averages for their start at 0.
        fallback: the rule of parameters that are no matrices, by its name ("adamw", "package.module:Class"): those without a factor.
            None: they are this rule's, in the way above.
        fallback_options: its options.
        fallback_lr_scale: its learning rate in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        ValueError: if there are only vectors, and precondition_1d is off.

    Example:
        >>> layer = torch.nn.Linear(2, 3)
        >>> optimizer = KLSOAP(layer.parameters(), lr=3e-3)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()

    Reference:
        Lin et al., Understanding and Improving Shampoo and SOAP via Kullback-Leibler Minimization, 2025,
        arXiv 2509.03378.
    """

    #: A factor of size 1 scales the others.
    least_dim: ClassVar[int] = 1

    @classmethod
    def slots(cls, h: Any, p: Tensor) -> dict[str, Slot]:
        sides = {f"eigenvalues_{i}": (p.shape[i],) for i in cls.factored(h, p)}
        return {**super().slots(h, p), **{name: Slot("positive", 0.1, shape=side) for name, side in sides.items()}}

    @staticmethod
    def measure(g: Tensor, s: State, k: Known) -> list[Tensor]:
        if k.first:
            return [gram(g, i) * (k.shape[i] / k.numel) for i in k.factored]
        bases = bases_of(s, k)
        scales = [torch.rsqrt(getattr(s, f"eigenvalues_{i}") + k.eps) for i in k.factored]
        rotated = rotate(g, bases, k)
        measured = []
        for i, q in zip(k.factored, bases, strict=True):
            # Whitened along all other dimensions; along i in the basis first, which shows the eigenvalues.
            white = rotated
            for j, scale in zip(k.factored, scales, strict=True):
                if j != i:
                    white = white * scale.reshape([-1 if d == j else 1 for d in range(k.ndim)])
            others = [d for d in range(k.ndim) if d != i]
            seen = (white * white).mean(others) if others else white * white
            eigenvalues = getattr(s, f"eigenvalues_{i}")
            ema(eigenvalues, finite_else(seen, eigenvalues), k.factor_weight)
            measured.append(gram(along(white, transpose(q), i), i) * (k.shape[i] / k.numel))
        return measured


def rotated_adam(g: Tensor, s: State, k: Known) -> Tensor:
    """Adam's direction, found in the coordinates of the eigenbases."""
    bases = bases_of(s, k)
    rotated = rotate(g, bases, k)
    ema(s.exp_avg, rotated, k.weight1)
    ema_sq(s.exp_avg_sq, rotated, k.weight2)
    d = rotate_back(s.exp_avg / root(s.exp_avg_sq, 1.0, k.eps), bases, k)
    return d / (k.rms(d) + 1e-30) if k.normalize_grads else d


def bases_of(s: State, k: Known) -> list[Tensor]:
    """The eigenbases of the factored dimensions."""
    return [getattr(s, f"Q_{i}") for i in k.factored]


def rotate(x: Tensor, bases: Sequence[Tensor], k: Known) -> Tensor:
    """x in the coordinates of the eigenbases, where what rounding leaves along directions that x lacks is 0."""
    for i, q in zip(k.factored, bases, strict=True):
        x = along(x, q, i)
    return without_rounding(x, k.factored)


def rotate_back(x: Tensor, bases: Sequence[Tensor], k: Known) -> Tensor:
    """x, given in the coordinates of the eigenbases, in the parameter's."""
    for i, q in zip(k.factored, bases, strict=True):
        x = along(x, transpose(q), i)
    return x


def refresh_bases(s: State, k: Known) -> None:
    """One power iteration on every eigenbasis; the averages follow into the new coordinates."""
    exp_avg = rotate_back(s.exp_avg, bases_of(s, k), k)
    for i, q in zip(k.factored, bases_of(s, k), strict=True):
        # In float64: the least eigenvalues of a float32 factor have few digits, and QR would take some of them.
        basis = q.double()
        powered = product(getattr(s, f"GG_{i}").double(), basis)
        eigenvalues = (basis * powered).sum(-2)
        # Those of a null space are rounding, by which vectors are not to be ordered.
        known = eigenvalues > eigenvalues.amax() * rounding(len(q), q.dtype)
        order = torch.argsort(torch.where(known, eigenvalues, 0.0), descending=True, stable=True)
        for name, dim in (("exp_avg_sq", i), (f"eigenvalues_{i}", 0)):
            if name in s:
                assign(getattr(s, name), getattr(s, name).index_select(dim, order))
        assign(q, power_step(basis.index_select(-1, order), powered.index_select(-1, order), q.dtype))
    assign(s.exp_avg, rotate(exp_avg, bases_of(s, k), k))
