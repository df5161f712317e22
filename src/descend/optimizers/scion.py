"""Scion: steps to the edge of a ball, in a norm that fits each kind of layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay
from descend.engine.options import OWN_DECAY, OWN_STEP, Common, if_averaged
from descend.engine.ranges import ActsWith, Count, Lr, Needs, NonNegative, Not, Positive, Range, own
from descend.engine.slots import Slot, signed
from descend.optimizers.routed import Preconditioned
from descend.orthogonal import NS_DTYPES, Coefficients, coefficient_sequence, orthogonalize
from descend.terms import ema

# What norm_kwargs may hold for each norm, and the dimensions that a parameter must have for it.
_NORMS: Mapping[str, tuple[frozenset[str], range]] = {
    "Spectral": (frozenset(("normalized", "max")), range(2, 3)),
    "SpectralConv": (frozenset(), range(3, 6)),
    "ColNorm": (frozenset(("normalized", "transpose")), range(2, 3)),
    "RowNorm": (frozenset(("normalized", "transpose")), range(2, 3)),
    "Sign": (frozenset(("normalized",)), range(2, 3)),
    "BiasRMS": (frozenset(), range(6)),
    "Auto": (frozenset(("normalized", "max")), range(6)),
}

_SPECTRAL = Needs(norm=("Auto", "Spectral", "SpectralConv"))


class Scion(Preconditioned):
    """Scion, stochastic conditional gradients with operator norms.

    ::

        M ← (1−momentum)·M + momentum·G
        W ← (1−lr)·W − lr·scale·corner(M)           with unconstrained: W ← W − lr·scale·corner(M)

    where corner(M) is the point of the unit ball that is furthest along M:

    =============  ===========================================  ==================================================
    norm           corner of an m×n matrix                      for
    =============  ===========================================  ==================================================
    Spectral       √(m/n)·NewtonSchulz(M)                       hidden matrices
    SpectralConv   √(m/n)/k²·NewtonSchulz(M as m×nk²)           convolutions
    ColNorm        columns divided by their root mean square    embeddings, as torch has them with transpose
    RowNorm        rows divided by their length and by √n       embeddings
    Sign           signs divided by n                           the output layer
    BiasRMS        divided by the root mean square              biases and other vectors
    Auto           the first, second or last by dimensions      everything, to begin with
    =============  ===========================================  ==================================================

    Args:
        params: parameters or groups of parameters; norm and scale are the group's to choose.
        lr: learning rate, in [0, 1]; also how far W is drawn to 0, so that scale bounds its norm.
        momentum: the weight of the new gradient, in (0, 1]; 0.1 in the paper.
        norm: see above.
        norm_kwargs: options of the norm. normalized: True, and False for ColNorm; whether the number of inputs is
            divided by. transpose: True takes rows for columns. max: True lets √(m/n) be at least 1.
        scale: radius of the ball, > 0; 50 for hidden matrices and 3000 for the output layer of GPTs in the paper.
        unconstrained: do not draw W to 0.
        ns_steps: Newton-Schulz steps, ≥ 1.
        ns_coefficients: their coefficients, see :func:`~descend.orthogonal.orthogonalize`.
        eps: added to what is divided by, ≥ 0.
        ns_dtype: "bfloat16", "float32", or None for bfloat16 on float32 parameters; float64 stays.
        fallback: the rule of parameters that are no matrices, by its name ("adamw", "package.module:Class"): those that the norm is not for, and vectors under "Auto".
            None: they are this rule's, in the way above.
        fallback_options: its options.
        fallback_lr_scale: its learning rate in units of lr, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        ValueError: for a parameter that the norm is not for.

    Example:
        >>> layer = torch.nn.Linear(8, 8)
        >>> optimizer = Scion(layer.parameters(), lr=1e-2, momentum=0.1)
        >>> layer(torch.ones(8)).sum().backward()
        >>> optimizer.step()

    Reference:
        Pethick et al., Training Deep Learning Models with Norm-Constrained LMOs, 2025, arXiv 2502.07529.
    """

    acts_with: ClassVar = if_averaged(ActsWith(norm=("Auto", "Spectral", "SpectralConv")) | ActsWith(momentum=Not(1)))
    structural: ClassVar[frozenset[str]] = frozenset(("ns_steps",))
    refused: ClassVar[Mapping[str, str]] = {**OWN_DECAY, **OWN_STEP}

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-3,
        momentum: Annotated[float, Range(gt=0, le=1, why="it is the new gradient's weight")] = 1.0,
        norm: Literal["Spectral", "SpectralConv", "ColNorm", "RowNorm", "Sign", "BiasRMS", "Auto"] = "Auto",
        norm_kwargs: Mapping[str, bool] | tuple[tuple[str, bool], ...] | None = None,
        scale: Positive = 1.0,
        unconstrained: bool = False,
        *,
        ns_steps: Annotated[Count, _SPECTRAL] = 5,
        ns_coefficients: Annotated[Coefficients, _SPECTRAL] = "keller",
        eps: NonNegative = 1e-8,
        ns_dtype: Annotated[Literal["bfloat16", "float32"] | None, _SPECTRAL] = None,
        fallback: str | None = None,
        fallback_options: Annotated[Mapping[str, Any] | None, Needs("fallback")] = None,
        fallback_lr_scale: Annotated[NonNegative, Needs("fallback")] = 1.0,
        **common: Unpack[Common],
    ) -> None:
        norm_kwargs = _pairs(norm_kwargs)
        super().__init__(params, own(locals()), **common)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its ``norm_kwargs`` may be a dict."""
        if isinstance(param_group, dict) and "norm_kwargs" in param_group:
            param_group = {**param_group, "norm_kwargs": _pairs(param_group["norm_kwargs"])}
        super().add_param_group(param_group)

    @staticmethod
    def check(h: Any) -> None:
        coefficient_sequence(h.ns_coefficients, h.ns_steps)
        allowed = _NORMS[h.norm][0]
        for name, value in _pairs(h.norm_kwargs):
            if name not in allowed:
                raise ValueError(
                    f"norm_kwargs has {name!r}, which norm={h.norm!r} has not: {sorted(allowed) or 'none'}"
                )
            if not isinstance(value, bool):
                raise ValueError(f"norm_kwargs[{name!r}]={value!r}, expected True or False")

    @classmethod
    def is_matrix(cls, h: Any, p: Tensor) -> bool:
        vector = h.norm == "Auto" and p.dim() < 2
        return p.dim() in _NORMS[h.norm][1] and not vector and not p.is_complex()

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        if p.is_complex() or p.dim() not in _NORMS[h.norm][1]:
            wanted = "/".join(map(str, _NORMS[h.norm][1]))
            raise ValueError(
                f"norm={h.norm!r} is for real tensors of {wanted} dimensions, got {p.dtype} {tuple(p.shape)}"
            )
        return {"momentum_buffer": signed(least_bits=8)} if h.momentum != 1 else {}

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        norm = h.norm
        if norm == "Auto":
            norm = "BiasRMS" if p.dim() < 2 else "Spectral" if p.dim() == 2 else "SpectralConv"
        given = {name: value for name, value in h.norm_kwargs if name in _NORMS[norm][0]}
        options = {"normalized": norm != "ColNorm", "transpose": False, "max": False, **given}
        sequence = coefficient_sequence(h.ns_coefficients, h.ns_steps)
        return {"ball": norm, "ns_coefficients": sequence, "polar_gain": _polar_gain(p, options), **options}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"decay_amount": h.lr}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "none" if h.unconstrained else "decoupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        m = ema(s.momentum_buffer, g, k.momentum) if "momentum_buffer" in s else g
        return _corner(m, k) * k.scale


