"""The rows of timm.optim and torch.optim."""

from __future__ import annotations

from helpers.rows import DECAY, Row

ROWS = (
    Row("AdamW", variants=(
        {}, {"amsgrad": True}, {"betas": (0.8, 0.9)}, {"eps": 1e-2}, {"weight_decay": 0.5}, {"weight_decay": 0.0},
        {"clipping_threshold": 0.5}, {"caution": True}, {"corrected_weight_decay": True}, {"maximize": True},
        {"amsgrad": True, "caution": True, "clipping_threshold": 0.7},
    )),
    Row("Adam", variants=({}, {"amsgrad": True}, {"weight_decay": DECAY}, {"betas": (0.5, 0.9)}, {"eps": 1e-2})),
    Row("NAdamW", variants=(
        {}, {"betas": (0.8, 0.9)}, {"caution": True}, {"corrected_weight_decay": True, "weight_decay": 0.5},
        {"clipping_threshold": 0.5}, {"eps": 1e-2}, {"maximize": True},
    )),
    Row("AdaBelief", variants=(
        {}, {"rectify": False}, {"rectify": False, "amsgrad": True}, {"weight_decay": DECAY},
        {"weight_decay": DECAY, "decoupled_decay": False}, {"weight_decay": 0.01, "fixed_decay": True},
        {"degenerated_to_sgd": False, "lr": 0.2}, {"betas": (0.8, 0.9)}, {"betas": (0.9, 0.5)}, {"eps": 1e-4}, {"amsgrad": True},
    )),
    Row("RAdam", variants=(
        {}, {"weight_decay": DECAY}, {"weight_decay": DECAY, "decoupled_weight_decay": False}, {"betas": (0.8, 0.9)},
        {"eps": 1e-2},
    )),
    Row("NAdam", variants=(
        {}, {"weight_decay": DECAY}, {"weight_decay": DECAY, "decoupled_weight_decay": True}, {"momentum_decay": 0.1},
        {"betas": (0.8, 0.9)}, {"eps": 1e-2},
    )),
    Row("Nadam", variants=({}, {"weight_decay": DECAY}, {"schedule_decay": 0.1}, {"betas": (0.8, 0.9)}, {"eps": 1e-2})),
    Row("Lamb", variants=(
        {}, {"bias_correction": False}, {"grad_averaging": False}, {"max_grad_norm": None}, {"max_grad_norm": 0.3},
        {"trust_clip": True}, {"weight_decay": 0.0}, {"weight_decay": 0.0, "always_adapt": True}, {"caution": True},
        {"decoupled_decay": True, "weight_decay": DECAY}, {"betas": (0.8, 0.9)}, {"eps": 1e-2},
        {"decoupled_decay": True, "corrected_weight_decay": True, "weight_decay": DECAY}, {"maximize": True},
    )),
    Row("Lars", lr=20.0, variants=(
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.1},
        {"weight_decay": DECAY}, {"always_adapt": True, "trust_coeff": 1e-2}, {"trust_clip": True, "weight_decay": 0.01, "trust_coeff": 0.1},
        {"weight_decay": DECAY, "eps": 0.5}, {"weight_decay": DECAY, "momentum": 0.9, "trust_coeff": 1e-2},
    )),
    Row("SGD", variants=(
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5},
        {"weight_decay": DECAY}, {"momentum": 0.5, "weight_decay": DECAY, "maximize": True},
    )),
    Row("SGDW", variants=(
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.5},
        {"weight_decay": DECAY}, {"momentum": 0.9, "caution": True}, {"caution": True}, {"maximize": True},
        {"weight_decay": 0.5, "corrected_weight_decay": True},
    )),
    Row("SGDP", variants=(
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": DECAY}, {"dampening": 0.5},
        {"momentum": 0.9, "delta": 5.0, "eps": 0.1}, {"momentum": 0.9, "delta": 5.0, "caution": True, "eps": 0.1},
        {"delta": 5.0, "weight_decay": DECAY, "wd_ratio": 0.7, "eps": 0.1}, {"caution": True}, {"weight_decay": DECAY},
    )),
    Row("AdamP", variants=(
        {}, {"nesterov": True}, {"weight_decay": DECAY}, {"delta": 5.0, "eps": 0.1}, {"delta": 1.0, "weight_decay": DECAY},
        {"delta": 5.0, "weight_decay": DECAY, "wd_ratio": 0.7, "eps": 0.1}, {"caution": True},
        {"caution": True, "delta": 5.0, "eps": 0.1},
        {"eps": 1e-2}, {"betas": (0.8, 0.9)},
    )),
    Row("MADGRAD", variants=(
        {}, {"momentum": 0.0}, {"weight_decay": DECAY}, {"weight_decay": DECAY, "decoupled_decay": True},
        {"eps": 1e-2}, {"momentum": 0.5},
    )),
    Row("NvNovoGrad", variants=(
        {}, {"grad_averaging": True}, {"amsgrad": True}, {"weight_decay": DECAY}, {"betas": (0.8, 0.5)}, {"eps": 0.1},
        {"weight_decay": DECAY, "decoupled_decay": True},
        {"weight_decay": DECAY, "decoupled_decay": True, "corrected_weight_decay": True},
    )),
    Row("RMSpropTF", variants=(
        {}, {"alpha": 0.5}, {"momentum": 0.9}, {"momentum": 0.9, "lr_in_momentum": False}, {"centered": True},
        {"weight_decay": DECAY}, {"weight_decay": DECAY, "decoupled_decay": True}, {"momentum": 0.9, "caution": True},
        {"eps": 0.1}, {"weight_decay": 0.5, "decoupled_decay": True, "corrected_weight_decay": True},
    )),
    Row("RMSprop", variants=(
        {}, {"alpha": 0.5}, {"momentum": 0.9}, {"centered": True}, {"weight_decay": DECAY}, {"eps": 0.1},
        {"momentum": 0.9, "centered": True},
    )),
    Row("Adafactor", variants=(
        {}, {"lr": None}, {"lr": None, "warmup_init": True, "still": True}, {"lr": None, "scale_parameter": False},
        {"lr": None, "eps_scale": 3.0}, {"betas": (0.9, 0.99)}, {"betas": (0.9,), "caution": True},
        {"weight_decay": DECAY}, {"clip_threshold": 0.3}, {"decay_rate": -0.5}, {"eps": 0.1},
        {"min_dim_size_to_factor": 32}, {"min_dim_size_to_factor": 2},
    )),
    Row("Adahessian", variants=(
        {}, {"hessian_power": 0.5}, {"weight_decay": DECAY}, {"betas": (0.8, 0.9)}, {"eps": 0.1}, {"update_each": 3},
        {"n_samples": 2}, {"avg_conv_kernel": True},
    )),
    Row("Adagrad", lr=0.1, variants=(
        {}, {"lr_decay": 0.1}, {"weight_decay": DECAY}, {"initial_accumulator_value": 0.5}, {"eps": 0.1},
    )),
    Row("Adadelta", lr=10.0, variants=({}, {"rho": 0.5}, {"weight_decay": DECAY}, {"eps": 1e-3})),
    Row("Adamax", variants=({}, {"weight_decay": DECAY}, {"betas": (0.5, 0.9)}, {"eps": 0.1})),
    Row("ASGD", variants=(
        {}, {"lambd": 0.1}, {"lambd": 0.1, "alpha": 0.25}, {"t0": 5.0}, {"weight_decay": DECAY},
    )),
    Row("Rprop", variants=({}, {"etas": (0.3, 1.5)}, {"step_sizes": (1e-3, 0.03)})),
    Row("Adan", variants=(
        {}, {"betas": (0.9, 0.8, 0.7)}, {"weight_decay": DECAY}, {"weight_decay": 0.5, "no_prox": True}, {"eps": 0.1},
        {"caution": True},
    )),
    Row("Adopt", variants=(
        {}, {"clip_exp": None}, {"clip_exp": 0.1}, {"weight_decay": DECAY}, {"weight_decay": DECAY, "decoupled": True},
        {"caution": True}, {"weight_decay": 0.5, "decoupled": True, "corrected_weight_decay": True}, {"eps": 0.3},
        {"betas": (0.5, 0.9)}, {"maximize": True},
    )),
    Row("LaProp", variants=(
        {}, {"weight_decay": DECAY}, {"weight_decay": 0.5, "corrected_weight_decay": True}, {"caution": True},
        {"betas": (0.5, 0.9)}, {"eps": 0.1},
    )),
    Row("Lion", variants=(
        {}, {"weight_decay": DECAY}, {"caution": True}, {"betas": (0.5, 0.9)}, {"maximize": True},
        {"weight_decay": 0.5, "corrected_weight_decay": True},
    )),
    Row("Mars", variants=(
        {}, {"gamma": 0.3}, {"mars_type": "lion"}, {"optimize_1d": True}, {"lr_1d_factor": 0.3}, {"eps": 0.1},
        {"betas_1d": (0.5, 0.6)}, {"weight_decay": DECAY}, {"caution": True}, {"betas": (0.5, 0.9)},
    )),
)  # fmt: skip
