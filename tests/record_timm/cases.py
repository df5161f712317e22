"""Every option set of timm's optimizers that is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from record_timm.problem import DTYPE_OPTIONS, GROUP_STEP, LIFTABLE, Options


@dataclass(frozen=True)
class Case:
    """One optimizer under one set of options. `lifted`: what timm rounds to bfloat16 or float32 stays float64."""

    optimizer: str
    options: Options = field(default_factory=dict)
    workload: str = "main"
    group_options: Sequence[Options] = ({}, {})
    base: str | None = None
    base_options: Options = field(default_factory=dict)
    lifted: bool = False

    @property
    def name(self) -> str:
        parts = [f"{key}={_short(value)}" for key, value in self.options.items()]
        parts += [f"group {i} {k}={_short(v)}" for i, group in enumerate(self.group_options) for k, v in group.items()]
        name = ",".join(parts) or "default"
        if self.base:
            name = f"{self.base} {name}"
        if self.workload not in ("main", "dense", "curved"):
            name += f" @{self.workload}"
        return name + (" @float64" if self.lifted else "")

    @property
    def precision(self) -> str:
        """The coarsest rounding inside timm's step: what a comparison can hope for."""
        if self.lifted:
            return "float64"
        if self.optimizer == "Muon":
            return "bfloat16"
        if self.optimizer == "AdafactorBigVision" and self.options.get("momentum", 0.9) is not None:
            return str(self.options.get("momentum_dtype", "bfloat16"))
        if self.options.get("mu_dtype"):
            return str(self.options["mu_dtype"])
        if self.optimizer == "Kron" and self.options.get("memory_save_mode") != "all_diag":
            return "float32"
        if "RAdamLegacy" in (self.optimizer, self.base):
            return "float32"
        return "float64"


