"""Orthogonalised momentum: Muon and its relations, all in float64; what is no matrix goes to AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod, sqrt
from typing import Any, ClassVar

import numpy as np

from .adam import AdamW, NAdamW
from .base import Array, Options, Oracle, State, ema, norm

COEFFICIENTS = {
    "original": [(3.4445, -4.7750, 2.0315)],
    "keller": [(3.4445, -4.7750, 2.0315)],
    "quintic": [
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
    "polar_express": [
        (8.237312490495555, -23.157747414558198, 16.680568411445915),
        (4.082441999064835, -2.893047735332586, 0.5252849256975648),
        (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
        (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
        (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
        (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
        (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
        (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
    ],
    "polar_express_safer": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
        (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
        (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
        (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
        (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
        (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
        (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
    ],
}


def coefficients(choice: Any, steps: int) -> list[Sequence[float]]:
    """One triple a step from a name, a triple or a list of triples; the last one repeats."""
    triples = COEFFICIENTS[choice] if isinstance(choice, str) else choice
    triples = [triples] if np.ndim(triples) == 1 else list(triples)
    return [triples[min(i, len(triples) - 1)] for i in range(steps)]


def newton_schulz(
    x: Array,
    triples: list[Sequence[float]],
    eps: float = 1e-7,
    safety: float = 1.0,
    scale_eps: bool = False,
    add_eps: bool = False,
) -> Array:
    """Towards the orthogonal factor of x, over its last two dimensions: X <- aX + (bA + cA^2) X with A = X X^T."""
    rows, cols = x.shape[-2:]
    size = safety * np.sqrt(np.sum(x * x, axis=(-2, -1), keepdims=True))
    if scale_eps:
        size = size + eps * sqrt(cols / rows)
    else:
        size = size + eps if add_eps else np.maximum(size, eps)
    x = x / size
    x = np.swapaxes(x, -2, -1) if rows > cols else x
    for a, b, c in triples:
        gram = x @ np.swapaxes(x, -2, -1)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return np.swapaxes(x, -2, -1) if rows > cols else x


def shape_scale(name: str | None, out: int, inner: int) -> float:
    """How the step of an out x inner matrix is scaled."""
    return {
        None: 1.0,
        "original": sqrt(max(1.0, out / inner)),
        "match_rms_adamw": 0.2 * sqrt(max(out, inner)),
        "rms_to_rms": sqrt(out / inner),
        "rsqrt_in": 1 / sqrt(inner),
    }[name]


class Muon(Oracle):
    """Muon (Jordan et al., 2024; arXiv 2502.16982) as in timm; algo="adamuon" is AdaMuon (arXiv 2507.11005)."""

    defaults: ClassVar[Options] = dict(
        lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=False, ns_steps=5, ns_coefficients="quintic", eps=1e-7,
        safety_factor=1.0, adjust_lr_fn="match_rms_adamw", conv_mode="flatten", normalize_spatial=True,
        fallback_lr_scale=1.0, betas=(0.9, 0.95), algo="muon", scale_eps=False, use_fallback=False, use_muon=None,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        if not s.setdefault("use_muon", is_matrix(p, h)):
            return self.fallback(p, g, s, h, t)
        b = s["momentum_buffer"] = ema(s.get("momentum_buffer", 0.0), g, h["momentum"])
        u = ema(b, g, h["momentum"]) if h["nesterov"] else b
        batched = p.ndim > 2 and h["conv_mode"] == "batched"
        flat = u.reshape(*p.shape[:2], -1).transpose(2, 0, 1) if batched else u.reshape(len(u), -1)
        triples = coefficients(h["ns_coefficients"], h["ns_steps"])
        o = newton_schulz(flat, triples, h["eps"], h["safety_factor"], h["scale_eps"])
        scale = shape_scale(h["adjust_lr_fn"], *o.shape[-2:])
        if batched:
            spatial = prod(p.shape[2:])
            scale *= spatial**-0.5 if h["normalize_spatial"] else 1.0
            o = o.transpose(1, 2, 0)
        o = o.reshape(p.shape)
        if h["algo"] == "adamuon":
            v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), o * o, h["betas"][1])
            if h["adjust_lr_fn"] == "match_rms_adamw":
                scale = 0.2 * sqrt(p.size) * (spatial**-0.5 if batched and h["normalize_spatial"] else 1.0)
                o = o / (np.sqrt(v) + h["eps"])
                o = o / (norm(o) + h["eps"])
            else:
                o = o / (np.sqrt(v / (1 - h["betas"][1] ** t)) + h["eps"])
        return p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * scale * o

    @staticmethod
    def fallback(p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        """AdamW, or NAdamW under nesterov, for what is no matrix."""
        rule = NAdamW([]) if h["nesterov"] else AdamW([])
        own = {name: h[name] for name in ("betas", "eps", "weight_decay", "max_lr")}
        return rule.update(p, g, s, {**rule.defaults, **own, "lr": h["lr"] * h["fallback_lr_scale"]}, t)


def is_matrix(p: Array, h: Options) -> bool:
    """timm's routing: what Muon takes, unless the group says otherwise."""
    if h["use_fallback"] or h["use_muon"] is not None:
        return bool(h["use_muon"]) and not h["use_fallback"]
    if p.ndim < 2 or 1 in p.shape[:2] or sum(n > 1 for n in p.shape) < 2:
        return False
    small, large = sorted((len(p), p.size // len(p)))
    return small >= 4 and large / small <= 128


class NorMuon(Muon):
    """NorMuon (arXiv 2510.05491): Muon, each row divided by its second moment and the whole brought back to size.

    Defaults of its authors: lr 0.02, momentum 0.95 with nesterov, beta2 0.95, Keller's coefficients and scaling.
    """

    defaults: ClassVar[Options] = {
        **Muon.defaults,
        **dict(nesterov=True, beta2=0.95, ns_coefficients="keller", adjust_lr_fn="original", row_eps=1e-10),
    }

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        if not s.setdefault("use_muon", is_matrix(p, h)):
            return self.fallback(p, g, s, h, t)
        b = s["momentum_buffer"] = ema(s.get("momentum_buffer", 0.0), g, h["momentum"])
        u = (ema(b, g, h["momentum"]) if h["nesterov"] else b).reshape(len(p), -1)
        triples = coefficients(h["ns_coefficients"], h["ns_steps"])
        o = newton_schulz(u, triples, h["eps"], h["safety_factor"], h["scale_eps"])
        squares = (o * o).mean(axis=1, keepdims=True)
        v = s["second_momentum_buffer"] = ema(s.get("second_momentum_buffer", 0.0), squares, h["beta2"])
        even = o / (np.sqrt(v) + h["row_eps"])
        even = even * norm(o) / (norm(even) + h["row_eps"])
        scale = shape_scale(h["adjust_lr_fn"], *o.shape)
        return p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * scale * even.reshape(p.shape)


class Scion(Oracle):
    """Scion (arXiv 2502.07529): steps to the corner of a norm ball; momentum is the weight of the new gradient.

    Defaults of its authors: lr 1e-3, momentum 1, norm Auto (spectral, convolution or bias), scale 1, constrained.
    """

    defaults: ClassVar[Options] = dict(
        lr=1e-3, momentum=1.0, norm="Auto", norm_kwargs={}, scale=1.0, unconstrained=False,
        ns_steps=5, ns_coefficients="keller", eps=1e-8,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        if h["momentum"] != 1:
            g = s["momentum_buffer"] = ema(s.get("momentum_buffer", 0.0), g, 1 - h["momentum"])
        u = h["scale"] * self.corner(g, h)
        return p * (1.0 if h["unconstrained"] else 1 - h["lr"]) - h["lr"] * u

    @staticmethod
    def corner(g: Array, h: Options) -> Array:
        """The linear minimisation oracle of the chosen norm, without its minus."""
        kind, options, eps = h["norm"], h["norm_kwargs"], h["eps"]
        if kind == "Auto":
            kind = ("BiasRMS", "BiasRMS", "Spectral", "SpectralConv", "SpectralConv")[g.ndim]
        if kind == "BiasRMS":
            return g / (np.sqrt(np.mean(g * g, axis=0 if g.ndim else None, keepdims=True)) + eps)
        if kind == "Sign":
            return np.sign(g) / (g.shape[1] if options.get("normalized", True) else 1)
        if kind in ("ColNorm", "RowNorm"):
            x = g.T if options.get("transpose", False) else g
            out, inner = x.shape
            if kind == "ColNorm":
                size = np.sqrt(np.mean(x * x, axis=0, keepdims=True))
                size = size * (inner if options.get("normalized", False) else 1)
            else:
                size = np.sqrt(np.sum(x * x, axis=1, keepdims=True))
                size = size * (sqrt(inner) if options.get("normalized", True) else 1)
            x = x / (size + eps)
            return x.T if options.get("transpose", False) else x
        triples = coefficients(h["ns_coefficients"], h["ns_steps"])
        o = newton_schulz(g.reshape(len(g), -1), triples, add_eps=True).reshape(g.shape)
        out, inner = g.shape[:2]
        if kind == "SpectralConv":
            return o * sqrt(out / inner) / prod(g.shape[2:])
        scale = sqrt(out / inner) if options.get("normalized", True) else sqrt(out)
        return o * (max(1.0, scale) if options.get("max", False) else scale)


class Dion(Oracle):
    """Dion (arXiv 2504.05295): a low-rank orthogonal step with error feedback; `basis` gives step 1 its right factor.

    Defaults of its authors: lr 0.01, mu 0.95, full rank, decay 0.01, AdamW with betas (0.9, 0.95) elsewhere.
    """

    defaults: ClassVar[Options] = dict(
        lr=0.01, mu=0.95, betas=(0.9, 0.95), weight_decay=0.01, rank_fraction=1.0, rank_multiple_of=1, eps=1e-8,
        power_iters=1,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        if p.ndim != 2:
            rule = AdamW([])
            own = {name: h[name] for name in ("lr", "betas", "eps", "weight_decay", "max_lr")}
            return rule.update(p, g, s, {**rule.defaults, **own}, t)
        lr, (rows, cols) = h["lr"], p.shape
        m = s.get("momentum", 0.0) + g
        b = m.T if rows < cols else m
        right = first = s["Q"] if "Q" in s else np.asarray(h["basis"], np.float64)
        for _ in range(h["power_iters"]):
            left = np.linalg.qr(b @ right)[0]
            right = b.T @ left
        if not m.any():
            left, right = 0 * left, first
        error = b - (1 - h["mu"]) * left @ right.T
        q = s["Q"] = right / (np.sqrt(np.sum(right * right, axis=0, keepdims=True)) + h["eps"])
        o = left @ q.T
        s["momentum"], o = (error.T, o.T) if rows < cols else (error, o)
        return p * (1 - lr * h["weight_decay"]) - lr * sqrt(rows / cols) * o

    @staticmethod
    def rank(shape: tuple[int, int], h: Options) -> int:
        """The columns of the right factor that `basis` must have."""
        multiple = h["rank_multiple_of"]
        return int(min(multiple * ceil(h["rank_fraction"] * min(shape) / multiple), *shape))
