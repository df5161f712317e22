"""Adam and its near relations: a momentum over the root of a second moment."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import Array, Options, Oracle, State, cautious, decay_rate, ema, rms


class Adam(Oracle):
    """Adam (arXiv 1412.6980) as torch.optim has it: coupled decay, AMSGrad as an option."""

    defaults: ClassVar[Options] = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        g = g + h["weight_decay"] * p
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        if h["amsgrad"]:
            v = s["max_exp_avg_sq"] = np.maximum(s.get("max_exp_avg_sq", 0.0), v)
        return p - h["lr"] * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + h["eps"])


class AdamW(Oracle):
    """AdamW (arXiv 1711.05101); with timm's caution, corrected decay and update clip (of AdamWLegacy)."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False,
        caution=False, corrected_weight_decay=False, clipping_threshold=None,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        p = p * (1 - decay_rate(h))
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        if h["amsgrad"]:
            v = s["max_exp_avg_sq"] = np.maximum(s.get("max_exp_avg_sq", 0.0), v)
        denom = np.sqrt(v / (1 - b2**t)) + h["eps"]
        if h["clipping_threshold"] is not None:
            denom = denom * max(1.0, rms(g / denom) / h["clipping_threshold"])
        if h["caution"]:
            m = cautious(m, g)
        return p - h["lr"] * (m / (1 - b1**t)) / denom


class AdaBelief(Oracle):
    """AdaBelief (arXiv 2010.07468), with RAdam's rectification as an option; eps is added to the state each step."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, amsgrad=False,
        decoupled_decay=True, fixed_decay=False, rectify=True, degenerated_to_sgd=True,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, (b1, b2), wd = h["lr"], h["betas"], h["weight_decay"]
        if h["decoupled_decay"]:
            p = p * (1 - (wd if h["fixed_decay"] else lr * wd))
        else:
            g = g + wd * p
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_var"] = ema(s.get("exp_avg_var", 0.0), (g - m) ** 2, b2) + h["eps"]
        if h["amsgrad"]:
            s["max_exp_avg_var"] = np.maximum(s.get("max_exp_avg_var", 0.0), v)
        m_hat = m / (1 - b1**t)
        if not h["rectify"]:
            top = s["max_exp_avg_var"] if h["amsgrad"] else v
            return p - lr * m_hat / (np.sqrt(top / (1 - b2**t)) + h["eps"])
        length = sma_length(b2, t)
        if length >= 5:
            return p - lr * rectification(b2, t) * np.sqrt(1 - b2**t) * m_hat / (np.sqrt(v) + h["eps"])
        return p - lr * m_hat if h["degenerated_to_sgd"] else p


def sma_length(b2: float, t: int) -> float:
    """RAdam's length of the moving average of squares after t steps."""
    return float(2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t))


def rectification(b2: float, t: int) -> float:
    """RAdam's variance rectification r_t."""
    n, limit = sma_length(b2, t), 2 / (1 - b2) - 1
    return float(np.sqrt((n - 4) * (n - 2) * limit / ((limit - 4) * (limit - 2) * n)))


class RAdam(Oracle):
    """RAdam (arXiv 1908.03265); decay decoupled as in timm's legacy class, or coupled as torch's default."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=True
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, (b1, b2) = h["lr"], h["betas"]
        if h["decoupled_weight_decay"]:
            p = p * (1 - decay_rate(h))
        else:
            g = g + h["weight_decay"] * p
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        m_hat = m / (1 - b1**t)
        if sma_length(b2, t) < 5:
            return p - lr * m_hat
        return p - lr * rectification(b2, t) * np.sqrt(1 - b2**t) * m_hat / (np.sqrt(v) + h["eps"])


class NAdam(Oracle):
    """NAdam (Dozat, ICLR workshop 2016) as torch.optim has it, with the warming momentum schedule."""

    defaults: ClassVar[Options] = dict(
        lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3, decoupled_weight_decay=False
    )  # fmt: skip
    schedule: ClassVar[tuple[str, str]] = ("momentum_decay", "mu_product")

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr, (b1, b2), (decay, product) = h["lr"], h["betas"], self.schedule
        if h.get("decoupled_weight_decay"):
            p = p * (1 - decay_rate(h))
        else:
            g = g + h["weight_decay"] * p
        mu, mu_next = (b1 * (1 - 0.5 * 0.96 ** (i * h[decay])) for i in (t, t + 1))
        prod = s[product] = s.get(product, 1.0) * mu
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        nesterov = mu_next * m / (1 - prod * mu_next) + (1 - mu) * g / (1 - prod)
        return p - lr * nesterov / (np.sqrt(v / (1 - b2**t)) + h["eps"])


class Nadam(NAdam):
    """NAdam (Dozat, ICLR workshop 2016) under the names of timm's legacy class; always coupled decay."""

    defaults: ClassVar[Options] = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, schedule_decay=4e-3)
    schedule: ClassVar[tuple[str, str]] = ("schedule_decay", "m_schedule")


class NAdamW(Oracle):
    """NAdamW (arXiv 1910.05446, as in timm): AdamW with one more average of the gradient into the momentum."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2,
        caution=False, corrected_weight_decay=False, clipping_threshold=None,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        p = p * (1 - decay_rate(h))
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        nesterov = ema(m, g, b1)
        denom = np.sqrt(v / (1 - b2**t)) + h["eps"]
        if h["clipping_threshold"] is not None:
            denom = denom * max(1.0, rms(g / denom) / h["clipping_threshold"])
        if h["caution"]:
            nesterov = cautious(nesterov, g)
        return p - h["lr"] * (nesterov / (1 - b1**t)) / denom


class Adamax(Oracle):
    """Adamax (arXiv 1412.6980, section 7.1) as torch.optim has it: the second moment is a decaying maximum."""

    defaults: ClassVar[Options] = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        g = g + h["weight_decay"] * p
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        top = s["exp_inf"] = np.maximum(b2 * s.get("exp_inf", 0.0), np.abs(g) + h["eps"])
        return p - h["lr"] / (1 - b1**t) * m / top
