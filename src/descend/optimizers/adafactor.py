"""Adafactor: the second moment of a matrix from its row and column means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.options import OWN_DECAY, OWN_STEP, Common, if_averaged
from descend.engine.ranges import ActsWith, Beta, Lr, NonNegative, Positive, Range, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.terms import accumulate, bounded, clip_ratio, ema, least, most


def factored_slots(
    dims: tuple[int, int] | None,
    whole: str = "exp_avg_sq",
    row: str = "exp_avg_sq_row",
    col: str = "exp_avg_sq_col",
    keepdim: bool = False,
) -> dict[str, Slot]:
    """Row and column averages where two dimensions are factored, else the whole second moment."""
    if dims is None:
        return {whole: positive()}
    across_rows, along_rows = dims
    return {
        row: Slot("positive", reduce=(along_rows,), keepdim=keepdim),
        col: Slot("positive", reduce=(across_rows,), keepdim=keepdim),
    }


def move_factors(sq: Tensor, rows: Tensor, cols: Tensor, dims: tuple[int, int], weight: Any, k: Known) -> Tensor:
    """Move the row and column averages, reduced dimensions of size 1, towards those of `sq`; return mean(R)."""
    across_rows, along_rows = dims
    along, across = k.count((along_rows,)), k.count((across_rows,))
    sq = bounded(sq, 2 * along * across)
    row_sum, col_sum = sq.sum(along_rows, keepdim=True), sq.sum(across_rows, keepdim=True)
    row_sum, col_sum, all_sum, rows_sum = k.complete(
        (row_sum, (along_rows,)),
        (col_sum, (across_rows,)),
        (row_sum.sum(across_rows, keepdim=True), (across_rows, along_rows)),
        (rows.sum(across_rows, keepdim=True), (across_rows,)),
    )
    # Not as differences: a weight of 1 has to forget what was there altogether, however large it was.
    kept = 1 - weight
    mean_of_rows = (rows_sum * kept + all_sum / along * weight) / across
    accumulate(rows, kept, row_sum / along, weight)
    accumulate(cols, kept, col_sum / across, weight)
    return mean_of_rows


def factored_root(sq: Tensor, rows: Tensor, cols: Tensor, dims: tuple[int, int], weight: Any, k: Known) -> Tensor:
    """Move the row and column averages towards those of `sq`; return 1/√(R·C/mean(R))."""
    mean_of_rows = move_factors(sq, rows, cols, dims, weight, k)
    return torch.rsqrt(rows / mean_of_rows) * torch.rsqrt(cols)


def spread(row: Tensor, col: Tensor, dims: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column averages with the dimensions that they lack, of size 1."""
    across_rows, along_rows = dims
    return row.unsqueeze(along_rows), col.unsqueeze(across_rows)


