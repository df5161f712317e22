"""Record what timm 1.0.31 does, as a second witness for the tests: registry, trajectories, checkpoints.

    python tests/record_timm.py            records everything into tests/data/timm
    python tests/record_timm.py --check    reads it back with numpy alone and verifies it

Recording needs torch 2.13, numpy and timm 1.0.31; torchvision is not needed. tests/data/timm/README.md explains the
files.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import json
import random
import sys
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

Options = Mapping[str, Any]

DATA = Path(__file__).parent / "data" / "timm"
TIMM = "1.0.31"
STEPS = 12
KEPT_STEPS = (1, 2, 5, 12)
FACTORY_STEPS = 5
CHECKPOINT_STEP = 5
HALVE_LR_BEFORE = 7
WEIGHT_DECAY = 0.1
MIN_DISPLACEMENT = 0.1
# Makes Kron balance its factors (a chance of one in a hundred) for one tensor of each kind.
KRON_SEED = 772

SHAPES = ((), (5,), (1, 1), (6, 4), (18, 17, 2, 2), (1,), (1, 7), (20, 18), (4, 3, 3, 3))
GROUPS = ((0, 1, 2, 3, 4), (5, 6, 7, 8))
MISSING, ZERO = 3, 8
CURVED_SHAPES = ((), (5,), (6, 4), (1, 7), (4, 3, 2, 2))
CURVED_GROUPS = ((0, 1, 2), (3, 4))
CHECKPOINT_PARAMS, CHECKPOINT_GROUPS = (0, 1, 3, 7), ((0, 1), (2, 3))
# The noise swings by a factor of 30, so that clips, maxima and rectifications all come into play.
NOISE = (1.0, 0.3, 2.0, 0.7, 1.5, 0.1, 1.0, 3.0, 0.5, 1.2, 0.8, 1.0)
SAMPLED_ABOVE, STATE_UP_TO = 24, 40

# timm counts the steps of these per group, a parameter without a gradient would get a correction of its own nowhere.
GROUP_STEP = {"Lamb", "Adan"}
DTYPE_OPTIONS = {"mu_dtype", "precond_dtype", "momentum_dtype"}
LIFTABLE = {"Kron", "Muon", "RAdamLegacy"}


@dataclass(frozen=True)
class Workload:
    """Initial parameters and what is needed to make their gradients, all flat."""

    shapes: Sequence[tuple[int, ...]]
    groups: Sequence[Sequence[int]]
    start: np.ndarray
    gradients: np.ndarray
    missing: Mapping[int, int] = field(default_factory=dict)
    curvature: Mapping[str, np.ndarray] | None = None

    @property
    def spans(self) -> list[slice]:
        ends = list(itertools.accumulate(int(np.prod(shape)) for shape in self.shapes))
        return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]

    @property
    def sample(self) -> np.ndarray:
        """What is kept of a snapshot: small tensors whole, of large ones a stride that meets every row and column."""
        kept = []
        for span in self.spans:
            size = span.stop - span.start
            stride = 1 if size <= SAMPLED_ABOVE else {108: 5, 360: 19, 1224: 37}.get(size, 1)
            kept.append(np.arange(span.start, span.stop, stride))
        return np.concatenate(kept)

    @property
    def state_params(self) -> list[int]:
        """Whose state is kept by value: one tensor of every kind that factorisations and fallbacks tell apart."""
        kept = [(), (5,), (6, 4), (20, 18), (4, 3, 2, 2)]
        return [i for i, shape in enumerate(self.shapes) if shape in kept]

    def split(self, flat: np.ndarray) -> list[Tensor]:
        pairs = zip(self.spans, self.shapes, strict=True)
        return [torch.from_numpy(flat[span].astype(np.float64)).reshape(shape) for span, shape in pairs]

    def take(self, indices: Sequence[int], groups: Sequence[Sequence[int]]) -> Workload:
        flat = np.concatenate([np.arange(self.spans[i].start, self.spans[i].stop) for i in indices])
        missing = {step: indices.index(i) for step, i in self.missing.items() if i in indices}
        shapes = [self.shapes[i] for i in indices]
        return Workload(shapes, groups, self.start[flat], self.gradients[:, flat], missing)


def make_workloads() -> dict[str, Workload]:
    """Rounded to float32, gradients to float16: smaller files, and nothing is lost, as timm sees the rounded values."""
    rng = np.random.default_rng(20240)
    spans = Workload(SHAPES, GROUPS, np.empty(0), np.empty(0)).spans
    size = spans[-1].stop
    start = rng.standard_normal(size).astype(np.float32)
    noise = rng.standard_normal((STEPS, size)) * np.array(NOISE)[:, None]
    gradients = noise + 0.3 * start
    gradients[2, spans[ZERO]] = 0
    tangent = gradients.copy()
    for shape, span in zip(SHAPES, spans, strict=True):
        if len(shape) > 1 and np.prod(shape[1:]) > 1:
            rows = start[span].reshape(shape[0], -1).astype(np.float64)
            unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            flat = noise[:, span].reshape(STEPS, *rows.shape)
            tangent[:, span] = (flat - (flat * unit).sum(2, keepdims=True) * unit).reshape(STEPS, -1)
    tangent[2, spans[ZERO]] = 0
    missing = {4: MISSING, 5: MISSING}
    main = Workload(SHAPES, GROUPS, start, gradients.astype(np.float16), missing)

    curved_size = sum(int(np.prod(shape)) for shape in CURVED_SHAPES)
    curvature = {
        "square": rng.uniform(0.2, 2.0, curved_size).astype(np.float32),
        "fourth": rng.uniform(0.0, 0.3, curved_size).astype(np.float32),
        "coupling": rng.uniform(-0.1, 0.1, len(CURVED_SHAPES)).astype(np.float32),
    }
    curved_start = rng.standard_normal(curved_size).astype(np.float32)
    curved_noise = (rng.standard_normal((STEPS, curved_size)) * np.array(NOISE)[:, None]).astype(np.float16)
    return {
        "main": main,
        "dense": replace(main, missing={}),
        "tangent": replace(main, gradients=tangent.astype(np.float16)),
        "curved": Workload(CURVED_SHAPES, CURVED_GROUPS, curved_start, curved_noise, {4: 2, 5: 2}, curvature),
        "checkpoint": main.take(CHECKPOINT_PARAMS, CHECKPOINT_GROUPS),
    }


def make_probes() -> np.ndarray:
    """Kron's random probes, one for each step and element: sixteenths, which fit in a byte."""
    size = sum(int(np.prod(shape)) for shape in SHAPES)
    normal = np.random.default_rng(20241).standard_normal((STEPS, size))
    return np.clip(np.rint(normal * 16), -127, 127).astype(np.int8)


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


