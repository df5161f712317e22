"""Momentum and a second moment, put together otherwise than Adam does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import Array, Options, Oracle, State, cautious, decay_rate, ema, norm, rms


class LaProp(Oracle):
    """LaProp (arXiv 2002.04839): the gradient is normalised before it enters the momentum, with its lr."""

    defaults: ClassVar[Options] = dict(
        lr=4e-4, betas=(0.9, 0.999), eps=1e-15, weight_decay=0.0, caution=False, corrected_weight_decay=False
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, (b1, b2) = h["lr"], h["betas"]
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        lr_average = s["exp_avg_lr_1"] = ema(s.get("exp_avg_lr_1", 0.0), lr, b1)
        bc2 = s["exp_avg_lr_2"] = ema(s.get("exp_avg_lr_2", 0.0), 1.0, b2)
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), lr * g / (np.sqrt(v / bc2) + h["eps"]), b1)
        if h["caution"]:
            m = cautious(m, g)
        p = p - (lr / lr_average if lr_average else 0.0) * m
        return p * (1 - decay_rate(h))


class Adopt(Oracle):
    """ADOPT (arXiv 2411.02853): normalised by the second moment of the step before; the first step only measures."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, clip_exp=0.333, weight_decay=0.0, decoupled=False,
        corrected_weight_decay=False, caution=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        if not h["decoupled"]:
            g = g + h["weight_decay"] * p
        if t == 1:
            s["exp_avg"], s["exp_avg_sq"] = 0 * g, g * g
            return p
        if h["decoupled"]:
            p = p * (1 - decay_rate(h))
        c = g / np.maximum(np.sqrt(s["exp_avg_sq"]), h["eps"])
        if h["clip_exp"] is not None:
            limit = (t - 1) ** h["clip_exp"]
            c = np.clip(c, -limit, limit)
        m = s["exp_avg"] = ema(s["exp_avg"], c, b1)
        s["exp_avg_sq"] = ema(s["exp_avg_sq"], g * g, b2)
        return p - h["lr"] * (cautious(m, g) if h["caution"] else m)


