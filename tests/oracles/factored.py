"""Second moments kept as a row and a column: the Adafactor family."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import Array, Options, Oracle, State, cautious, decay_rate, ema, rms


class Adafactor(Oracle):
    """Adafactor (arXiv 1804.04235) as timm has it: lr inside the momentum; lr=None takes the relative step."""

    defaults: ClassVar[Options] = dict(
        lr=None, eps=1e-30, eps_scale=1e-3, clip_threshold=1.0, decay_rate=-0.8, betas=None, weight_decay=0.0,
        scale_parameter=True, warmup_init=False, min_dim_size_to_factor=16, caution=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        s["RMS"] = rms(p)
        lr = h["lr"]
        if lr is None:
            lr = min(1e-6 * t if h["warmup_init"] else 1e-2, 1 / np.sqrt(t))
            lr *= max(h["eps_scale"], s["RMS"]) if h["scale_parameter"] else 1.0
        b2 = 1 - t ** h["decay_rate"]
        square = g * g + h["eps"]
        dims = self.factored_dims(p.shape, h["min_dim_size_to_factor"])
        if dims is None:
            v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), square, b2)
            u = g / np.sqrt(v)
        else:
            a, b = dims
            row = s["exp_avg_sq_row"] = ema(s.get("exp_avg_sq_row", 0.0), square.mean(axis=b), b2)
            col = s["exp_avg_sq_col"] = ema(s.get("exp_avg_sq_col", 0.0), square.mean(axis=a), b2)
            row = np.expand_dims(row, b)
            u = g / np.sqrt(row / row.mean(axis=a, keepdims=True) * np.expand_dims(col, a))
        u = lr * u / max(1.0, rms(u) / h["clip_threshold"])
        if h["betas"] is not None:
            u = s["exp_avg"] = ema(s.get("exp_avg", 0.0), u, h["betas"][0])
            u = cautious(u, g) if h["caution"] else u
        return p * (1 - lr * h["weight_decay"]) - u

    @staticmethod
    def factored_dims(shape: tuple[int, ...], size: int) -> tuple[int, int] | None:
        """The two dimensions that are factored: the channels of a convolution, or the last two."""
        n = len(shape)
        if n > 2 and min(shape[0], shape[1]) > size:
            return 0, 1
        return (n - 2, n - 1) if n >= 2 and min(shape[-2], shape[-1]) > size else None


class AdafactorBigVision(Oracle):
    """Adafactor as in Big Vision (arXiv 2106.04560): a capped decay, momentum outside lr and in low precision."""

    defaults: ClassVar[Options] = dict(
        lr=1.0, min_dim_size_to_factor=16, decay_rate=0.8, decay_offset=0, beta2_cap=0.999, momentum=0.9,
        momentum_dtype="bfloat16", eps=None, weight_decay=0.0, clipping_threshold=None, unscaled_wd=False,
        caution=False, corrected_weight_decay=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b2 = min(h["beta2_cap"], 1 - max(t - h["decay_offset"], 1) ** -h["decay_rate"])
        square = g * g + (1e-30 if h["eps"] is None else h["eps"])
        order = np.argsort(p.shape, kind="stable")
        if p.ndim >= 2 and p.shape[order[-2]] >= h["min_dim_size_to_factor"]:
            a, b = int(order[-2]), int(order[-1])
            row = s["exp_avg_sq_r"] = ema(s.get("exp_avg_sq_r", 0.0), square.mean(axis=b, keepdims=True), b2)
            col = s["exp_avg_sq_c"] = ema(s.get("exp_avg_sq_c", 0.0), square.mean(axis=a, keepdims=True), b2)
            u = g / np.sqrt(row / row.mean(axis=a, keepdims=True) * col)
        else:
            v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), square, b2)
            u = g / np.sqrt(v)
        if h["clipping_threshold"] is not None:
            u = u / max(1.0, rms(u) / h["clipping_threshold"])
        if h["momentum"] is not None:
            u = rounded(u, h["momentum_dtype"])
            u = s["exp_avg"] = rounded(ema(s.get("exp_avg", 0.0), u, h["momentum"]), h["momentum_dtype"])
            u = cautious(u, g) if h["caution"] else u
        rate = decay_rate(h) / (h["lr"] if h["unscaled_wd"] and h["lr"] else 1.0)
        return p * (1 - rate) - h["lr"] * u


def rounded(x: Any, dtype: Any) -> Array:
    """x as a tensor of this dtype (a name or torch's dtype) would hold it."""
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        bits = np.asarray(x, np.float32).view(np.uint32)
        even = (bits >> 16) & 1
        return np.asarray(((bits + 0x7FFF + even) & 0xFFFF0000).view(np.float32), np.float64)
    return np.asarray(np.asarray(x).astype(name), np.float64)


class TorchAdafactor(Oracle):
    """Adafactor (arXiv 1804.04235) as in torch.optim: lr caps the relative step, no momentum; eps[0] is float64's."""

    defaults: ClassVar[Options] = dict(lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        weight = t ** h["beta2_decay"]
        eps1 = np.finfo(np.float64).eps if h["eps"][0] is None else h["eps"][0]
        alpha = min(h["lr"], 1 / np.sqrt(t)) * max(h["eps"][1], rms(p))
        if p.ndim > 1:
            row = s["row_var"] = ema(s.get("row_var", 0.0), (g * g).mean(axis=-1, keepdims=True), 1 - weight)
            col = s["col_var"] = ema(s.get("col_var", 0.0), (g * g).mean(axis=-2, keepdims=True), 1 - weight)
            v = row * col / np.maximum(row.mean(axis=-2, keepdims=True), eps1)
        else:
            v = s["variance"] = ema(s.get("variance", 0.0), g * g, 1 - weight)
        u = g / np.sqrt(np.maximum(v, eps1**2))
        return p * (1 - h["lr"] * h["weight_decay"]) - alpha * u / max(1.0, rms(u) / h["d"])


class CAME(Oracle):
    """CAME (arXiv 2307.02047): Adafactor with a momentum that is trusted where it agrees with the update.

    Defaults of its authors: lr 2e-4, eps (1e-30, 1e-16), clip 1, betas (0.9, 0.999, 0.9999), no decay.
    """

    defaults: ClassVar[Options] = dict(
        lr=2e-4, eps=(1e-30, 1e-16), clip_threshold=1.0, betas=(0.9, 0.999, 0.9999), weight_decay=0.0
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2, b3 = h["betas"]
        u = g / np.sqrt(factored(s, "exp_avg_sq", g * g + h["eps"][0], b2))
        u = u / max(1.0, rms(u) / h["clip_threshold"])
        m = s["exp_avg"] = ema(s.get("exp_avg", 0.0), u, b1)
        step = m
        if p.ndim >= 2:
            step = m / np.sqrt(factored(s, "exp_avg_res", (u - m) ** 2 + h["eps"][1], b3))
        return p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * step


def factored(s: State, name: str, square: Array, beta: float) -> Array:
    """The moving average of these squares: row and column means over the last two dimensions, if there are two."""
    if square.ndim < 2:
        s[name] = ema(s.get(name, 0.0), square, beta)
        return np.asarray(s[name])
    row = s[f"{name}_row"] = ema(s.get(f"{name}_row", 0.0), square.mean(axis=-1), beta)
    col = s[f"{name}_col"] = ema(s.get(f"{name}_col", 0.0), square.mean(axis=-2), beta)
    return np.asarray((row / row.mean(axis=-1, keepdims=True))[..., None] * col[..., None, :])
