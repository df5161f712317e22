"""Values of options with which they act, for the tests that turn each one."""

from __future__ import annotations

from typing import Any

LOOSE: dict[str, Any] = {
    "maximize": True, "caution": True, "corrected_weight_decay": True, "cautious_weight_decay": True, "grams": True,
    "update_clip": 1e-3, "centralize_grad": True, "adaptive_grad_clip": 1e-2, "hyperball": True,
}  # fmt: skip


# Where no variant of the row has the option, or its effect takes more steps than there are here.
QUICK = {"betas": (0.8, 0.5)}
ROUTED = ("Muon", "NorMuon", "Dion")
PRECONDITIONED = ("SOAP", "KLSOAP", "Shampoo", "Kron", "Scion")
TURNED: dict[tuple[str, str], dict[str, Any]] = {
    ("AdamW", "amsgrad"): {"amsgrad": True, **QUICK},
    ("Adam", "amsgrad"): {"amsgrad": True, **QUICK},
    ("NvNovoGrad", "amsgrad"): {"amsgrad": True, **QUICK},
    ("AdaBelief", "amsgrad"): {"amsgrad": True, "rectify": False, **QUICK},
    ("AdaBelief", "eps"): {"eps": 0.1, "rectify": False},
    ("RAdam", "eps"): {"eps": 1.0, "betas": (0.8, 0.9)},
    ("ASGD", "alpha"): {"lambd": 2.0, "alpha": 0.1},
    ("ASGD", "t0"): {"t0": 1.0},
    ("Adahessian", "seed"): {"seed": 5},
    # The covariances turn the basis only every precondition_frequency steps.
    ("SOAP", "shampoo_beta"): {"shampoo_beta": 0.5, "precondition_frequency": 2},
    ("KLSOAP", "shampoo_beta"): {"shampoo_beta": 0.5, "precondition_frequency": 2},
    ("AdamMini", "n_heads"): {"block": "head", "n_heads": 2},
    ("Muon", "adamw_lr"): {"adamw_lr": 0.2},
    ("Dion", "rank_multiple_of"): {"rank_fraction": 0.2, "rank_multiple_of": 8},
    ("Dion", "fallback_lr_scale"): {"fallback_lr_scale": 0.3},
    ("Dion", "seed"): {"rank_fraction": 0.5, "seed": 5},
    **{(name, "fallback"): {"fallback": "lion"} for name in (*ROUTED, *PRECONDITIONED)},
    **{(name, "fallback_lr_scale"): {"fallback": "lion", "fallback_lr_scale": 0.3} for name in PRECONDITIONED},
    **{
        (name, "fallback_options"): {"fallback": "lion", "fallback_options": {"betas": (0.5, 0.6)}}
        for name in PRECONDITIONED
    },
    **{(name, "fallback_options"): {"fallback_options": {"betas": (0.5, 0.6)}} for name in ROUTED},
    **{(name, "use_fallback"): {"use_fallback": True} for name in ROUTED},
    **{(name, "use_muon"): {"use_muon": False} for name in ROUTED},
    **{(name, "split"): {"split": 2} for name in ROUTED},
    **{(name, "stacked"): {"stacked": True} for name in ROUTED},
    **{(name, "ns_dtype"): {"ns_dtype": "float32"} for name in (*ROUTED, "Scion")},
}
# What only rounds moves the answer by rounding; float64 is not rounded at all.
ROUNDING = {"momentum_dtype", "mu_dtype", "ns_dtype", "precond_dtype"}
# ASGD's answer is the average that it keeps.
ANSWERS = {"ASGD": "ax"}