class Adan(Oracle):
    """Adan (arXiv 2208.06677): Nesterov momentum from gradient differences; caution masks only the momentum."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, no_prox=False, caution=False
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, (b1, b2, b3) = h["lr"], h["betas"]
        difference = g + s.get("neg_pre_grad", -g)
        s["neg_pre_grad"] = -g
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        d = s["exp_avg_diff"] = ema(s.get("exp_avg_diff", 0.0), difference, b2)
        n = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), (g + b2 * difference) ** 2, b3)
        if h["caution"]:
            m = cautious(m, g)
        u = (m / (1 - b1**t) + b2 * d / (1 - b2**t)) / (np.sqrt(n / (1 - b3**t)) + h["eps"])
        if h["no_prox"]:
            return p * (1 - lr * h["weight_decay"]) - lr * u
        return (p - lr * u) / (1 + lr * h["weight_decay"])


class Mars(Oracle):
    """MARS (arXiv 2411.10438): AdamW or Lion on a variance-reduced gradient of norm at most 1; AdamW for vectors."""

    defaults: ClassVar[Options] = dict(
        lr=3e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, gamma=0.025, mars_type="adamw", optimize_1d=False,
        lr_1d_factor=1.0, betas_1d=None, caution=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, (b1, b2) = h["lr"], h["betas"]
        reduced = p.ndim >= 2 or h["optimize_1d"]
        if reduced:
            c = g + h["gamma"] * b1 / (1 - b1) * (g - s.get("last_grad", g))
            c = c / max(1.0, norm(c))
        else:
            lr, (b1, b2), c = lr * h["lr_1d_factor"], h["betas_1d"] or h["betas"], g
        s["last_grad"] = g
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), c, b1)
        if h["caution"]:
            m = cautious(m, g)
        if reduced and h["mars_type"] == "lion":
            return p - lr * (np.sign(m) + h["weight_decay"] * p)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), c * c, b2)
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        return p - lr * (u + h["weight_decay"] * p)


class Lion(Oracle):
    """Lion (arXiv 2302.06675): the sign of an interpolated momentum."""

    defaults: ClassVar[Options] = dict(
        lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, caution=False, corrected_weight_decay=False
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        p = p * (1 - decay_rate(h))
        m = s.get("exp_avg", 0.0)
        u = np.sign(ema(m, g, b1))
        s["exp_avg"] = ema(m, g, b2)
        return p - h["lr"] * (cautious(u, g) if h["caution"] else u)


class Adahessian(Oracle):
    """AdaHessian (arXiv 2006.00719); step takes `hessian`, the estimated diagonal, read every update_each steps."""

    defaults: ClassVar[Options] = dict(
        lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, hessian_power=1.0, update_each=1, n_samples=1,
        avg_conv_kernel=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        if (t - 1) % h["update_each"] == 0:
            s["hessian"] = np.asarray(h["hessian"], np.float64)
        diagonal = s["hessian"]
        if h["avg_conv_kernel"] and p.ndim == 4:
            diagonal = np.abs(diagonal).mean(axis=(2, 3), keepdims=True)
        p = p * (1 - decay_rate(h))
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        d = s["exp_hessian_diag_sq"] = ema(s.get("exp_hessian_diag_sq", 0.0), diagonal**2 * np.ones_like(p), b2)
        return p - h["lr"] * (m / (1 - b1**t)) / ((d / (1 - b2**t)) ** (h["hessian_power"] / 2) + h["eps"])


class AdEMAMix(Oracle):
    """AdEMAMix (arXiv 2409.03137): a second, slow momentum; alpha and beta3 may be warmed up.

    Defaults of its authors: lr 1e-3, betas (0.9, 0.999, 0.9999), alpha 2, no warmup, no decay.
    """

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=2.0, beta3_warmup=None, alpha_warmup=None, eps=1e-8,
        weight_decay=0.0,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2, b3 = h["betas"]
        alpha = h["alpha"]
        if h["alpha_warmup"] is not None:
            alpha *= min(1.0, t / h["alpha_warmup"])
        if h["beta3_warmup"] is not None and t < h["beta3_warmup"]:
            b3 = warm_half_life(b1, b3, t / h["beta3_warmup"])
        fast = s["exp_avg_fast"] = ema(s.get("exp_avg_fast", 0.0), g, b1)
        slow = s["exp_avg_slow"] = ema(s.get("exp_avg_slow", 0.0), g, b3)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        u = (fast / (1 - b1**t) + alpha * slow) / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        return p - h["lr"] * (u + h["weight_decay"] * p)


def warm_half_life(start: float, end: float, part: float) -> float:
    """The decay whose half-life (in the authors' count, 1e-8 added to each beta) lies at this part of the way."""
    first, last = (np.log(0.5) / np.log(beta + 1e-8) - 1 for beta in (start, end))
    return float(0.5 ** (1 / ((1 - part) * first + part * last + 1)))


class StableAdamW(Oracle):
    """StableAdamW (arXiv 2304.13013): lr over the RMS of g / sqrt(v) when above 1; the betas carry the debiasing.

    Defaults as in common use: lr 1e-3, betas (0.9, 0.99), eps 1e-6, decay 0.01.
    """

    defaults: ClassVar[Options] = dict(lr=1e-3, betas=(0.9, 0.99), eps=1e-6, weight_decay=1e-2)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in h["betas"])
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        lr = h["lr"] / max(1.0, rms(g / np.maximum(np.sqrt(v), h["eps"])))
        return p * (1 - lr * h["weight_decay"]) - lr * m / (np.sqrt(v) + h["eps"])


class AdamMini(Oracle):
    """Adam-mini (arXiv 2406.16793): one second moment a block: the whole tensor, a row, a head or an element.

    Defaults of its authors: lr 1e-3, betas (0.9, 0.999), eps 1e-8, no decay.
    """

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, block="tensor", n_heads=1
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        count = {"tensor": 1, "row": len(p) if p.ndim else 1, "head": h["n_heads"], "element": p.size}[h["block"]]
        square = (g * g).reshape(count, -1).mean(axis=1, keepdims=True)
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), square, b2)
        u = (m / (1 - b1**t)).reshape(count, -1) / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        return p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * u.reshape(p.shape)