class Adafactor(Optimizer):
    """Adafactor, with sublinear memory for matrices.

    ::

        R ← R + (1−β₂ₜ)(row means of g² + eps − R),  C likewise with column means,   β₂ₜ = 1 − t^decay_rate
        u = g·√(mean(R)/(R·C)),                      or g/√V with V the average of g² + eps
        u ← lrₜ·u/max(1, RMS(u)/clip_threshold)
        M ← β₁M + (1−β₁)u,  u = M                    with betas
        p ← p − weight_decay·lrₜ·p − u

    where lrₜ is lr, or min(1e-2, 1/√t)·max(eps_scale, RMS(p)) when lr is None.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0; None: the relative step above, which no lr scheduler can multiply: LambdaLR and others
            raise torch's TypeError.
        eps: added to squared gradients, ≥ 0.
        eps_scale: least scale of a parameter, ≥ 0; acts with lr=None and ``scale_parameter``.
        clip_threshold: the root mean square that updates are brought down to, > 0.
        decay_rate: exponent of t in 1 − β₂ₜ, < 0.
        betas: the first is the decay rate of the average of updates, the rest are ignored; None: no average, and () in
            the groups. A schedule that cycles momentum (OneCycleLR, CyclicLR) switches it on.
        weight_decay: decoupled decay, in units of lrₜ, ≥ 0.
        scale_parameter: multiply the relative step by the parameter's scale; acts with lr=None.
        warmup_init: relative steps start at 1e-6·t; acts with lr=None.
        min_dim_size_to_factor: both factored dimensions are larger than this, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`. ``caution`` acts on the average, as in timm.

    Raises:
        ValueError: for warmup_init together with an lr.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adafactor(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Shazeer, Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018, arXiv 1804.04235. Which
        dimensions are factored follows timm: the first two of four where both are large, else the last two.
    """

    acts_with: ClassVar = if_averaged(ActsWith("betas"))
    refused: ClassVar[Mapping[str, str]] = {
        **OWN_DECAY,
        **OWN_STEP,
        **dict.fromkeys(("grams", "update_clip"), "the learning rate is inside the average here"),
    }

    reach: ClassVar[Reach] = "rows"
    foreign_names: ClassVar[Mapping[str, str | None]] = {"RMS": None}
    structural: ClassVar[frozenset[str]] = frozenset(("min_dim_size_to_factor",))

    def __init__(
        self,
        params: Any,
        lr: Lr | None = None,
        eps: NonNegative = 1e-30,
        eps_scale: Annotated[NonNegative, ActsWith("scale_parameter", lr=None)] = 1e-3,
        clip_threshold: Positive = 1.0,
        decay_rate: Annotated[float, Range(lt=0)] = -0.8,
        betas: tuple[Beta, ...] | None = None,
        weight_decay: WeightDecay = 0.0,
        scale_parameter: Annotated[bool, ActsWith(lr=None)] = True,
        warmup_init: bool = False,
        *,
        min_dim_size_to_factor: int = 16,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; betas of None are () in it."""
        super().add_param_group(param_group)
        _let_betas_cycle(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            _let_betas_cycle(group)

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        n, least_size = p.shape, h.min_dim_size_to_factor
        if p.dim() > 2 and n[0] > least_size and n[1] > least_size:
            return {"factored": (0, 1)}
        if p.dim() >= 2 and n[-2] > least_size and n[-1] > least_size:
            return {"factored": (p.dim() - 2, p.dim() - 1)}
        return {"factored": None}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        slots = factored_slots(Adafactor.traits(h, p)["factored"])
        return {"exp_avg": signed(), **slots} if h.betas else slots

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        rate = h.lr
        if rate is None:
            rate = least(1e-6 * t if h.warmup_init else 1e-2, t**-0.5)
        relative = h.lr is None and h.scale_parameter
        rates = {"rate": rate, "relative": relative, "step_size": 1.0, "decay_amount": rate * h.weight_decay}
        return {**rates, "weight2": t**h.decay_rate, "caution": bool(h.caution and h.betas)}

    @staticmethod
    def check(h: Any) -> None:
        if h.warmup_init and h.lr is not None:
            raise ValueError(f"warmup_init=True with lr={h.lr!r}, expected lr=None: only relative steps warm up")

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | tuple[Tensor, Any]:
        rate = most(k.rms(p), k.eps_scale) * k.rate if k.relative else k.rate
        sq = (g * g).add_(k.eps)
        if k.factored is not None:
            rows, cols = spread(s.exp_avg_sq_row, s.exp_avg_sq_col, k.factored)
            u = factored_root(sq, rows, cols, k.factored, k.weight2, k).mul_(g)
        else:
            u = torch.rsqrt(ema(s.exp_avg_sq, bounded(sq), k.weight2)).mul_(g)
        u.mul_(rate / clip_ratio(k.rms(u), k.clip_threshold))
        if "exp_avg" in s:
            u = ema(s.exp_avg, u, 1 - k.beta1)
        return (u, rate * k.weight_decay) if k.relative else u


def _let_betas_cycle(group: dict[str, Any]) -> None:
    """A schedule that cycles momentum writes (beta, *betas[1:]), and so begins to average where there was no average."""
    group["betas"] = group["betas"] or ()
