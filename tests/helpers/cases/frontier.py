"""The rows of the frontier: what timm lacks, and the two other Adafactors."""

from __future__ import annotations

from helpers.rows import DECAY, Row

ROWS = (
    Row("AdafactorBigVision", float32=1e-3, variants=(
        {}, {"momentum": None}, {"momentum": 0.5, "momentum_dtype": "float32"},
        {"momentum": None, "weight_decay": DECAY}, {"momentum": None, "weight_decay": 0.01, "unscaled_wd": True},
        {"momentum": None, "weight_decay": 0.5, "corrected_weight_decay": True},
        {"momentum": None, "weight_decay": 0.01, "unscaled_wd": True, "corrected_weight_decay": True},
        {"momentum": None, "clipping_threshold": 0.3}, {"momentum": None, "decay_rate": 0.5},
        {"momentum": None, "decay_offset": 7}, {"momentum": None, "beta2_cap": 0.5}, {"momentum": None, "eps": 0.1},
        {"momentum": None, "min_dim_size_to_factor": 32}, {"momentum": None, "min_dim_size_to_factor": 2},
        {"momentum": 0.5, "momentum_dtype": "float32", "caution": True}, {"momentum": None, "maximize": True},
    )),
    Row("TorchAdafactor", lr=0.1, variants=(
        {}, {"beta2_decay": -0.5}, {"eps": (0.1, 1e-3)}, {"eps": (None, 3.0)}, {"d": 2.0}, {"weight_decay": DECAY},
        {"maximize": True},
    )),
    Row("CAME", variants=(
        {}, {"eps": (0.1, 1e-16)}, {"eps": (1e-30, 1e-2)}, {"clip_threshold": 0.3}, {"betas": (0.5, 0.999, 0.9999)},
        {"betas": (0.9, 0.9, 0.99)}, {"weight_decay": DECAY},
    )),
    Row("AdEMAMix", variants=(
        {}, {"alpha": 8.0, "betas": (0.9, 0.999, 0.99)}, {"alpha_warmup": 30, "betas": (0.9, 0.999, 0.99)},
        {"beta3_warmup": 30, "betas": (0.9, 0.99, 0.999)},
        {"beta3_warmup": 80, "alpha_warmup": 80}, {"betas": (0.5, 0.9, 0.95)}, {"weight_decay": DECAY}, {"eps": 0.1},
    )),
    Row("StableAdamW", variants=({}, {"betas": (0.5, 0.9)}, {"weight_decay": 0.5}, {"eps": 0.1})),
    Row("AdamMini", variants=(
        {}, {"block": "row"}, {"block": "head"}, {"block": "element"}, {"betas": (0.5, 0.9)}, {"weight_decay": DECAY},
        {"eps": 0.1}, {"block": "row", "weight_decay": DECAY},
    )),
    Row("ScheduleFreeAdamW", variants=(
        {}, {"betas": (0.5, 0.9)}, {"eps": 0.1}, {"weight_decay": DECAY}, {"warmup_steps": 10}, {"r": 1.0},
        {"weight_lr_power": 0.0}, {"warmup_steps": 10, "weight_lr_power": 1.0, "r": 0.5}, {"maximize": True},
    )),
    Row("ScheduleFreeRAdam", lr=0.5, variants=(
        {"silent_sgd_phase": False}, {}, {"betas": (0.5, 0.9)}, {"eps": 0.1}, {"weight_decay": DECAY}, {"r": 1.0},
        {"weight_lr_power": 0.0},
    )),
    Row("ScheduleFreeSGD", variants=(
        {}, {"momentum": 0.5}, {"weight_decay": DECAY}, {"warmup_steps": 10}, {"r": 1.0},
        {"warmup_steps": 10, "weight_lr_power": 0.0},
    )),
    Row("Prodigy", lr=1.0, float32=1e-3, variants=(
        {"d0": 1e-2}, {"d0": 1e-2, "betas": (0.5, 0.9)}, {"d0": 1e-2, "eps": 0.1}, {"d0": 1e-2, "weight_decay": DECAY},
        {"d0": 1e-2, "weight_decay": DECAY, "decouple": False}, {"d0": 1e-2, "use_bias_correction": True}, {"d0": 1e-3},
        {"d0": 1e-2, "d_coef": 20.0}, {"d0": 1e-2, "d_coef": 20.0, "beta3": 0.5},
        {"d0": 1e-2, "d_coef": 20.0, "safeguard_warmup": True}, {"d0": 1e-2, "d_coef": 20.0, "growth_rate": 1.05},
        {"d0": 1e-2, "d_coef": 20.0, "slice_p": 3},
    )),
    Row("Scion", float32=6e-2, variants=(
        {}, {"momentum": 0.1}, {"scale": 3.0}, {"unconstrained": True}, {"norm": "BiasRMS"}, {"ns_steps": 2},
        {"ns_coefficients": "polar_express"}, {"eps": 0.1, "momentum": 0.5}, {"norm": "BiasRMS", "eps": 0.1},
        {"norm_kwargs": {"max": True}}, {"norm_kwargs": {"normalized": False}, "scale": 0.3},
    )),
)  # fmt: skip
