"""Learning rates found from the distance travelled."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .base import Gradients, Options, Oracle


class Prodigy(Oracle):
    """Prodigy (arXiv 2306.06101): Adam scaled by d, an estimate of the distance to the solution, one for all tensors.

    Defaults of its authors: lr 1, betas (0.9, 0.999), beta3 sqrt(beta2), d0 1e-6, d_coef 1, decoupled decay. The
    shared scalars (d, d_max, d_numerator, k) stand in every group, the options of all in the first.
    """

    defaults: ClassVar[Options] = dict(
        lr=1.0, betas=(0.9, 0.999), beta3=None, eps=1e-8, weight_decay=0.0, decouple=True, use_bias_correction=False,
        safeguard_warmup=False, d0=1e-6, d_coef=1.0, growth_rate=float("inf"), slice_p=1,
    )  # fmt: skip

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        first = self.groups[0]
        b1, b2 = first["betas"]
        b3 = np.sqrt(b2) if first["beta3"] is None else first["beta3"]
        d0, t = first["d0"], first.get("k", 0) + 1
        d, d_max = first.get("d", d0), first.get("d_max", d0)
        lr = max(h["lr"] for h in self.groups)
        dlr = d * lr * (np.sqrt(1 - b2**t) / (1 - b1**t) if first["use_bias_correction"] else 1.0)

        moving = []
        numerator, denominator = b3 * first.get("d_numerator", 0.0), 0.0
        for i, (h, row) in enumerate(zip(self.groups, grads, strict=True)):
            for j, (p, given) in enumerate(zip(h["params"], row, strict=True)):
                if given is None:
                    continue
                s = self.state.setdefault((i, j), {"step": 0})
                g = (-1 if h["maximize"] else 1) * np.asarray(given, np.float64)
                if not h["decouple"]:
                    g = g + h["weight_decay"] * p
                moving.append((h, j, s, g))
                part, here = g.reshape(-1)[:: h["slice_p"]], p.reshape(-1)[:: h["slice_p"]]
                p0, total = s.setdefault("p0", here), s.setdefault("s", 0 * here)
                if h["lr"] > 0:
                    numerator += d / d0 * dlr * np.dot(part, p0 - here)
                    s["exp_avg"] = b1 * s.get("exp_avg", 0.0) + d * (1 - b1) * g
                    s["exp_avg_sq"] = b2 * s.get("exp_avg_sq", 0.0) + d * d * (1 - b2) * g * g
                    s["s"] = b3 * total + d / d0 * (d if h["safeguard_warmup"] else dlr) * part
                    denominator += np.sum(np.abs(s["s"]))
        if denominator == 0:
            return

        d_hat = first["d_coef"] * numerator / denominator
        if lr > 0:
            grown = max(d, d_hat) if d == d0 else d
            d_max = max(d_max, d_hat)
            d = min(d_max, grown * first["growth_rate"])
        for h in self.groups:
            h.update(d=d, d_max=d_max, d_hat=d_hat, d_numerator=numerator, k=t)
        for h, j, s, g in moving:
            s["step"] += 1
            p = h["params"][j]
            if h["decouple"]:
                p = p * (1 - dlr * h["weight_decay"])
            u = s.get("exp_avg", 0 * g) if b1 > 0 else d * g
            h["params"][j] = np.asarray(p - dlr * u / (np.sqrt(s.get("exp_avg_sq", 0 * g)) + d * h["eps"]))
