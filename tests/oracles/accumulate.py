"""Steps scaled by accumulated squares: Adagrad, Adadelta, RMSprop and MADGRAD."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import Array, Options, Oracle, State, cautious, decay_rate, ema


class Adagrad(Oracle):
    """Adagrad (Duchi et al., JMLR 2011) as torch.optim has it."""

    defaults: ClassVar[Options] = dict(
        lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        g = g + h["weight_decay"] * p
        total = s["sum"] = s.get("sum", float(h["initial_accumulator_value"])) + g * g
        return p - h["lr"] / (1 + (t - 1) * h["lr_decay"]) * g / (np.sqrt(total) + h["eps"])


class Adadelta(Oracle):
    """Adadelta (arXiv 1212.5701) as torch.optim has it."""

    defaults: ClassVar[Options] = dict(lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        rho, eps = h["rho"], h["eps"]
        g = g + h["weight_decay"] * p
        v = s["square_avg"] = ema(s.get("square_avg", 0.0), g * g, rho)
        delta = np.sqrt(s.get("acc_delta", 0.0) + eps) / np.sqrt(v + eps) * g
        s["acc_delta"] = ema(s.get("acc_delta", 0.0), delta**2, rho)
        return p - h["lr"] * delta


class RMSprop(Oracle):
    """RMSprop (Hinton, 2012; centered: arXiv 1308.0850) as torch.optim has it: eps outside the root."""

    defaults: ClassVar[Options] = dict(
        lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        g = g + h["weight_decay"] * p
        v = s["square_avg"] = ema(s.get("square_avg", 0.0), g * g, h["alpha"])
        if h["centered"]:
            a = s["grad_avg"] = ema(s.get("grad_avg", 0.0), g, h["alpha"])
            v = v - a * a
        u = g / (np.sqrt(v) + h["eps"])
        if h["momentum"] > 0:
            u = s["momentum_buffer"] = h["momentum"] * s.get("momentum_buffer", 0.0) + u
        return p - h["lr"] * u


class RMSpropTF(Oracle):
    """RMSprop (Hinton, 2012) as TensorFlow has it: squares start at one, eps inside the root, lr in the momentum."""

    defaults: ClassVar[Options] = dict(
        lr=1e-2, alpha=0.9, eps=1e-10, weight_decay=0.0, momentum=0.0, centered=False, decoupled_decay=False,
        lr_in_momentum=True, corrected_weight_decay=False, caution=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        lr = h["lr"]
        if h["decoupled_decay"]:
            p = p * (1 - decay_rate(h))
        else:
            g = g + h["weight_decay"] * p
        v = s["square_avg"] = ema(s.get("square_avg", 1.0), g * g, h["alpha"])
        if h["centered"]:
            a = s["grad_avg"] = ema(s.get("grad_avg", 0.0), g, h["alpha"])
            v = v - a * a
        u = g / np.sqrt(v + h["eps"])
        if h["momentum"] == 0:
            return p - lr * u
        inside = lr if h["lr_in_momentum"] else 1.0
        b = s["momentum_buffer"] = h["momentum"] * s.get("momentum_buffer", 0.0) + inside * u
        return p - lr / inside * (cautious(b, g) if h["caution"] else b)


class MADGRAD(Oracle):
    """MADGRAD (arXiv 2101.11075): dual averaging from x0 with a cube root; eps is added to lr, as its authors do."""

    defaults: ClassVar[Options] = dict(lr=1e-2, momentum=0.9, weight_decay=0.0, eps=1e-6, decoupled_decay=False)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        eps, momentum = h["eps"], h["momentum"]
        total, weighted = s.get("grad_sum_sq", 0 * p), s.get("s", 0 * p)
        if momentum != 0:
            s.setdefault("x0", p)
        if h["decoupled_decay"]:
            p = p * (1 - h["lr"] * h["weight_decay"])
        else:
            g = g + h["weight_decay"] * p
        x0 = s["x0"] if momentum != 0 else p + weighted / (np.cbrt(total) + eps)
        step = (h["lr"] + eps) * np.sqrt(t)
        total = s["grad_sum_sq"] = total + step * g * g
        weighted = s["s"] = weighted + step * g
        z = x0 - weighted / (np.cbrt(total) + eps)
        return momentum * p + (1 - momentum) * z
