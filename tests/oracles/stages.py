"""What any optimizer can have around it, as functions of one tensor."""

from __future__ import annotations

import numpy as np

from .base import Array, cautious, norm, rms

__all__ = [
    "adaptive_gradient_clip", "cautious", "cautious_decay", "centralise", "clip_update", "grams", "hyperball",
]  # fmt: skip


def cautious_decay(p: Array, u: Array, rate: float) -> Array:
    """Cautious weight decay (arXiv 2510.12402): p decayed by rate only where the step p - u shrinks it as well."""
    return p * (1 - rate * (p * u >= 0))


def grams(u: Array, g: Array) -> Array:
    """Grams (arXiv 2412.17107): the size of the update with the sign of the gradient."""
    return np.sign(g) * np.abs(u)


def hyperball(p: Array, u: Array, lr: float) -> Array:
    """Norm-preserving step (Hyperball, MuonH): lr times p's norm along u, then back to p's norm; at zero the plain step."""
    size, length = norm(p), norm(u)
    if size == 0 or length == 0:
        return p - lr * u
    moved = p - lr * size * u / length
    return moved * size / norm(moved)


def clip_update(u: Array, threshold: float) -> Array:
    """Adafactor's update clip (arXiv 1804.04235): the RMS at most threshold."""
    return u / max(1.0, rms(u) / threshold) if u.size else u


def centralise(g: Array) -> Array:
    """Gradient centralisation (arXiv 2004.01461): each output's gradient without its mean; vectors as they are."""
    return g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True) if g.ndim > 1 and g.size else g


def adaptive_gradient_clip(p: Array, g: Array, clip: float = 0.01, eps: float = 1e-3) -> Array:
    """Adaptive gradient clipping (arXiv 2102.06171): per output unit, |g| at most clip max(|p|, eps)."""
    axes = tuple(range(1, g.ndim)) if g.ndim > 1 else None
    p_norm, g_norm = (np.sqrt(np.sum(x * x, axis=axes, keepdims=True)) for x in (p, g))
    limit = clip * np.maximum(p_norm, eps)
    return np.where(g_norm > limit, g * (limit / np.maximum(g_norm, 1e-6)), g)
