"""Kron: PSGD, a Kronecker-factored preconditioner that is fitted rather than inverted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.executors import loop
from descend.engine.optimizer import Decay
from descend.engine.options import Common, Dtype, if_decoupled
from descend.engine.ranges import ActsWith, Lr, Needs, NonNegative, Not, Positive, Range, WeightDecay, own
from descend.engine.slots import Slot
from descend.linear import along, gram, over_triangular, spectral_bound, transpose
from descend.optimizers.routed import Preconditioned
from descend.randomness import normal, uniform
from descend.terms import add_scaled, ema, finite_else

Probability = Annotated[float, Range(gt=0, le=1)] | Callable[[float], float] | None

_TINY = 2.0**-126
_DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "float64")}
_PROBE, _BALANCE, _DECAY = range(3)


class Kron(Preconditioned):
    """PSGD with Kronecker factors Q_L, Q_R, upper triangular.

    ::

        M ← momentum·M + (1−momentum)·G,   M̂ = M/(1 − momentumᵗ)
        A = Q_L·M̂·Q_Rᵀ,   B = Q_L⁻ᵀ·V·Q_R⁻¹ with normal random numbers V
        Q_L ← Q_L − precond_lr·triu(A·Aᵀ − B·Bᵀ)·Q_L/‖A·Aᵀ + B·Bᵀ‖,   Q_R likewise with AᵀA − BᵀB
        U = Q_LᵀQ_L·M̂·Q_RᵀQ_R,  its root mean square brought down to 1.1
        W ← W − lr·(U + weight_decay·W)

    Tensors of more dimensions have a factor for each. A factor is a diagonal where its dimension is 1 or larger than
    max_size_triangular, where the tensor has fewer than min_ndim_triangular dimensions, or to save memory. Factors are
    fitted at every of the first 500 steps and then less and less often, down to 3 steps in 100; about every hundredth fit
    first brings their largest elements to one size.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        momentum: decay rate of the average, in [0, 1).
        weight_decay: decay, ≥ 0; added to the step, unless ``decoupled_decay``.
        preconditioner_update_probability: share of the steps that fit the factors, in (0, 1], or a function of the
            steps taken, which checkpoints then hold; None: the schedule above.
        max_size_triangular: the largest dimension with a triangular factor.
        min_ndim_triangular: the fewest dimensions of a tensor with triangular factors.
        memory_save_mode: "one_diag" gives the largest dimension a diagonal, "smart_one_diag" does so where it is larger
            than all others, "all_diag" gives all a diagonal; None: none.
        momentum_into_precond_update: fit the factors to M̂ rather than to G.
        precond_lr: learning rate of the factors, ≥ 0.
        precond_init_scale: size of the first preconditioner, > 0.
        mu_dtype: what M is kept in, a torch dtype or its name; None: the parameter's, or float32 for half precision.
        precond_dtype: what the factors are kept in, likewise.
        decoupled_decay: decay the parameter by lr·weight_decay.
        flatten: take the dimensions from flatten_start_dim to flatten_end_dim as one.
        flatten_start_dim: the first of these.
        flatten_end_dim: the last of these; negative from the end.
        stochastic_weight_decay: multiply weight_decay by a random number between 0 and 2 at every step.
        deterministic: accepted for timm's sake and without effect: random numbers are always repeatable.
        seed: of the random numbers; they depend on it, the step, and a tensor's size and element, and on nothing else.
        fallback: the rule of parameters that are no matrices, by its name ("adamw", "package.module:Class"): those with diagonal factors alone.
            None: they are this rule's, in the way above.
        fallback_options: its options.
        fallback_lr_scale: its learning rate in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`. The corrected and the cautious weight decay act with
            ``decoupled_decay``.

    Raises:
        ValueError: for an option out of its range; the message says what would be right.

    Example:
        >>> layer = torch.nn.Linear(2, 3)
        >>> optimizer = Kron(layer.parameters(), lr=1e-3)
        >>> layer(torch.ones(2)).sum().backward()
        >>> optimizer.step()

    Reference:
        Li, Preconditioned Stochastic Gradient Descent, 2018; Pooladzandi, Li, Curvature-Informed SGD via General Purpose
        Lie-Group Preconditioners, 2024, arXiv 2402.04553. Options and schedule as in timm.
    """

    acts_with: ClassVar = if_decoupled("decoupled_decay")
    carried: ClassVar = {"update_counter": 0.0}
    structural: ClassVar[frozenset[str]] = frozenset(
        ("max_size_triangular", "min_ndim_triangular", "flatten_start_dim", "flatten_end_dim", "seed")
    )
    refused: ClassVar = {"capturable": "when to fit the factors is decided on the host"}

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        momentum: Annotated[float, Range(ge=0, lt=1, why="at 1 nothing would ever move")] = 0.9,
        weight_decay: WeightDecay = 0.0,
        preconditioner_update_probability: Probability = None,
        max_size_triangular: Annotated[int, ActsWith(memory_save_mode=Not("all_diag"))] = 2048,
        min_ndim_triangular: Annotated[int, ActsWith(memory_save_mode=Not("all_diag"))] = 2,
        memory_save_mode: Literal["one_diag", "smart_one_diag", "all_diag"] | None = None,
        momentum_into_precond_update: Annotated[bool, ActsWith("momentum")] = True,
        precond_lr: NonNegative = 0.1,
        precond_init_scale: Positive = 1.0,
        mu_dtype: Dtype | None = None,
        precond_dtype: Dtype | None = None,
        decoupled_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        *,
        flatten: bool = False,
        flatten_start_dim: Annotated[int, ActsWith("flatten")] = 2,
        flatten_end_dim: Annotated[int, ActsWith("flatten")] = -1,
        stochastic_weight_decay: Annotated[bool, ActsWith("weight_decay")] = False,
        deterministic: Annotated[bool, ActsWith(why="random numbers are always repeatable")] = False,
        seed: int = 1337,
        fallback: str | None = None,
        fallback_options: Annotated[Mapping[str, Any] | None, Needs("fallback")] = None,
        fallback_lr_scale: Annotated[NonNegative, Needs("fallback")] = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def check(h: Any) -> None:
        if h.fallback is not None and h.memory_save_mode == "all_diag":
            raise ValueError(
                f"fallback={h.fallback!r} with memory_save_mode='all_diag', which leaves no matrix to Kron"
            )

    @classmethod
    def is_matrix(cls, h: Any, p: Tensor) -> bool:
        return not all(diagonals(h, flattened(h, p)))

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        shape = flattened(h, p)
        scale = h.precond_init_scale ** (1 / len(shape))
        dtype = _dtype(h.precond_dtype) or (p.dtype.to_real() if p.is_complex() else None)
        slots = {"momentum_buffer": Slot(dtype=_dtype(h.mu_dtype), least_bits=8)}
        for i, (n, diagonal) in enumerate(zip(shape, diagonals(h, shape), strict=True)):
            side = (n,) if diagonal else (n, n)
            slots[f"Q_{i}"] = Slot(fill=scale, shape=side, eye=not diagonal, dtype=dtype)
        return slots

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        shape = flattened(h, p)
        return {"flat": shape, "diagonals": diagonals(h, shape)}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        counter = c.update_counter + 1
        fits = counter >= 1 / _probability(h, t - 1)
        c.update_counter = 0.0 if fits else counter
        return {
            "pull": 1 - h.momentum,
            "debias": 1 / (1 - h.momentum**t),
            "fits": fits,
            "balances": fits and _draw(h.seed, t, _BALANCE) < 0.01,
            "decay_share": 2 * _draw(h.seed, t, _DECAY) if h.stochastic_weight_decay else 1.0,
        }

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decoupled_decay else "direction"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> tuple[Tensor, Any]:
        m = ema(s.momentum_buffer, g, k.pull).reshape(k.flat) * k.debias
        factors = [getattr(s, f"Q_{i}") for i in range(len(k.flat))]
        if k.balances and len(factors) > 1:
            balance(factors)
        if k.fits:
            fit(factors, m if k.momentum_into_precond_update else g.reshape(k.flat), k)
        u = m
        for i, q in enumerate(factors):
            u = times(times(u, q, i, k), q, i, k, transposed=True)
        u = u * torch.clamp(1.1 / (k.rms(u) + 1e-8), max=1.0)
        return u.reshape(k.shape), k.decay_share * (k.decay_amount if k.decay == "decoupled" else k.weight_decay)


def flattened(h: Any, p: Tensor) -> tuple[int, ...]:
    """The shape in which a parameter is preconditioned: complex numbers as pairs, a number as a vector of one."""
    shape = (*p.shape, 2) if p.is_complex() else tuple(p.shape)
    start, end = h.flatten_start_dim, h.flatten_end_dim
    end = min(end if end >= 0 else len(shape) + end, len(shape) - 1)
    if h.flatten and start <= end:
        shape = (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])
    return shape or (1,)


def diagonals(h: Any, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Which dimensions have a diagonal factor."""
    largest = max(range(len(shape)), key=lambda i: (shape[i], i))
    alone = shape.count(shape[largest]) == 1 and len(shape) > 1
    saved = h.memory_save_mode == "one_diag" or (h.memory_save_mode == "smart_one_diag" and alone)
    return tuple(
        h.memory_save_mode == "all_diag"
        or (saved and i == largest)
        or n == 1
        or n > h.max_size_triangular
        or len(shape) < h.min_ndim_triangular
        for i, n in enumerate(shape)
    )


def times(x: Tensor, q: Tensor, i: int, k: Known, transposed: bool = False) -> Tensor:
    """Q, or its transpose, applied to dimension i of x."""
    if k.diagonals[i]:
        return x * lined_up(q, i, k)
    return along(x, q if transposed else transpose(q), i)


def lined_up(q: Tensor, i: int, k: Known) -> Tensor:
    """A diagonal factor in the shape that multiplies dimension i."""
    return q.reshape([-1 if j == i else 1 for j in range(len(k.flat))])


def fit(factors: list[Tensor], g: Tensor, k: Known) -> None:
    """One step of every factor towards AAᵀ = BBᵀ."""
    a, b = g, probe(g, k)
    for i, q in enumerate(factors):
        a = times(a, q, i, k)
        b = b / lined_up(q, i, k) if k.diagonals[i] else over_triangular(b, q, i)
    for i, q in enumerate(factors):
        fit_diagonal(q, a, b, i, k) if k.diagonals[i] else fit_triangular(q, a, b, i, k)


def fit_diagonal(q: Tensor, a: Tensor, b: Tensor, i: int, k: Known) -> None:
    """One step of a diagonal factor."""
    others = [j for j in range(len(k.flat)) if j != i]
    first, second = ((x * x).sum(others) if others else x * x for x in (a, b))
    size = torch.amax(first + second)
    add_scaled(q, finite_else((first - second) * q / (size + _TINY), 0.0), -k.precond_lr)


def fit_triangular(q: Tensor, a: Tensor, b: Tensor, i: int, k: Known) -> None:
    """One step of a triangular factor."""
    change, total = gram(a, i), gram(b, i)
    # What has served gives its memory to what comes: each is as large as the parameter.
    change, total = change - total, total.add_(change)
    size = spectral_bound(total) + _TINY
    add_scaled(q, torch.matmul(change.triu_(), q, out=total).div_(size).nan_to_num_(0.0, 0.0, 0.0), -k.precond_lr)


def probe(like: Tensor, k: Known) -> Tensor:
    """Standard normal numbers, made in pieces, since their integers take more memory than they do."""
    numbers = torch.empty_like(like, memory_format=torch.contiguous_format).view(-1)
    size = numbers.numel()
    many = max(loop.CHUNK // 8, 1)  # several of them as integers, which are twice as long
    for start in range(0, size, many):
        index = torch.arange(start, min(start + many, size), device=like.device)
        numbers[start : start + many].copy_(normal(index, k.seed, int(k.t), size, _PROBE))
    return numbers.view(like.shape)


def balance(factors: list[Tensor]) -> None:
    """Bring the factors' largest elements to their geometric mean."""
    sizes = [torch.amax(torch.abs(q)) for q in factors]
    mean = math.prod(sizes[1:], start=sizes[0]) ** (1 / len(sizes))
    for q, size in zip(factors, sizes, strict=True):
        q.mul_(mean / size)


def _probability(h: Any, taken: float) -> float:
    given = h.preconditioner_update_probability
    if given is None:
        return min(max(math.exp(-0.001 * (taken - 500)), 0.03), 1.0)
    return float(given(taken) if callable(given) else given)


def _draw(seed: int, t: float, purpose: int) -> float:
    """A number in (0, 1) for a step."""
    return float(uniform(torch.zeros((), dtype=torch.int64, device="cpu"), seed, int(t), purpose))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    return _DTYPES.get(dtype.removeprefix("torch."), torch.bool) if isinstance(dtype, str) else dtype
