"""The recorded problems: shapes, starts, gradients and probes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Options = Mapping[str, Any]

DATA = Path(__file__).parents[1] / "data" / "timm"
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
