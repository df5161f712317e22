"""Stochastic gradient descent."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .base import Array, Options, Oracle, State, cautious, decay_rate


def heavy_ball(g: Array, s: State, h: Options) -> Array:
    """torch's momentum: the first buffer is the gradient itself, without dampening."""
    if h["momentum"] == 0:
        return g
    if "momentum_buffer" in s:
        s["momentum_buffer"] = h["momentum"] * s["momentum_buffer"] + (1 - h["dampening"]) * g
    else:
        s["momentum_buffer"] = g
    return g + h["momentum"] * s["momentum_buffer"] if h["nesterov"] else s["momentum_buffer"]


class SGD(Oracle):
    """SGD with momentum (Sutskever et al., ICML 2013) as torch.optim has it: coupled decay, lr outside the buffer."""

    defaults: ClassVar[Options] = dict(lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        return p - h["lr"] * heavy_ball(g + h["weight_decay"] * p, s, h)


class SGDW(Oracle):
    """SGDW (arXiv 1711.05101) as timm has it: decoupled decay, caution when there is a momentum."""

    defaults: ClassVar[Options] = dict(
        lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False,
        caution=False, corrected_weight_decay=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        u = heavy_ball(g, s, h)
        if h["caution"] and h["momentum"] != 0:
            u = cautious(u, g)
        return p * (1 - decay_rate(h)) - h["lr"] * u


class ASGD(Oracle):
    """Averaged SGD (Polyak and Juditsky, 1992) as torch.optim has it: eta and mu act one step after they are set."""

    defaults: ClassVar[Options] = dict(lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        eta, mu = s.get("eta", float(h["lr"])), s.get("mu", 1.0)
        g = g + h["weight_decay"] * p
        p = p * (1 - h["lambd"] * eta) - eta * g
        average = s.get("ax", 0.0)
        s["ax"] = average + mu * (p - average)
        s["eta"] = h["lr"] / (1 + h["lambd"] * h["lr"] * t) ** h["alpha"]
        s["mu"] = 1 / max(1.0, t - h["t0"])
        return p


class Rprop(Oracle):
    """Rprop (Riedmiller and Braun, 1993) as torch.optim has it: a step size per weight, grown and shrunk by signs."""

    defaults: ClassVar[Options] = dict(lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0))

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        shrink, grow = h["etas"]
        agree = np.sign(g * s.get("prev", 0.0))
        factor = np.where(agree > 0, grow, np.where(agree < 0, shrink, 1.0))
        size = s["step_size"] = np.clip(s.get("step_size", h["lr"] * np.ones_like(p)) * factor, *h["step_sizes"])
        g = s["prev"] = np.where(agree < 0, 0.0, g)
        return p - np.sign(g) * size
