"""Adafactor as two other projects have it: Big Vision's, with momentum in half precision, and torch's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.options import Common, Dtype, if_averaged
from descend.engine.ranges import ActsWith, Beta, Fraction, Lr, NonNegative, Positive, Range, WeightDecay, own
from descend.engine.slots import Slot
from descend.optimizers.adafactor import factored_root, factored_slots, move_factors
from descend.terms import accumulate, bounded, clip_ratio, ema, least, most

_DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


class AdafactorBigVision(Optimizer):
    """Adafactor as Big Vision trains vision transformers: with momentum, and on Adam's learning rates.

    ::

        R ← R + (1−β₂ₜ)(row means of g² + eps − R),  C likewise with column means
        u = g·√(mean(R)/(R·C)),                      or g/√V with V the average of g² + eps
        u ← u/max(1, RMS(u)/clipping_threshold)
        m ← momentum·m + (1−momentum)·u,             rounded to momentum_dtype
        p ← p − lr·weight_decay·p − lr·m

    where β₂ₜ = min(beta2_cap, 1 − max(t − decay_offset, 1)^−decay_rate).

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        min_dim_size_to_factor: the two largest dimensions are factored if both have this size, ≥ 1.
        decay_rate: exponent of t in 1 − β₂ₜ, > 0.
        decay_offset: step at which β₂ₜ starts to grow, for fine-tuning that goes on counting, ≥ 0.
        beta2_cap: largest β₂ₜ, in [0, 1).
        momentum: decay rate of the average of updates, in [0, 1); None: no average.
        momentum_dtype: what the average is kept in: "bfloat16", "float16", "float32", "float64" or the torch dtype.
        eps: added to squared gradients, ≥ 0; None: 1e-30, and 1e-7 for float16 parameters.
        weight_decay: decoupled decay, in units of lr unless ``unscaled_wd``, ≥ 0.
        clipping_threshold: the root mean square that updates are brought down to, > 0; None: off.
        unscaled_wd: decay by weight_decay itself.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = AdafactorBigVision(layer.parameters(), lr=1e-3, momentum_dtype="float32")
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Zhai et al., Scaling Vision Transformers, 2022, arXiv 2106.04560. Dimensions and rounding follow timm.
    """

    acts_with: ClassVar = if_averaged(ActsWith("momentum"))
    reach: ClassVar[Reach] = "rows"
    stacks: ClassVar[bool | None] = False  # its rounding looks at bits, which torch.vmap does not
    structural: ClassVar[frozenset[str]] = frozenset(("min_dim_size_to_factor",))

    def __init__(
        self,
        params: Any,
        lr: Lr = 1.0,
        min_dim_size_to_factor: int = 16,
        decay_rate: Positive = 0.8,
        decay_offset: NonNegative = 0,
        beta2_cap: Beta = 0.999,
        momentum: Fraction | None = 0.9,
        momentum_dtype: Annotated[Dtype, ActsWith("momentum")] = torch.bfloat16,
        eps: NonNegative | None = None,
        weight_decay: WeightDecay = 0.0,
        clipping_threshold: Positive | None = None,
        unscaled_wd: Annotated[bool, ActsWith("weight_decay")] = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        by_size = sorted(range(p.dim()), key=lambda d: (p.shape[d], d))
        large = len(by_size) >= 2 and p.shape[by_size[-2]] >= h.min_dim_size_to_factor
        floor = 1e-7 if p.dtype == torch.float16 else 1e-30
        return {"factored": tuple(by_size[-2:]) if large else None, "floor": floor}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        dims = AdafactorBigVision.traits(h, p)["factored"]
        slots = factored_slots(dims, row="exp_avg_sq_r", col="exp_avg_sq_c", keepdim=True)
        if h.momentum is None:
            return slots
        if p.is_complex():
            raise ValueError(
                f"momentum_dtype={h.momentum_dtype!r} cannot hold a complex parameter, expected momentum=None"
            )
        return {"exp_avg": Slot("signed", dtype=_dtype(h.momentum_dtype)), **slots}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        weights = {"weight2": most(1 - h.beta2_cap, most(t - h.decay_offset, 1.0) ** -h.decay_rate)}
        if h.momentum is not None:
            weights["weight1"] = 1 - h.momentum
        if not h.unscaled_wd:
            return weights
        amount = h.weight_decay * h.lr / h.max_lr_snapshot if h.corrected_weight_decay else h.weight_decay
        return {**weights, "decay_amount": amount}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        sq = (g * g).add_(k.floor if k.eps is None else k.eps)
        if k.factored is None:
            u = torch.rsqrt(accumulate(s.exp_avg_sq, 1 - k.weight2, sq, k.weight2)) * g
        else:
            u = factored_root(sq, s.exp_avg_sq_r, s.exp_avg_sq_c, k.factored, k.weight2, k) * g
        if k.clipping_threshold is not None:
            u = u / clip_ratio(k.rms(u), k.clipping_threshold)
        if "exp_avg" not in s:
            return u
        return _rounded(ema(s.exp_avg, _rounded(u, k.momentum_dtype), k.weight1), k.momentum_dtype)


class TorchAdafactor(Optimizer):
    """Adafactor as torch has it, with steps relative to the size of the parameter.

    ::

        R ← R + t^beta2_decay·(row means of g² − R),   C likewise with column means
        V = R·C/max(mean(R), eps₁),                    or V ← V + t^beta2_decay·(g² − V) for vectors
        u = g/√max(V, eps₁²)
        p ← p − lr·weight_decay·p − min(lr, 1/√t)·max(eps₂, RMS(p))·u/max(1, RMS(u)/d)

    Args:
        params: parameters or groups of parameters.
        lr: largest relative step, ≥ 0.
        beta2_decay: exponent of t, ≤ 0.
        eps: (eps₁, eps₂), ≥ 0: the floor of √V, None for the parameter dtype's own; and the least scale of a parameter.
        d: the root mean square that updates are brought down to, ≥ 1.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = TorchAdafactor(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Shazeer, Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018, arXiv 1804.04235. State of
        half-precision parameters is float32, and an eps₁ of None is every parameter's own, not the first one's.
    """

    acts_with: ClassVar = if_averaged()
    reach: ClassVar[Reach] = "rows"

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        beta2_decay: Annotated[float, Range(le=0)] = -0.8,
        eps: tuple[NonNegative | None, NonNegative] = (None, 1e-3),
        d: Annotated[float, Range(ge=1)] = 1.0,
        weight_decay: WeightDecay = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        floor = torch.finfo(p.dtype).eps if h.eps[0] is None else float(h.eps[0])
        return {"factored": (p.dim() - 2, p.dim() - 1) if p.dim() >= 2 else None, "floor": floor}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        dims = (p.dim() - 2, p.dim() - 1) if p.dim() >= 2 else None
        return factored_slots(dims, whole="variance", row="row_var", col="col_var", keepdim=True)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"weight2": t**h.beta2_decay, "step_size": least(h.lr, t**-0.5), "least_scale": float(h.eps[1])}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        if k.factored is None:
            v = ema(s.variance, bounded(g * g), k.weight2)
        else:
            mean_of_rows = move_factors(g * g, s.row_var, s.col_var, k.factored, k.weight2, k)
            v = s.row_var * s.col_var / torch.clamp(mean_of_rows, min=k.floor)
        u = torch.rsqrt(torch.clamp(v, min=k.floor**2)) * g
        p_rms, u_rms = (torch.sqrt(total / k.numel) for total in k.sums(p * p, u * u))
        return u * (torch.clamp(p_rms, min=k.least_scale) / clip_ratio(u_rms, k.d))


def _rounded(x: Tensor, dtype: str | torch.dtype) -> Tensor:
    """x as the average's dtype holds it: all that timm adds to it and steps by."""
    kept = _dtype(dtype)
    low = x.to(kept)
    if kept.itemsize == 2:
        # The compiler drops a cast to half precision and back, but not one between whose halves bits are worked on.
        low = low.view(torch.int16).bitwise_or(0).view(kept)
    return low.type_as(x)


def _dtype(name: str | torch.dtype) -> torch.dtype:
    return _DTYPES.get(name, torch.int8) if isinstance(name, str) else name
