"""The rows of the rules that need whole matrices."""

from __future__ import annotations

from helpers import injected
from helpers.rows import DECAY, Row

__all__ = ["ROWS", "injected"]

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
    # Of a 1x7 matrix a step shows one direction, so that at a refresh after few steps the least eigenvalues of its 7x7
    # factor are nearly 0, and rounding over eigenvalue is what QR turns their vectors by: 3e-4. Elsewhere it is 1e-5.
    Row("SOAP", float32=1e-3, variants=(
        {}, {"precondition_frequency": 5}, {"betas": (0.5, 0.9)}, {"shampoo_beta": 0.5}, {"eps": 0.1}, {"weight_decay": 0.5},
        {"max_precond_dim": 10}, {"precondition_1d": True}, {"normalize_grads": True}, {"correct_bias": False},
        {"maximize": True},
    )),
    # As for SOAP, on the same shape: 1.3e-4.
    Row("KLSOAP", float32=5e-4, variants=(
        {}, {"precondition_frequency": 5, "max_precond_dim": 6}, {"betas": (0.5, 0.9)}, {"shampoo_beta": 0.5}, {"eps": 0.1},
        {"weight_decay": 0.5}, {"max_precond_dim": 10}, {"precondition_1d": True}, {"normalize_grads": True},
        {"correct_bias": False},
    )),
    # The root of an eigenvalue below eps is wrong by a share of float32's epsilon times the largest one over eps. At
    # step 3 the factors of (5,) and (1, 7) still lack rank, and their largest eigenvalue is 300: 3e-4 with eps = 1e-3.
    Row("Shampoo", float32=1e-3, variants=(
        {}, {"precondition_frequency": 10}, {"precondition_frequency": 3, "eps": 1e-3}, {"betas": (0.5, 0.9)},
        {"precondition_frequency": 1, "eps": 1e-3}, {"precondition_frequency": 5, "eps": 0.1}, {"weight_decay": DECAY},
        {"precondition_frequency": 3, "eps": 1e-3, "max_preconditioner_dim": 4},
        {"precondition_frequency": 10, "max_preconditioner_dim": 7}, {"start_preconditioning_step": 5, "eps": 1e-2},
        {"precondition_frequency": 5, "grafting": None, "eps": 0.1}, {"grafting_beta2": 0.9}, {"grafting_eps": 0.1},
        {"precondition_frequency": 10, "maximize": True},
    )),
    Row("Kron", variants=(
        {}, {"momentum": 0.5}, {"weight_decay": DECAY}, {"weight_decay": DECAY, "decoupled_decay": True},
        {"weight_decay": 0.5, "decoupled_decay": True, "corrected_weight_decay": True},
        {"preconditioner_update_probability": 0.3}, {"max_size_triangular": 10}, {"min_ndim_triangular": 3},
        {"memory_save_mode": "one_diag"}, {"memory_save_mode": "smart_one_diag"}, {"memory_save_mode": "all_diag"},
        {"momentum_into_precond_update": False}, {"precond_lr": 0.02}, {"precond_init_scale": 0.1}, {"flatten": True},
        {"flatten": True, "flatten_start_dim": 1, "flatten_end_dim": 2},
        {"weight_decay": DECAY, "stochastic_weight_decay": True},
        {"weight_decay": DECAY, "stochastic_weight_decay": True, "decoupled_decay": True}, {"maximize": True},
        {"seed": 5}, {"deterministic": True}, {"mu_dtype": "bfloat16"}, {"precond_dtype": "bfloat16"},
    )),
)  # fmt: skip
