"""The rows of the rules that need whole matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from oracles import ORACLES
from oracles.base import Array, Gradients
from rows import DECAY, Row

from descend.randomness import normal


class Dion(ORACLES["Dion"]):
    """The oracle with the start that the optimizer draws."""

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        basis = [[self.start(p.shape, group) for p in group["params"]] for group in self.groups]
        super().step(grads, basis=basis, **extra)

    def start(self, shape: tuple[int, ...], h: dict[str, Any]) -> Array | None:
        if len(shape) != 2 or 0 in shape:
            return None
        return random_numbers((min(shape), self.rank(shape, h)), 0, min(shape), self.rank(shape, h))


def random_numbers(shape: tuple[int, ...], *keys: int) -> Array:
    return normal(torch.arange(int(np.prod(shape))), *keys).reshape(shape).numpy()


# Random numbers are the optimizer's, injected, so that what is done with them can be compared.
ORACLES.update(Dion=Dion)

ROWS = (
    Row("Muon", variants=(
        {}, {"nesterov": True}, {"momentum": 0.5}, {"weight_decay": DECAY}, {"ns_steps": 2}, {"ns_steps": 8},
        {"ns_coefficients": "original"}, {"ns_coefficients": "polar_express"}, {"ns_coefficients": "polar_express_safer"},
        {"ns_coefficients": (2.0, -1.5, 0.5)}, {"ns_coefficients": ((3.0, -4.0, 2.0), (2.0, -1.5, 0.5)), "ns_steps": 3},
        {"eps": 0.1}, {"eps": 0.1, "scale_eps": True}, {"safety_factor": 1.1},
        {"adjust_lr_fn": "original"}, {"adjust_lr_fn": "rms_to_rms"}, {"adjust_lr_fn": None},
        {"conv_mode": "batched"}, {"conv_mode": "batched", "normalize_spatial": False},
        {"fallback_lr_scale": 0.3}, {"betas": (0.8, 0.9)}, {"use_fallback": True}, {"use_fallback": True, "nesterov": True},
        {"algo": "adamuon"}, {"algo": "adamuon", "nesterov": True}, {"algo": "adamuon", "betas": (0.9, 0.5)},
        {"algo": "adamuon", "adjust_lr_fn": "rms_to_rms"}, {"algo": "adamuon", "adjust_lr_fn": "rsqrt_in"},
        {"algo": "adamuon", "adjust_lr_fn": None}, {"algo": "adamuon", "conv_mode": "batched"},
        {"algo": "adamuon", "conv_mode": "batched", "adjust_lr_fn": "rms_to_rms", "normalize_spatial": False},
    )),
    Row("NorMuon", variants=(
        {}, {"nesterov": False}, {"momentum": 0.5}, {"beta2": 0.5}, {"weight_decay": DECAY}, {"row_eps": 0.1},
        {"ns_steps": 3}, {"ns_coefficients": "polar_express"}, {"adjust_lr_fn": "match_rms_adamw"}, {"eps": 0.1},
        {"safety_factor": 1.1}, {"eps": 0.1, "scale_eps": True}, {"fallback_lr_scale": 0.3}, {"betas": (0.8, 0.9)},
        {"adjust_lr_fn": "rms_to_rms"}, {"adjust_lr_fn": None}, {"use_fallback": True},
    )),
    Row("Dion", float32=5e-4, variants=(
        {}, {"mu": 0.5}, {"rank_fraction": 0.5}, {"rank_fraction": 0.3, "rank_multiple_of": 2}, {"weight_decay": DECAY},
        {"power_iters": 2, "rank_fraction": 0.5}, {"eps": 0.1}, {"betas": (0.5, 0.9)},
    )),
)  # fmt: skip