def _corner(m: Tensor, k: Known) -> Tensor:
    """The point of the norm's unit ball that is furthest along m."""
    if k.ball in ("Spectral", "SpectralConv"):
        matrix = m.flatten(1)
        # By this form of eps the norm has 1e-7 added to it, as the authors have it, for any shape.
        eps = 1e-7 * (k.shape[0] / math.prod(k.shape[1:])) ** 0.5
        polar = orthogonalize(
            matrix, k.ns_steps, k.ns_coefficients, eps=eps, scale_eps=True, dtype=NS_DTYPES.get(k.ns_dtype)
        )
        return polar.reshape(k.shape) * k.polar_gain
    out, into = (1, 0) if k.transpose else (0, 1)
    if k.ball == "Sign":
        return torch.sign(m) / k.count((into,)) if k.normalized else torch.sign(m)
    if k.ball == "RowNorm":
        size = torch.sqrt(k.sums_over((m * m, (into,)))[0])
        size = size * k.count((into,)) ** 0.5 if k.normalized else size
    else:
        size = torch.sqrt(k.means_over((m * m, (out,) if k.ndim else ()))[0])
        size = size * k.count((into,)) if k.ball == "ColNorm" and k.normalized else size
    return m / size.add_(k.eps)


def _polar_gain(p: Tensor, options: Mapping[str, bool]) -> float:
    """What makes a polar factor of this shape the corner of the spectral norm's ball."""
    if p.dim() < 2 or 0 in p.shape:
        return 1.0
    out, into, *kernel = p.shape
    gain = (out / into if options["normalized"] else float(out)) ** 0.5
    return max(1.0, gain) if options["max"] else gain / math.prod(kernel)


def _pairs(norm_kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """Options of a norm in a form that a parameter group can be compared by."""
    return tuple(sorted(dict(norm_kwargs or {}).items()))