def _short(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")).replace('"', "")


BETAS = {"betas": (0.8, 0.6)}
HEAVY = {"momentum": 0.9}
NO_DECAY = {"weight_decay": 0.0}
RELATIVE: Options = {"lr": None}
# LARC never steps further than the trust ratio, whatever the learning rate: only a large coefficient moves it at all.
CLIPPED = {"trust_clip": True, "trust_coeff": 0.3}

# fmt: off
# Every option alone where it acts alone, together with its partner where it needs one, then a few combinations.
ADAMW: list[Options] = [
    {}, NO_DECAY, BETAS, {"eps": 0.1}, {"caution": True}, {"corrected_weight_decay": True}, {"maximize": True},
    {"foreach": True}, {"clipping_threshold": 1.0}, {"clipping_threshold": 0.5, "caution": True},
    {"foreach": True, "caution": True, "corrected_weight_decay": True, "clipping_threshold": 1.0},
    {"maximize": True, "caution": True, "corrected_weight_decay": True},
]
OPTIONS: dict[str, list[Options]] = {
    "AdaBelief": [
        {}, NO_DECAY, BETAS, {"eps": 1e-3}, {"amsgrad": True}, {"decoupled_decay": False}, {"fixed_decay": True},
        {"rectify": False}, {"degenerated_to_sgd": False}, {"foreach": True},
        {"rectify": False, "amsgrad": True, **BETAS}, {"rectify": False, "eps": 1e-3},
        {"rectify": False, "decoupled_decay": False}, {"betas": (0.8, 0.95)}, {"amsgrad": True, "betas": (0.8, 0.95)},
        {"degenerated_to_sgd": False, "fixed_decay": True},
        {"foreach": True, "rectify": False, "amsgrad": True, "decoupled_decay": False},
    ],
    "Adafactor": [
        {}, NO_DECAY, {"eps": 0.1}, {"clip_threshold": 0.5}, {"decay_rate": -0.3}, {"betas": (0.9, 0.999)},
        {"scale_parameter": False}, {"min_dim_size_to_factor": 2}, {"min_dim_size_to_factor": 32}, {"caution": True},
        {"caution": True, "betas": (0.9, 0.999)}, RELATIVE, {**RELATIVE, "scale_parameter": False},
        {**RELATIVE, "eps_scale": 20.0}, {**RELATIVE, "warmup_init": True},
        {**RELATIVE, "warmup_init": True, "eps_scale": 1e5}, {**RELATIVE, "betas": (0.7, 0.999), "caution": True},
        {"betas": (0.7, 0.999), "caution": True, "min_dim_size_to_factor": 2, "clip_threshold": 0.7},
    ],
    "AdafactorBigVision": [
        {}, NO_DECAY, {"min_dim_size_to_factor": 4}, {"min_dim_size_to_factor": 32}, {"momentum_dtype": "float32"},
        {"momentum_dtype": "float16"}, {"momentum_dtype": "float64"}, {"momentum": None},
        {"momentum": None, "decay_rate": 0.4}, {"momentum": None, "decay_offset": 3},
        {"momentum": None, "beta2_cap": 0.5}, {"momentum": None, "eps": 0.1},
        {"momentum": None, "clipping_threshold": 0.5}, {"momentum": None, "unscaled_wd": True},
        {"momentum": None, "corrected_weight_decay": True}, {"momentum": 0.5, "momentum_dtype": "float64"},
        {"momentum_dtype": "float64", "caution": True},
        {"momentum_dtype": "float64", "unscaled_wd": True, "corrected_weight_decay": True, "caution": True},
        {"momentum_dtype": "float64", "clipping_threshold": 1.0, "min_dim_size_to_factor": 4, "decay_offset": 2},
    ],
    "Adahessian": [
        {}, NO_DECAY, BETAS, {"eps": 0.1}, {"hessian_power": 0.5}, {"update_each": 2}, {"n_samples": 2},
        {"avg_conv_kernel": True}, {"update_each": 2, "n_samples": 2}, {"hessian_power": 0.5, "avg_conv_kernel": True},
    ],
    "AdamP": [{}, {"nesterov": True}, {"caution": True}, {"nesterov": True, "caution": True}],
    "AdamWLegacy": [
        *ADAMW, {"amsgrad": True}, {"amsgrad": True, **BETAS}, {"amsgrad": True, "caution": True, **BETAS},
        {"amsgrad": True, "clipping_threshold": 1.0, "foreach": True, **BETAS},
    ],
    "Adan": [
        {}, NO_DECAY, {"betas": (0.9, 0.8, 0.7)}, {"eps": 0.1}, {"no_prox": True}, {"caution": True}, {"foreach": True},
        {"no_prox": True, "caution": True}, {"foreach": True, "no_prox": True, "caution": True},
    ],
    "Adopt": [
        {}, NO_DECAY, BETAS, {"eps": 0.5}, {"clip_exp": None}, {"clip_exp": 0.1}, {"decoupled": True},
        {"corrected_weight_decay": True}, {"caution": True}, {"foreach": True}, {"maximize": True},
        {"differentiable": True}, {"decoupled": True, "corrected_weight_decay": True},
        {"decoupled": True, "caution": True, "clip_exp": None, **BETAS},
        {"foreach": True, "decoupled": True, "corrected_weight_decay": True, "caution": True, "maximize": True},
    ],
    "Kron": [
        {}, NO_DECAY, {"momentum": 0.5}, {"preconditioner_update_probability": 0.5}, {"max_size_triangular": 10},
        {"min_ndim_triangular": 3}, {"memory_save_mode": "one_diag"}, {"memory_save_mode": "smart_one_diag"},
        {"memory_save_mode": "all_diag"}, {"momentum_into_precond_update": False}, {"precond_lr": 0.5},
        {"precond_init_scale": 0.1}, {"mu_dtype": "float32"}, {"precond_dtype": "float32"}, {"decoupled_decay": True},
        {"decoupled_decay": True, "corrected_weight_decay": True}, {"flatten": True},
        {"flatten": True, "flatten_start_dim": 1}, {"flatten": True, "flatten_start_dim": 1, "flatten_end_dim": 2},
        {"stochastic_weight_decay": True}, {"deterministic": True},
        {"decoupled_decay": True, "stochastic_weight_decay": True, "memory_save_mode": "one_diag", "flatten": True},
    ],
    "LaProp": [
        {}, NO_DECAY, BETAS, {"eps": 0.1}, {"caution": True}, {"corrected_weight_decay": True}, {"foreach": True},
        {"caution": True, "corrected_weight_decay": True, **BETAS},
        {"foreach": True, "caution": True, "corrected_weight_decay": True},
    ],
    "Lamb": [
        {}, NO_DECAY, {**NO_DECAY, "always_adapt": True}, {"bias_correction": False}, BETAS, {"eps": 0.1},
        {"grad_averaging": False}, {"max_grad_norm": None}, {"max_grad_norm": 40.0}, {"trust_clip": True},
        {"always_adapt": True}, {"caution": True}, {"decoupled_decay": True}, {"corrected_weight_decay": True},
        {"decoupled_decay": True, "corrected_weight_decay": True}, {"foreach": True},
        {"grad_averaging": False, "bias_correction": False, "max_grad_norm": None},
        {"trust_clip": True, "decoupled_decay": True, "caution": True},
        {"foreach": True, "trust_clip": True, "decoupled_decay": True, "corrected_weight_decay": True, "caution": True},
        {"foreach": True, "grad_averaging": False, "always_adapt": True, **NO_DECAY},
    ],
    "Lars": [
        {}, NO_DECAY, {**NO_DECAY, "always_adapt": True}, HEAVY, {**HEAVY, "dampening": 0.3},
        {**HEAVY, "nesterov": True}, {"trust_coeff": 0.02}, {"eps": 1.0}, CLIPPED, {**CLIPPED, **HEAVY},
        {"always_adapt": True}, {"foreach": True}, {**CLIPPED, **HEAVY, "nesterov": True},
        {"foreach": True, **CLIPPED, **HEAVY, "nesterov": True},
        {"foreach": True, "dampening": 0.3, "always_adapt": True, **HEAVY, **NO_DECAY},
    ],
    "Lion": [
        {}, NO_DECAY, BETAS, {"caution": True}, {"corrected_weight_decay": True}, {"maximize": True}, {"foreach": True},
        {"caution": True, "corrected_weight_decay": True, "maximize": True, **BETAS},
        {"foreach": True, "caution": True, "corrected_weight_decay": True, "maximize": True},
    ],
    "MADGRAD": [
        {}, NO_DECAY, {"momentum": 0.5}, {"momentum": 0.0}, {"eps": 0.1}, {"decoupled_decay": True},
        {"momentum": 0.0, "decoupled_decay": True}, {"momentum": 0.0, "eps": 0.1},
    ],
    "Mars": [
        {}, NO_DECAY, BETAS, {"eps": 0.1}, {"gamma": 0.2}, {"mars_type": "lion"}, {"optimize_1d": True},
        {"lr_1d_factor": 0.5}, {"betas_1d": (0.7, 0.5)}, {"caution": True}, {"optimize_1d": True, "caution": True},
        {"mars_type": "lion", "optimize_1d": True, "caution": True},
        {"lr_1d_factor": 0.5, "betas_1d": (0.7, 0.5), "caution": True, "gamma": 0.2},
    ],
    "Muon": [
        {}, NO_DECAY, {"momentum": 0.8}, {"nesterov": True}, {"ns_steps": 3}, {"ns_steps": 8},
        {"ns_coefficients": "original"}, {"ns_coefficients": "polar_express"},
        {"ns_coefficients": "polar_express_safer", "safety_factor": 1.02},
        {"ns_coefficients": ((3.0, -4.0, 1.9), (2.0, -1.5, 0.5))}, {"eps": 0.1}, {"safety_factor": 1.5},
        {"adjust_lr_fn": "original"}, {"adjust_lr_fn": "rms_to_rms"}, {"adjust_lr_fn": None}, {"conv_mode": "batched"},
        {"conv_mode": "batched", "normalize_spatial": False}, {"fallback_lr_scale": 0.3}, {"adamw_lr": 0.1}, BETAS,
        {"scale_eps": True}, {"scale_eps": True, "eps": 0.1}, {"verbose": True}, {"algo": "adamuon"},
        {"algo": "adamuon", "nesterov": True}, {"algo": "adamuon", "eps": 0.1},
        {"algo": "adamuon", "adjust_lr_fn": "rms_to_rms"}, {"algo": "adamuon", "adjust_lr_fn": "rsqrt_in"},
        {"algo": "adamuon", "adjust_lr_fn": None}, {"algo": "adamuon", "conv_mode": "batched"},
        {"algo": "adamuon", "conv_mode": "batched", "normalize_spatial": False, "nesterov": True, **BETAS},
        {"nesterov": True, "scale_eps": True, "conv_mode": "batched", "adjust_lr_fn": "original"},
    ],
    "NAdamLegacy": [{}, NO_DECAY, BETAS, {"eps": 0.1}, {"schedule_decay": 0.5}, {"schedule_decay": 0.5, **BETAS}],
    "NAdamW": ADAMW,
    "NvNovoGrad": [
        {}, NO_DECAY, {"betas": (0.8, 0.5)}, {"eps": 1.0}, {"grad_averaging": True}, {"amsgrad": True},
        {"decoupled_decay": True}, {"corrected_weight_decay": True},
        {"decoupled_decay": True, "corrected_weight_decay": True}, {"amsgrad": True, "betas": (0.8, 0.5)},
        {"amsgrad": True, "grad_averaging": True, "decoupled_decay": True, "betas": (0.8, 0.5)},
    ],
    "RAdamLegacy": [{}, NO_DECAY, BETAS, {"betas": (0.8, 0.95)}, {"eps": 0.1}],
    "RMSpropTF": [
        {}, NO_DECAY, {"alpha": 0.7}, {"eps": 0.1}, HEAVY, {"centered": True}, {"decoupled_decay": True},
        {"corrected_weight_decay": True}, {"decoupled_decay": True, "corrected_weight_decay": True}, {"caution": True},
        {**HEAVY, "caution": True}, {**HEAVY, "lr_in_momentum": False}, {"foreach": True},
        {**HEAVY, "lr_in_momentum": False, "caution": True, "centered": True},
        {**HEAVY, "decoupled_decay": True, "corrected_weight_decay": True, "caution": True},
        {**HEAVY, "foreach": True, "centered": True, "caution": True, "decoupled_decay": True},
    ],
    "SGDP": [{}, HEAVY, {**HEAVY, "nesterov": True}, {"caution": True}, {**HEAVY, "nesterov": True, "caution": True}],
    "SGDW": [
        {}, NO_DECAY, HEAVY, {**HEAVY, "dampening": 0.3}, {**HEAVY, "nesterov": True}, {"caution": True},
        {**HEAVY, "caution": True}, {"corrected_weight_decay": True}, {"maximize": True}, {"foreach": True},
        {"differentiable": True}, {**HEAVY, "nesterov": True, "caution": True, "corrected_weight_decay": True},
        {**HEAVY, "nesterov": True, "maximize": True},
        {**HEAVY, "foreach": True, "nesterov": True, "caution": True, "corrected_weight_decay": True},
        {**HEAVY, "foreach": True, "dampening": 0.3, "maximize": True},
    ],
}
# Projections happen only where gradients are nearly orthogonal to the weights.
TANGENT: dict[str, list[Options]] = {
    "AdamP": [
        {}, NO_DECAY, BETAS, {"eps": 0.1}, {"delta": 1.0}, {"wd_ratio": 0.7}, {"nesterov": True}, {"caution": True},
        {"delta": 1.0, "wd_ratio": 0.7}, {"delta": 1.0, "caution": True},
        {"delta": 1.0, "caution": True, "nesterov": True, "wd_ratio": 0.7},
    ],
    "SGDP": [
        {}, NO_DECAY, {"eps": 0.1}, {"delta": 1.0}, {"wd_ratio": 0.7}, {"caution": True}, HEAVY,
        {**HEAVY, "dampening": 0.3}, {**HEAVY, "nesterov": True}, {"delta": 1.0, "caution": True},
        {**HEAVY, "delta": 1.0, "caution": True, "nesterov": True, "wd_ratio": 0.7},
    ],
}
LOOKAHEAD: list[tuple[str, Options, list[Options]]] = [
    ("AdamWLegacy", {}, [{}, {"alpha": 0.8}, {"k": 3}, {"k": 2, "alpha": 0.3}, {"k": 1}, {"k": 3, "alpha": 0.0}]),
    ("RAdamLegacy", {}, [{}, {"k": 3, "alpha": 0.8}]),
    ("SGDW", {"momentum": 0.9, "nesterov": True}, [{}, {"k": 2, "alpha": 0.3}]),
]
CHECKPOINTS: dict[str, Options] = {
    "AdaBelief": {"rectify": False, "amsgrad": True, **BETAS}, "Adafactor": {"betas": (0.9, 0.999)}, "AdamP": {},
    "AdamWLegacy": {"amsgrad": True, **BETAS}, "Kron": {"flatten": True}, "Lamb": {}, "Lars": HEAVY,
    "Lookahead": {"k": 3}, "MADGRAD": {}, "NAdamLegacy": {}, "NvNovoGrad": {"amsgrad": True}, "RAdamLegacy": {},
    "RMSpropTF": {"centered": True, **HEAVY}, "SGDP": HEAVY,
}
FACTORY_OPTIONS: dict[str, Options] = {"larc": {"trust_coeff": 0.3}, "nlarc": {"trust_coeff": 0.3}}
REFUSED_ON_CPU = [
    Case("AdamWLegacy", {"capturable": True}), Case("NAdamW", {"capturable": True}),
    Case("Adopt", {"capturable": True}), Case("Muon", {"capturable": True}),
    Case("Adopt", {"foreach": True, "differentiable": True}),
]
# fmt: on


def all_cases() -> Iterator[Case]:
    for optimizer, rows in OPTIONS.items():
        workload = "curved" if optimizer == "Adahessian" else "dense" if optimizer in GROUP_STEP else "main"
        for options in rows:
            case = Case(optimizer, options, workload)
            yield case
            if optimizer in LIFTABLE and case.precision != "float64" and not DTYPE_OPTIONS & options.keys():
                yield replace(case, lifted=True)
    for optimizer, rows in TANGENT.items():
        yield from (Case(optimizer, options, "tangent") for options in rows)
    for flag in ({"use_fallback": True}, {"use_muon": False}):
        case = Case("Muon", group_options=({}, flag))
        yield from (case, replace(case, lifted=True))
    for base, base_options, rows in LOOKAHEAD:
        for options in rows:
            case = Case("Lookahead", options, base=base, base_options=base_options)
            yield case
            if base in LIFTABLE:
                yield replace(case, lifted=True)
