"""Optimizers that measure whole tensors: trust ratios, gradient norms, projections."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import Array, Gradients, Options, Oracle, State, cautious, decay_rate, ema, norm
from .sgd import heavy_ball


class Lamb(Oracle):
    """LAMB (arXiv 1904.00962) with a global gradient clip; the trust ratio acts only under decay or always_adapt."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, grad_averaging=True,
        max_grad_norm=1.0, trust_clip=False, always_adapt=False,
        caution=False, decoupled_decay=False, corrected_weight_decay=False,
    )  # fmt: skip

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        total = norm([norm(g) for row in grads for g in row if g is not None])

        def clip(g: Array, limit: float | None) -> Array:
            return g if limit is None else g / max(1.0, total / limit)

        limits = [h["max_grad_norm"] for h in self.groups]
        rows = zip(grads, limits, strict=True)
        super().step([[None if g is None else clip(g, limit) for g in row] for row, limit in rows], **extra)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        b3 = 1 - b1 if h["grad_averaging"] else 1.0
        m = s["exp_avg"] = b1 * s.get("exp_avg", 0.0) + b3 * g
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        bc1, bc2 = (1 - b1**t, 1 - b2**t) if h["bias_correction"] else (1.0, 1.0)
        u = (m / bc1) / (np.sqrt(v / bc2) + h["eps"])
        if h["caution"]:
            u = cautious(u, g)
        if h["weight_decay"] != 0:
            if h["decoupled_decay"]:
                p = p * (1 - decay_rate(h))
            else:
                u = u + h["weight_decay"] * p
        if h["weight_decay"] != 0 or h["always_adapt"]:
            ratio = norm(p) / norm(u) if norm(p) > 0 and norm(u) > 0 else 1.0
            u = u * (min(ratio, 1.0) if h["trust_clip"] else ratio)
        return p - h["lr"] * u


class Lars(Oracle):
    """LARS (arXiv 1708.03888), clipped as LARC under trust_clip; lr outside the buffer, ratio only under decay."""

    defaults: ClassVar[Options] = dict(
        lr=1.0, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, trust_coeff=1e-3, eps=1e-8,
        trust_clip=False, always_adapt=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, wd = h["lr"], h["weight_decay"]
        if wd != 0 or h["always_adapt"]:
            p_norm, g_norm = norm(p), norm(g)
            ratio = 1.0
            if p_norm > 0 and g_norm > 0:
                ratio = h["trust_coeff"] * p_norm / (g_norm + wd * p_norm + h["eps"])
            if h["trust_clip"]:
                ratio = min(ratio / lr, 1.0)
            g = (g + wd * p) * ratio
        return p - lr * heavy_ball(g, s, h)


class NvNovoGrad(Oracle):
    """NovoGrad (arXiv 1905.11286) as NVIDIA has it: one second moment a tensor, first set to the squared norm."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.95, 0.98), eps=1e-8, weight_decay=0.0, grad_averaging=False, amsgrad=False,
        decoupled_decay=False, corrected_weight_decay=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        square = norm(g) ** 2
        v = s.get("exp_avg_sq", 0.0)
        v = s["exp_avg_sq"] = square if v == 0 else ema(v, square, b2)
        if h["amsgrad"]:
            v = s["max_exp_avg_sq"] = max(s.get("max_exp_avg_sq", 0.0), v)
        u = g / (np.sqrt(v) + h["eps"])
        if h["decoupled_decay"]:
            p = p * (1 - decay_rate(h))
        else:
            u = u + h["weight_decay"] * p
        if h["grad_averaging"]:
            u = (1 - b1) * u
        m = s["exp_avg"] = b1 * s.get("exp_avg", 0.0) + u
        return p - h["lr"] * m


def project(p: Array, g: Array, u: Array, h: Options) -> tuple[Array, float]:
    """The step without its radial part where weights look scale-invariant, and the factor of its decay.

    Channels are tried before the whole tensor (arXiv 2006.08217); caution then works in the tangent space.
    """
    views = [p.reshape(len(p), -1).shape, (1, p.size)] if p.ndim > 1 else []
    for view in views:
        rows, gradient, step = p.reshape(view), g.reshape(view), u.reshape(view)
        length, slope = (np.sqrt(np.sum(x * x, axis=1, keepdims=True)) for x in (rows, gradient))
        cosine = np.sum(rows * gradient, axis=1, keepdims=True) / (
            np.maximum(length, h["eps"]) * np.maximum(slope, h["eps"])
        )
        if np.max(np.abs(cosine)) < h["delta"] / np.sqrt(view[1]):
            unit = rows / (length + h["eps"])

            def tangent(x: Array, unit: Array = unit) -> Array:
                return x - unit * np.sum(unit * x, axis=1, keepdims=True)

            step = tangent(step)
            if h["caution"]:
                step = tangent(cautious(step, tangent(gradient)))
            return step.reshape(p.shape), h["wd_ratio"]
    return (cautious(u, g) if h["caution"] else u), 1.0


class AdamP(Oracle):
    """AdamP (arXiv 2006.08217): Adam with the radial part of the step projected out."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, delta=0.1, wd_ratio=0.1, nesterov=False, caution=False
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        u = (ema(m, g, b1) if h["nesterov"] else m) / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        u, ratio = project(p, g, u, h)
        return p * (1 - decay_rate(h) * ratio) - h["lr"] / (1 - b1**t) * u


class SGDP(Oracle):
    """SGDP (arXiv 2006.08217): SGD without the radial part of the step; decay is divided by 1 - momentum."""

    defaults: ClassVar[Options] = dict(
        lr=1e-1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, eps=1e-8, delta=0.1, wd_ratio=0.1,
        caution=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        momentum = h["momentum"]
        b = s["momentum"] = momentum * s.get("momentum", 0.0) + (1 - h["dampening"]) * g
        u, ratio = project(p, g, g + momentum * b if h["nesterov"] else b, h)
        return p * (1 - decay_rate(h) * ratio / (1 - momentum)) - h["lr"] * u
