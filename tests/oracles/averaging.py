"""Optimizers that keep a second copy of the weights."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .adam import rectification, sma_length
from .base import Array, Gradients, Options, Oracle, State, ema


class Lookahead:
    """Lookahead (arXiv 1907.08610) around another oracle; slow weights are born at the first sync, as in timm.

    A sync that is due waits for a parameter without a gradient, as in timm, but for no longer than to the next one.
    """

    def __init__(self, base: Oracle, alpha: float = 0.5, k: int = 6) -> None:
        self.base, self.groups, self.state = base, base.groups, base.state
        for h in self.groups:
            h.update(lookahead_alpha=alpha, lookahead_k=k, lookahead_step=0)

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        self.base.step(grads, **extra)
        for i, h in enumerate(self.groups):
            h["lookahead_step"] += 1
            if h["lookahead_step"] % h["lookahead_k"] == 0:
                last = [self.state.get((i, j), {}).get("lookahead_synced", 0) for j in range(len(grads[i]))]
                overdue = [h["lookahead_step"] - t >= 2 * h["lookahead_k"] for t in last]
                self.sync(i, [g is not None or late for g, late in zip(grads[i], overdue, strict=True)])

    def sync(self, i: int, present: list[bool]) -> None:
        """Move group i's slow weights towards its fast ones and restart from them, where `present` says so."""
        h = self.groups[i]
        for j, p in enumerate(h["params"]):
            if present[j]:
                s = self.state.setdefault((i, j), {"step": 0})
                s["lookahead_synced"] = h["lookahead_step"]
                slow = s.get("lookahead_slow_buff", p)
                slow = s["lookahead_slow_buff"] = slow + h["lookahead_alpha"] * (p - slow)
                h["params"][j] = slow

    def sync_lookahead(self) -> None:
        """Synchronise every parameter now, whatever the counters say."""
        for i, h in enumerate(self.groups):
            self.sync(i, [True] * len(h["params"]))


class ScheduleFree(Oracle):
    """Schedule-free learning (arXiv 2405.15682): steps on z, evaluation at its mean x, gradients at y between them.

    The parameters hold y; `eval` puts x in their place and `train` takes it back. All counters are per parameter.
    """

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        x, z = s.setdefault("x", p), s.setdefault("z", p)
        lr, u = self.direction(p, g, s, h, t)
        top = s["lr_max"] = max(s.get("lr_max", -1.0), lr)
        weight = t ** h["r"] * top ** h["weight_lr_power"]
        total = s["weight_sum"] = s.get("weight_sum", 0.0) + weight
        c = weight / total if total > 0 else 0.0
        z = s["z"] = z - lr * (u + h["weight_decay"] * p)
        x = s["x"] = (1 - c) * x + c * z
        mix = h["momentum"] if "momentum" in h else h["betas"][0]
        y = s["y"] = mix * x + (1 - mix) * z
        return np.asarray(y)

    def direction(self, p: Array, g: Array, s: State, h: Options, t: int) -> tuple[float, Array]:
        """This step's learning rate and where z goes, before decay."""
        raise NotImplementedError

    def eval(self) -> None:
        """Put the averaged weights in place."""
        self.swap("x")

    def train(self) -> None:
        """Put the weights to take gradients at in place."""
        self.swap("y")

    def swap(self, name: str) -> None:
        for (i, j), s in self.state.items():
            if name in s:
                self.groups[i]["params"][j] = np.asarray(s[name])


def warmup(h: Options, t: int) -> float:
    return min(1.0, t / h["warmup_steps"]) if h["warmup_steps"] else 1.0


class ScheduleFreeSGD(ScheduleFree):
    """Schedule-free SGD (arXiv 2405.15682); its authors' defaults: lr 1, momentum 0.9, no warmup, r 0, power 2."""

    defaults: ClassVar[Options] = dict(
        lr=1.0, momentum=0.9, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0
    )  # fmt: skip

    def direction(self, p: Array, g: Array, s: State, h: Options, t: int) -> tuple[float, Array]:
        return h["lr"] * warmup(h, t), g


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW (arXiv 2405.15682); its authors' defaults: lr 0.0025, betas (0.9, 0.999), r 0, power 2."""

    defaults: ClassVar[Options] = dict(
        lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0
    )  # fmt: skip

    def direction(self, p: Array, g: Array, s: State, h: Options, t: int) -> tuple[float, Array]:
        b2 = h["betas"][1]
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        return h["lr"] * warmup(h, t), g / (np.sqrt(v / (1 - b2**t)) + h["eps"])


class ScheduleFreeRAdam(ScheduleFree):
    """Schedule-free RAdam (arXiv 2405.15682): rectification (length > 4) for a warmup; silent before it, or SGD.

    Defaults of its authors: lr 0.0025, betas (0.9, 0.999), r 0, power 2, silent_sgd_phase True.
    """

    defaults: ClassVar[Options] = dict(
        lr=0.0025, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, r=0.0, weight_lr_power=2.0, silent_sgd_phase=True
    )  # fmt: skip

    def direction(self, p: Array, g: Array, s: State, h: Options, t: int) -> tuple[float, Array]:
        b2 = h["betas"][1]
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, b2)
        if sma_length(b2, t) > 4:
            return h["lr"] * rectification(b2, t), g / (np.sqrt(v / (1 - b2**t)) + h["eps"])
        return (0.0 if h["silent_sgd_phase"] else h["lr"]), g
