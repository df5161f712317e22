"""Muon: momentum of hidden matrices, orthogonalised."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.options import Common
from descend.engine.ranges import ActsWith, Beta, Betas, Count, Fraction, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.unwrapped import unwrapped
from descend.engine.update import has_stages
from descend.optimizers.adam import bias_correction
from descend.optimizers.routed import MatrixRule, as_matrices, from_matrices, matrices_shape
from descend.orthogonal import NS_DTYPES, Coefficients, coefficient_sequence, orthogonalize
from descend.terms import blend, ema, ema_sq, root

_LR_RULES = {
    "muon": (None, "original", "match_rms_adamw", "rms_to_rms"),
    "adamuon": (None, "match_rms_adamw", "rms_to_rms", "rsqrt_in"),
}


class _Orthogonal(MatrixRule):
    """What Muon and NorMuon share: momentum, its polar factor, and the lr that follows the shape."""

    stacks: ClassVar[bool | None] = True

    @staticmethod
    def check(h: Any) -> None:
        coefficient_sequence(h.ns_coefficients, h.ns_steps)

    @classmethod
    def traits(cls, h: Any, p: Tensor) -> dict[str, Any]:
        return {**super().traits(h, p), "ns_coefficients": coefficient_sequence(h.ns_coefficients, h.ns_steps)}

    @staticmethod
    def gain(h: Any, p: Tensor) -> float:
        return shape_gain(h.adjust_lr_fn, *matrices_shape(h, p)[-2:])

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {**bias_correction(t, h), "pull": 1 - h.momentum}


class Muon(_Orthogonal):
    """Muon, momentum orthogonalised by Newton-Schulz, with AdamW for everything that is not a hidden matrix.

    ::

        M ← momentum·M + (1−momentum)·G
        U = M,  or momentum·M + (1−momentum)·G with nesterov
        O = NewtonSchulz(U) ≈ the orthogonal matrix nearest to U
        W ← W − lr·weight_decay·W − lr·s·O

    where s is √max(1, m/n) ("original"), 0.2·√max(m, n) ("match_rms_adamw"), √(m/n) ("rms_to_rms") or 1 (None) for
    an m×n matrix. With ``algo="adamuon"``, V ← β₂V + (1−β₂)O² and O becomes O/(√V + eps), brought to the root mean
    square 0.2 under "match_rms_adamw"; elsewhere V is debiased and s is √(m/n), n^(−½) ("rsqrt_in") or 1.

    Args:
        params: parameters or groups of parameters; see :func:`~descend.muon_param_groups`.
        lr: learning rate, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        momentum: decay rate of the average, in [0, 1].
        nesterov: look one step ahead, in the fallback too, which is NAdamW then.
        ns_steps: Newton-Schulz steps, ≥ 1.
        ns_coefficients: their coefficients, see :func:`~descend.orthogonal.orthogonalize`.
        eps: the least norm a matrix is divided by, and AdamW's eps, ≥ 0.
        safety_factor: matrices are divided by this much more than their norm.
        adjust_lr_fn: how the lr follows the shape, see above.
        conv_mode: convolutions are matrices out×(in·positions) ("flatten") or one matrix a position ("batched").
        normalize_spatial: divide s by the root of the number of positions when they are "batched".
        adamw_lr: the fallback's learning rate, kept as fallback_lr_scale = adamw_lr/lr.
        fallback_lr_scale: the fallback's learning rate in units of lr, ≥ 0.
        betas: decay rates of the fallback's averages; the second is also AdaMuon's.
        algo: "muon" or "adamuon".
        scale_eps: add eps·√(n/m) to a matrix's norm rather than using eps as its least value.
        verbose: log which rule each parameter goes to; ``param_groups_table`` shows the same.
        fallback: the rule of all other parameters, by its name ("lion", "package.module:Class"); None: AdamW, or NAdamW
            with nesterov.
        fallback_options: its options.
        use_fallback: treat all parameters of the group as the fallback's.
        use_muon: True or False decides for the group whatever the shapes; None: shapes decide.
        split: number of equal parts along the rows that are matrices of their own (3 for a fused QKV weight, or the
            number of heads), ≥ 1.
        stacked: the last two dimensions are matrices, all before them a batch (stacked experts).
        ns_dtype: "bfloat16", "float32", or None for bfloat16 on float32 parameters; float64 stays.
        **common: see :class:`~descend.engine.options.Common`.

    Warns:
        UserWarning: if no parameter is a hidden matrix and no group says that this is meant.

    Example:
        >>> layer = torch.nn.Linear(8, 8)
        >>> optimizer = Muon(layer.parameters(), lr=1e-3)
        >>> layer(torch.ones(8)).sum().backward()
        >>> optimizer.step()

    Reference:
        Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024. Liu et al., Muon is Scalable for
        LLM Training, 2025, arXiv 2502.16982. Si et al., AdaMuon, 2025, arXiv 2507.11005. Which shapes are matrices
        follows timm.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 0.02,
        weight_decay: WeightDecay = 0,
        momentum: Fraction = 0.95,
        nesterov: bool = False,
        ns_steps: Count = 5,
        ns_coefficients: Coefficients = "quintic",
        eps: NonNegative = 1e-7,
        safety_factor: float = 1.0,
        adjust_lr_fn: str | None = "match_rms_adamw",
        conv_mode: Literal["flatten", "batched"] = "flatten",
        normalize_spatial: Annotated[bool, ActsWith(conv_mode="batched")] = True,
        adamw_lr: float | None = None,
        fallback_lr_scale: NonNegative = 1.0,
        betas: Betas = (0.9, 0.95),
        algo: Literal["muon", "adamuon"] = "muon",
        scale_eps: bool = False,
        *,
        verbose: bool = False,
        fallback: str | None = None,
        fallback_options: Mapping[str, Any] | None = None,
        use_fallback: bool = False,
        use_muon: bool | None = None,
        split: Count = 1,
        stacked: bool = False,
        ns_dtype: Literal["bfloat16", "float32"] | None = None,
        **common: Unpack[Common],
    ) -> None:
        if adamw_lr is not None:
            if not float(lr) > 0:
                raise ValueError(
                    f"Muon: adamw_lr={adamw_lr!r} with lr={lr!r}, expected lr > 0; or use fallback_lr_scale"
                )
            fallback_lr_scale = adamw_lr / float(lr)
        mine = own(locals())
        del mine["adamw_lr"], mine["verbose"]
        super().__init__(params, mine, **common)
        if verbose:
            log = logging.getLogger(__name__)
            for i, group in enumerate(self.param_groups):
                for p in group["params"]:
                    log.info("group %d, %s: %s", i, tuple(p.shape), self.rule_name(p, group))

    @staticmethod
    def check(h: Any) -> None:
        _Orthogonal.check(h)
        if h.adjust_lr_fn not in _LR_RULES[h.algo]:
            names = ", ".join(map(repr, _LR_RULES[h.algo]))
            raise ValueError(f"adjust_lr_fn={h.adjust_lr_fn!r} with algo={h.algo!r}, expected one of {names}")

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        matrices_shape(h, p)
        slots = {"momentum_buffer": signed(least_bits=8)}
        return {**slots, "exp_avg_sq": positive()} if h.algo == "adamuon" else slots

    @staticmethod
    def gain(h: Any, p: Tensor) -> float:
        if h.algo == "adamuon" and h.adjust_lr_fn == "match_rms_adamw":
            gain = 0.2 * p.numel() ** 0.5
        else:
            gain = shape_gain(h.adjust_lr_fn, *matrices_shape(h, p)[-2:])
        return gain * spatial_gain(h, p)

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        if k.algo == "muon":
            return from_matrices(polar_momentum(g, s, k, widen=shapes_direction(k)), k)
        o = from_matrices(polar_momentum(g, s, k), k)
        ema_sq(s.exp_avg_sq, o, k.weight2)
        if k.adjust_lr_fn != "match_rms_adamw":
            return o / root(s.exp_avg_sq, k.debias2, k.eps)
        o = o / root(s.exp_avg_sq, 1.0, k.eps)
        return o / (k.norm(o) + k.eps)

    @unwrapped
    def rule_name(self, param: Tensor, group: Mapping[str, Any]) -> str:
        name = super().rule_name(param, group)
        return "AdaMuon" if name == "Muon" and {**self.defaults, **group}["algo"] == "adamuon" else name