def load_timm() -> types.ModuleType:
    """timm.optim alone: importing its parents would ask for torchvision."""
    if version("timm") != TIMM:
        raise SystemExit(f"timm {version('timm')} is installed, the recordings are of timm {TIMM}")
    spec = importlib.util.find_spec("timm")
    root = Path(str(spec and spec.origin)).parent
    for name, folder in (("timm", root), ("timm.models", root / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    # Layer decay asks the models for this, and nothing recorded here uses layer decay.
    sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]
    optim = importlib.import_module("timm.optim")
    # Kron compiles its helpers: minutes a shape, for the same numbers.
    sys.modules["timm.optim.kron"].has_dynamo = False  # type: ignore[attr-defined]
    return optim


def optimizer_class(optim: types.ModuleType, name: str) -> Any:
    return importlib.import_module("timm.optim.kron").Kron if name == "Kron" else getattr(optim, name)


@contextmanager
def float64_inside() -> Iterator[None]:
    """Lift the places where timm rounds to a lower precision, so that the same mathematics can be compared exactly."""
    kron, muon = (importlib.import_module(f"timm.optim.{name}") for name in ("kron", "muon"))

    def solve(x: Tensor, a: Tensor) -> Tensor:
        rows: Tensor = torch.linalg.solve_triangular(a, x.reshape(-1, x.size(-1)), upper=True, left=False)
        return rows.reshape_as(x)

    newton_schulz = partial(muon.zeropower_via_newtonschulz, dtype=torch.float64)
    with (
        patch.object(kron, "_solve_triangular_right", solve),
        patch.object(muon, "zeropower_via_newtonschulz", newton_schulz),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


class LoggedRandom(random.Random):
    """Remembers what it drew: Kron takes its random weight decay from it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[float] = []

    # Named again because Python draws integers in another way in a class that overrides `random` alone.
    getrandbits = random.Random.getrandbits

    def random(self) -> float:
        self.drawn.append(super().random())
        return self.drawn[-1]


class KronProbes:
    """Hands Kron known probes in place of its random ones and notes when it updates and balances."""

    def __init__(self, optimizer: Any, params: Sequence[Tensor], workload: Workload, probes: np.ndarray) -> None:
        self.optimizer, self.params, self.workload, self.probes = optimizer, params, workload, probes
        self.step = 0
        self.log = {key: np.zeros((STEPS, len(params)), bool) for key in ("updated", "balanced")}
        optimizer.rng = LoggedRandom(KRON_SEED)
        optimizer._calc_A_and_conjB = partial(self.update, optimizer._calc_A_and_conjB)
        optimizer._balance_Q = partial(self.balance, optimizer._balance_Q)

    def owner(self, factors: Any) -> int:
        state = self.optimizer.state
        return next(i for i, p in enumerate(self.params) if state.get(p, {}).get("Q") is factors)

    def update(self, original: Any, expression: str, gradient: Tensor, factors: Any, probe: Tensor) -> Any:
        index = self.owner(factors)
        self.log["updated"][self.step, index] = True
        known = torch.from_numpy(self.probes[self.step, self.workload.spans[index]] / 16)
        return original(expression, gradient, factors, known.to(probe.dtype).reshape(probe.shape))

    def balance(self, original: Any, factors: Any) -> Any:
        self.log["balanced"][self.step, self.owner(factors)] = True
        return original(factors)

    def arrays(self, workload: Workload, stochastic: bool) -> dict[str, np.ndarray]:
        arrays = dict(self.log)
        if stochastic:
            draws = np.full((STEPS, len(self.params)), np.nan)
            present = [
                (t, i) for t in range(STEPS) for i in range(len(self.params)) if workload.missing.get(t + 1) != i
            ]
            for (t, i), value in zip(present, self.optimizer.rng.drawn[1::2], strict=True):
                draws[t, i] = value
            arrays["decay_draws"] = draws
        return arrays


class HessianLog:
    """Notes Adahessian's estimate before any averaging, and the gradients it goes with."""

    def __init__(self, optimizer: Any, params: Sequence[Tensor], workload: Workload) -> None:
        self.params, self.step = params, 0
        self.workload = workload
        self.arrays = {key: np.zeros_like(workload.gradients, dtype=np.float64) for key in ("gradients", "hessian")}
        self.original = optimizer.set_hessian
        optimizer.set_hessian = self.set_hessian

    def set_hessian(self) -> None:
        self.original()
        for p, span in zip(self.params, self.workload.spans, strict=True):
            if p.grad is not None:
                self.arrays["gradients"][self.step, span] = p.grad.detach().reshape(-1).numpy()
                self.arrays["hessian"][self.step, span] = p.hess.reshape(-1).numpy()  # type: ignore[attr-defined]


def set_gradients(workload: Workload, params: Sequence[Tensor], step: int) -> None:
    given = workload.split(workload.gradients[step - 1])
    present = [i for i in range(len(params)) if workload.missing.get(step) != i]
    for p in params:
        p.grad = None
    if workload.curvature is None:
        for i in present:
            params[i].grad = given[i]
        return
    square, fourth = (workload.split(workload.curvature[key]) for key in ("square", "fourth"))
    losses = []
    for i in present:
        p, coupling = params[i], float(workload.curvature["coupling"][i])
        loss = (square[i] * p**2 + fourth[i] * p**4 + given[i] * p).sum() + coupling * p.sum() ** 2
        losses.append(loss * (0.0 if (step, i) == (3, len(params) - 1) else NOISE[step - 1]))
    gradients = torch.autograd.grad(sum(losses), [params[i] for i in present], create_graph=True)  # type: ignore[arg-type]
    for i, gradient in zip(present, gradients, strict=True):
        params[i].grad = gradient


def flatten(params: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in params]).numpy().copy()


def constructor_options(options: Options) -> dict[str, Any]:
    return {k: getattr(torch, v) if k in DTYPE_OPTIONS and v else v for k, v in options.items()}


@dataclass
class Run:
    """A run in progress: its parameters, its optimizer, and what was kept on the way."""

    workload: Workload
    params: list[Tensor]
    optimizer: Any
    log: Any = None
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    step: int = 0

    def advance(self, until: int, scheduled: bool = True) -> None:
        for step in range(self.step + 1, until + 1):
            if scheduled and step == HALVE_LR_BEFORE and self.optimizer.param_groups[0]["lr"] is not None:
                self.optimizer.param_groups[0]["lr"] *= 0.5
            set_gradients(self.workload, self.params, step)
            if self.log is not None:
                self.log.step = step - 1
            self.optimizer.step()
            self.kept[step] = flatten(self.params)
            self.step = step

    @property
    def displacement(self) -> float:
        """How far the parameter that moved least has moved, relative to its largest element."""
        return displacement(self.workload, self.kept[self.step][self.workload.sample])


def displacement(workload: Workload, sampled: np.ndarray) -> float:
    start, ratios = workload.start.astype(np.float64), []
    moved = np.abs(sampled - start[workload.sample])
    for span in workload.spans:
        mine = (workload.sample >= span.start) & (workload.sample < span.stop)
        ratios.append(moved[mine].max() / np.abs(start[span]).max())
    return float(min(ratios))


class Recorder:
    """Runs timm and gathers what is written out."""

    def __init__(self) -> None:
        self.optim = load_timm()
        self.workloads = make_workloads()
        self.probes = make_probes()
        self.refused: dict[str, str] = {}

    def start(self, case: Case, lr: float | None) -> Run:
        workload = self.workloads[case.workload]
        params = [p.requires_grad_() for p in workload.split(workload.start)]
        options = constructor_options({**case.base_options} if case.base else case.options)
        decay = options.pop("weight_decay", WEIGHT_DECAY)
        options.pop("lr", None)
        groups = []
        for i, indices in enumerate(workload.groups):
            group: dict[str, Any] = {"params": [params[j] for j in indices], "weight_decay": decay * 0.5**i}
            if lr is not None and i:
                group["lr"] = lr * 0.5
            groups.append({**group, **case.group_options[i]})
        optimizer = optimizer_class(self.optim, case.base or case.optimizer)(
            groups, lr=lr, weight_decay=decay, **options
        )
        if case.base:
            optimizer = self.optim.Lookahead(optimizer, **case.options)
        return Run(workload, params, optimizer, self.log_for(case.optimizer, optimizer, params, workload))

    def log_for(self, name: str, optimizer: Any, params: list[Tensor], workload: Workload) -> Any:
        if name == "Kron":
            return KronProbes(optimizer, params, workload, self.probes)
        return HessianLog(optimizer, params, workload) if name == "Adahessian" else None

    def run(self, case: Case, lr: float | None, until: int = STEPS) -> Run:
        run = self.start(case, lr)
        if case.lifted:
            with float64_inside():
                run.advance(until)
        else:
            run.advance(until)
        return run

    def settle(self, case: Case) -> tuple[float | None, Run]:
        """Double the learning rate until every parameter has moved far enough for its errors to show."""
        if "lr" in case.options:
            return None, self.run(case, None)
        lr = 0.01
        while True:
            run = self.run(case, lr)
            end = run.kept[STEPS]
            if not np.isfinite(end).all() or np.abs(end).max() > 1e3 or lr > 1e3:
                raise ArithmeticError(f"{case.optimizer} {case.name}: no learning rate moves it enough, last {lr}")
            if run.displacement >= MIN_DISPLACEMENT:
                return lr, run
            lr *= 2

    def is_inert(self, case: Case, lr: float | None, run: Run) -> bool:
        """Whether the options change nothing here, compared with none of them at the same learning rate."""
        kept = {k: v for k, v in case.options.items() if k in ("lr", "weight_decay")}
        if kept == case.options and not any(case.group_options):
            return False
        plain = self.run(replace(case, options=kept, group_options=({}, {})), lr).kept[STEPS]
        return bool(np.abs(plain - run.kept[STEPS]).max() < 1e-12)

    def cases(self) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        index: dict[str, Any] = {}
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for case in all_cases():
            lr, run = self.settle(case)
            label = f"{case.optimizer}/{case.name}"
            if label in index:
                raise ValueError(f"two cases are called {label}")
            state, slots, values = summarize_state(run)
            entry: dict[str, Any] = {
                "class": case.optimizer,
                "kwargs": {k: v for k, v in case.options.items() if k != "lr"},
            }
            if case.base:
                entry |= {"base": case.base, "base_kwargs": case.base_options}
            if any(case.group_options):
                entry["group_kwargs"] = case.group_options
            sample = run.workload.sample
            entry |= {"lr": lr, "workload": case.workload, "precision": case.precision}
            if case.lifted:
                entry["lifted"] = True
            if self.is_inert(case, lr, run):
                entry["inert"] = True
            entry |= {"displacement": float(f"{run.displacement:.3g}"), "state": state, "slots": slots}
            if extra := group_state(run.optimizer):
                entry["group_state"] = extra
            file = arrays.setdefault(case.optimizer, {})
            file[case.name] = np.stack([run.kept[step][sample] for step in KEPT_STEPS])
            file[f"{case.name}|state"] = values
            if lr is None:
                entry["lr_after"] = [jsonable(group["lr"]) for group in run.optimizer.param_groups]
            if case.name.endswith("default"):
                entry["group_keys"] = sorted(run.optimizer.param_groups[0])
                file[f"{case.name}|full"] = run.kept[STEPS]
            if isinstance(run.log, HessianLog):
                file |= {f"{case.name}|{key}": value for key, value in run.log.arrays.items()}
            if isinstance(run.log, KronProbes):
                logs = run.log.arrays(run.workload, bool(case.options.get("stochastic_weight_decay")))
                file |= {f"{case.name}|{key}": value for key, value in logs.items()}
            index[label] = entry
        for case in REFUSED_ON_CPU:
            try:
                self.run(case, 0.01, 2)
            except (AssertionError, RuntimeError) as error:
                self.refused[f"{case.optimizer}/{case.name}"] = type(error).__name__
        return index, arrays

    def factory(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        index: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        for name in self.optim.list_optimizers():
            info = self.optim.get_optimizer_info(name)
            if isinstance(info.opt_class, str):
                continue
            workload = self.workloads["curved" if info.second_order else "dense"]
            workload = replace(workload, missing={})
            extra = FACTORY_OPTIONS.get(name, {})
            lr = 0.01
            while True:
                params = [p.requires_grad_() for p in workload.split(workload.start)]
                optimizer = self.optim.create_optimizer_v2(params, opt=name, lr=lr, weight_decay=0.01, **extra)
                log = self.log_for(info.opt_class.__name__, optimizer, params, workload)
                run = Run(workload, params, optimizer, log)
                run.advance(FACTORY_STEPS, scheduled=False)
                if run.displacement >= MIN_DISPLACEMENT:
                    break
                if lr > 1e3:
                    raise ArithmeticError(f"factory {name}: no learning rate moves it enough, last {lr}")
                lr *= 2
            group = optimizer.param_groups[0]
            index[name] = {
                "class": info.opt_class.__name__,
                "kwargs": extra,
                "lr": lr,
                "workload": "curved" if info.second_order else "dense",
                "precision": Case(info.opt_class.__name__).precision,
                "displacement": float(f"{run.displacement:.3g}"),
                "group": {k: jsonable(v) for k, v in group.items() if k != "params"},
            }
            arrays[name] = run.kept[FACTORY_STEPS][workload.sample]
            if isinstance(log, HessianLog):
                arrays |= {f"{name}|{key}": value[:FACTORY_STEPS] for key, value in log.arrays.items()}
            if isinstance(log, KronProbes):
                arrays |= {f"{name}|{key}": value[:FACTORY_STEPS] for key, value in log.log.items()}
        return index, arrays

    def checkpoints(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """With torch's usual default dtype, so that step counters look as they do in people's files."""
        index: dict[str, Any] = {}
        finals: dict[str, np.ndarray] = {}
        for optimizer, options in CHECKPOINTS.items():
            base = "AdamWLegacy" if optimizer == "Lookahead" else None
            case = Case(optimizer, options, "checkpoint", base=base)
            if optimizer in GROUP_STEP:
                self.workloads["dense checkpoint"] = replace(self.workloads["checkpoint"], missing={})
                case = replace(case, workload="dense checkpoint")
            lr, _ = self.settle(case)
            torch.set_default_dtype(torch.float32)
            run = self.start(case, lr)
            run.advance(CHECKPOINT_STEP)
            params = [p.detach() for p in run.params]
            saved = {"optimizer": run.optimizer.state_dict(), "params": params, "step": CHECKPOINT_STEP}
            torch.save(saved, DATA / f"{optimizer}.pt")
            run.advance(STEPS)
            torch.set_default_dtype(torch.float64)
            index[optimizer] = {
                "class": optimizer,
                "kwargs": options,
                "lr": lr,
                "workload": case.workload,
                "step": CHECKPOINT_STEP,
                "precision": "float32" if optimizer == "NvNovoGrad" else case.precision,
                "displacement": float(f"{run.displacement:.3g}"),
            }
            if base:
                index[optimizer] |= {"base": base, "base_kwargs": {}}
            finals[optimizer] = run.kept[STEPS]
            if isinstance(run.log, KronProbes):
                finals |= {f"{optimizer}|{key}": value for key, value in run.log.log.items()}
        return index, finals

    def registry(self) -> dict[str, Any]:
        names = {}
        for name in self.optim.list_optimizers():
            info = self.optim.get_optimizer_info(name)
            path = info.opt_class if isinstance(info.opt_class, str) else _public_path(info.opt_class)
            names[name] = {
                "class": path,
                "defaults": jsonable(info.defaults or {}),
                "has_eps": info.has_eps,
                "has_momentum": info.has_momentum,
                "has_betas": info.has_betas,
                "num_betas": info.num_betas,
                "second_order": info.second_order,
            }
            if info.name != name:
                names[name]["alias_of"] = info.name
        found = {
            k: v for k, v in vars(self.optim).items() if inspect.isclass(v) and issubclass(v, torch.optim.Optimizer)
        }
        classes = {}
        for name, cls in sorted({**found, "Kron": optimizer_class(self.optim, "Kron")}.items()):
            classes[name] = {"path": _public_path(cls), "exported": name in found, "signature": signature(cls)}
        exported = sorted(k for k, v in vars(self.optim).items() if not k.startswith("_") and not inspect.ismodule(v))
        functions = {k: signature(v) for k, v in vars(self.optim).items() if inspect.isfunction(v)}
        return {"names": names, "classes": classes, "functions": functions, "exported": exported}


def _public_path(cls: type) -> str:
    return f"{'torch.optim' if cls.__module__.startswith('torch.') else 'timm.optim'}.{cls.__name__}"


def signature(function: Any) -> list[dict[str, Any]]:
    rows = []
    for parameter in inspect.signature(function).parameters.values():
        row: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name.lower()}
        if parameter.default is not inspect.Parameter.empty:
            row["default"] = jsonable(parameter.default)
        rows.append(row)
    return rows


def jsonable(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return "required" if "required" in repr(value) else repr(value)


def group_state(optimizer: Any) -> list[dict[str, Any]]:
    """What timm keeps in the groups beside the options."""
    extra = [
        {k: jsonable(v) for k, v in group.items() if k != "params" and k not in optimizer.defaults}
        for group in optimizer.param_groups
    ]
    return extra if any(extra) else []


def summarize_state(run: Run) -> tuple[dict[str, Any], dict[str, dict[str, int]], np.ndarray]:
    """Names, dtypes and shapes of every parameter's state, and the small ones of a few parameters by value."""
    optimizer = getattr(run.optimizer, "_base_optimizer", run.optimizer)
    states = []
    for p in run.params:
        flat: dict[str, Any] = {}
        for key, value in optimizer.state.get(p, {}).items():
            flat |= {f"{key}.{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
        states.append(flat)
    summary: dict[str, Any] = {}
    for key in sorted({key for state in states for key in state}):
        found = [state.get(key) for state in states]
        kinds = {jsonable(v.dtype) if isinstance(v, Tensor) else type(v).__name__ for v in found if v is not None}
        shapes = [list(v.shape) if isinstance(v, Tensor) else None if v is None else [] for v in found]
        short: Any = shapes
        if shapes == [list(shape) for shape in run.workload.shapes]:
            short = "param"
        elif all(shape == [] for shape in shapes):
            short = "scalar"
        summary[key] = ["|".join(sorted(kinds)) or "NoneType", short]
    slots: dict[str, dict[str, int]] = {}
    values: list[np.ndarray] = []
    for i in run.workload.state_params:
        for key in sorted(states[i]):
            value = states[i][key]
            if value is None or (isinstance(value, Tensor) and value.numel() > STATE_UP_TO):
                continue
            values.append(torch.as_tensor(value, dtype=torch.float64).detach().reshape(-1).numpy())
            slots.setdefault(str(i), {})[key] = values[-1].size
    return summary, slots, np.concatenate(values) if values else np.empty(0)


def describe(workload: Workload, sources: Options) -> dict[str, Any]:
    zero = [3, len(workload.shapes) - 1] if len(workload.shapes) in (len(SHAPES), len(CURVED_SHAPES)) else None
    return {
        **sources,
        "shapes": workload.shapes,
        "groups": workload.groups,
        "missing": [[step, i] for step, i in workload.missing.items()],
        "zero": zero,
        "state_params": workload.state_params,
    }


def write_json(path: Path, tables: Mapping[str, Any]) -> None:
    """One line an entry: small, and a change shows as one line."""
    lines = []
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            rows = [f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items()]
            lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(rows) + "\n}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    DATA.mkdir(parents=True, exist_ok=True)
    recorder = Recorder()
    write_json(DATA / "registry.json", recorder.registry())
    cases, arrays = recorder.cases()
    factory, factory_arrays = recorder.factory()
    checkpoints, finals = recorder.checkpoints()
    main, curved, tangent = (recorder.workloads[name] for name in ("main", "curved", "tangent"))
    shared = {"start": main.start, "main": main.gradients, "tangent": tangent.gradients, "sample": main.sample}
    shared |= {"curved_start": curved.start, "curved_noise": curved.gradients, "curved_sample": curved.sample}
    shared |= {f"curved_{key}": value for key, value in (curved.curvature or {}).items()}
    shared |= {"probes": recorder.probes}
    files = {**arrays, "factory": factory_arrays, "checkpoints": finals, "workloads": shared}
    for name, content in files.items():
        np.savez_compressed(DATA / f"{name}.npz", allow_pickle=False, **content)
    flat = {"start": "start", "gradients": "main", "sample": "sample"}
    taken = {"start": "start", "gradients": "main", "params": CHECKPOINT_PARAMS}
    sources: dict[str, Options] = {
        "main": flat,
        "dense": flat,
        "tangent": {**flat, "gradients": "tangent"},
        "curved": {"start": "curved_start", "noise": "curved_noise", "sample": "curved_sample", "scales": NOISE},
        "checkpoint": taken,
        "dense checkpoint": taken,
    }
    tables = {
        "versions": {"timm": TIMM, "torch": torch.__version__.split("+")[0], "numpy": np.__version__},
        "steps": KEPT_STEPS,
        "factory_steps": FACTORY_STEPS,
        "halve_group_0_lr_before_step": HALVE_LR_BEFORE,
        "weight_decay": [WEIGHT_DECAY, WEIGHT_DECAY / 2],
        "workloads": {name: describe(recorder.workloads[name], source) for name, source in sources.items()},
        "cases": cases,
        "factory": factory,
        "checkpoints": checkpoints,
        "refused": recorder.refused,
    }
    write_json(DATA / "index.json", tables)


def check() -> None:
    """Read everything back and hold it against its own index."""
    index = json.loads((DATA / "index.json").read_text())
    registry = json.loads((DATA / "registry.json").read_text())
    if len(registry["names"]) != 101:
        raise ValueError(f"{len(registry['names'])} registry names, timm {TIMM} has 101")
    workloads = make_workloads()
    workloads["dense checkpoint"] = replace(workloads["checkpoint"], missing={})
    stored = np.load(DATA / "workloads.npz")
    made = {"start": workloads["main"].start, "main": workloads["main"].gradients, "probes": make_probes()}
    for key, array in made.items():
        np.testing.assert_array_equal(stored[key], array)
    short = []
    for label, case in index["cases"].items():
        file, name = np.load(DATA / f"{case['class']}.npz"), label.split("/", 1)[1]
        workload = workloads[case["workload"]]
        rows = file[name]
        if rows.shape != (len(KEPT_STEPS), len(workload.sample)) or not np.isfinite(rows).all():
            raise ValueError(f"{label}: recorded {rows.shape}, finite {np.isfinite(rows).all()}")
        if file[f"{name}|state"].size != sum(sum(slots.values()) for slots in case["slots"].values()):
            raise ValueError(f"{label}: the state does not fill its slots")
        if f"{name}|full" in file:
            np.testing.assert_array_equal(file[f"{name}|full"][workload.sample], rows[-1])
        if displacement(workload, rows[-1]) < MIN_DISPLACEMENT:
            short.append(f"{label}: {case['displacement']}")
    moved = np.load(DATA / "factory.npz")
    for name, case in index["factory"].items():
        if displacement(workloads[case["workload"]], moved[name]) < MIN_DISPLACEMENT:
            short.append(f"factory {name}: {case['displacement']}")
    for name, case in index["checkpoints"].items():
        loaded = torch.load(DATA / f"{name}.pt", weights_only=True)
        shapes = [tuple(p.shape) for p in loaded["params"]]
        if shapes != list(workloads[case["workload"]].shapes):
            raise ValueError(f"checkpoint {name}: parameters {shapes}")
    size = sum(path.stat().st_size for path in DATA.iterdir())
    inert = [label for label, case in index["cases"].items() if case.get("inert")]
    print(
        f"{len(index['cases'])} cases, {len(index['factory'])} factory names, {len(index['checkpoints'])} checkpoints"
    )
    print(f"{size / 2**20:.2f} MiB")
    print("moved less than a tenth:", *short, sep="\n  ")
    print("options without effect:", *inert, sep="\n  ")
    print("refused by timm on the CPU:", index["refused"])


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else record()