class NorMuon(_Orthogonal):
    """NorMuon, Muon with the rows of the orthogonalised step brought to one size.

    ::

        O = NewtonSchulz(U), U as in Muon
        vᵢ ← beta2·vᵢ + (1−beta2)·meanⱼ Oᵢⱼ²                        for every row i
        Ô = Oᵢⱼ/(√vᵢ + row_eps),  scaled to ‖O‖
        W ← W − lr·weight_decay·W − lr·s·Ô

    Args:
        params: parameters or groups of parameters; see :func:`~descend.muon_param_groups`.
        lr: learning rate, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        momentum: decay rate of the average, in [0, 1].
        beta2: decay rate of the rows' average, in [0, 1).
        nesterov: look one step ahead, in the fallback too, which is NAdamW then.
        ns_steps: Newton-Schulz steps, ≥ 1.
        ns_coefficients: their coefficients, see :func:`~descend.orthogonal.orthogonalize`.
        eps: the least norm a matrix is divided by, and AdamW's eps, ≥ 0.
        safety_factor: matrices are divided by this much more than their norm.
        adjust_lr_fn: how the lr follows the shape, as in :class:`Muon`.
        row_eps: added to the root of a row's average, ≥ 0.
        fallback_lr_scale: the fallback's learning rate in units of lr, ≥ 0.
        betas: decay rates of the fallback's averages.
        scale_eps: add eps·√(n/m) to a matrix's norm rather than using eps as its least value.
        fallback: the rule of all other parameters, by its name ("lion", "package.module:Class"); None: AdamW, or NAdamW
            with nesterov.
        fallback_options: its options.
        use_fallback: treat all parameters of the group as the fallback's.
        use_muon: True or False decides for the group whatever the shapes; None: shapes decide.
        split: number of equal parts along the rows that are matrices of their own, ≥ 1.
        stacked: the last two dimensions are matrices, all before them a batch (stacked experts).
        ns_dtype: "bfloat16", "float32", or None for bfloat16 on float32 parameters; float64 stays.
        **common: see :class:`~descend.engine.options.Common`.

    Warns:
        UserWarning: if no parameter is a hidden matrix and no group says that this is meant.

    Example:
        >>> layer = torch.nn.Linear(8, 8)
        >>> optimizer = NorMuon(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(8)).sum().backward()
        >>> optimizer.step()

    Reference:
        Li et al., NorMuon: Making Muon more efficient and scalable, 2025, arXiv 2510.05491.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 0.02,
        weight_decay: WeightDecay = 0,
        momentum: Fraction = 0.95,
        beta2: Beta = 0.95,
        *,
        nesterov: bool = True,
        ns_steps: Count = 5,
        ns_coefficients: Coefficients = "keller",
        eps: NonNegative = 1e-7,
        safety_factor: float = 1.0,
        adjust_lr_fn: Literal["original", "match_rms_adamw", "rms_to_rms"] | None = "original",
        row_eps: NonNegative = 1e-10,
        fallback_lr_scale: NonNegative = 1.0,
        betas: Betas = (0.9, 0.95),
        scale_eps: bool = False,
        fallback: str | None = None,
        fallback_options: Mapping[str, Any] | None = None,
        use_fallback: bool = False,
        use_muon: bool | None = None,
        split: Count = 1,
        stacked: bool = False,
        ns_dtype: Literal["bfloat16", "float32"] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        rows = (*matrices_shape(h, p)[:-1], 1)
        return {"momentum_buffer": signed(least_bits=8), "second_momentum_buffer": Slot("positive", shape=rows)}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {**_Orthogonal.scalars(t, h, c), "row_weight": 1 - h.beta2}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        o = polar_momentum(g, s, k)
        ema(s.second_momentum_buffer, (o * o).mean(-1, keepdim=True), k.row_weight)
        even = o / torch.sqrt(s.second_momentum_buffer).add_(k.row_eps)
        return from_matrices(even * (_norms(o) / _norms(even).add_(k.row_eps)), k)


def shapes_direction(k: Known) -> bool:
    """Whether a stage between direction and step computes with the direction, which then should have all its digits."""
    return has_stages(k) or k.hyperball or k.cautious_weight_decay


def polar_momentum(g: Tensor, s: State, k: Known, widen: bool = True) -> Tensor:
    """Move the momentum and return its polar factor, as matrices; `widen` brings it to the dtype of g."""
    ema(s.momentum_buffer, g, k.pull)
    u = blend(g, s.momentum_buffer, k.momentum) if k.nesterov else s.momentum_buffer
    damping = dict(eps=k.eps, safety_factor=k.safety_factor, scale_eps=k.scale_eps)
    dtype = NS_DTYPES.get(k.ns_dtype)
    return orthogonalize(as_matrices(u, k), k.ns_steps, k.ns_coefficients, **damping, dtype=dtype, widen=widen)


def shape_gain(rule: str | None, rows: int, columns: int) -> float:
    """What multiplies the lr for a rows×columns matrix."""
    if rule == "original":
        return max(1.0, rows / columns) ** 0.5
    if rule == "match_rms_adamw":
        return 0.2 * max(rows, columns) ** 0.5
    if rule == "rms_to_rms":
        return (rows / columns) ** 0.5
    if rule == "rsqrt_in":
        return columns**-0.5
    return 1.0


def spatial_gain(h: Any, p: Tensor) -> float:
    """1/√(number of positions) for a convolution whose positions are matrices, where that is wanted."""
    spatial = h.conv_mode == "batched" and not h.stacked and p.dim() > 2
    return math.prod(p.shape[2:]) ** -0.5 if spatial and h.normalize_spatial else 1.0


def _norms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
