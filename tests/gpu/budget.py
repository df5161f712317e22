"""What a step may ask of a GPU: launches, copies between host and device, and waits of the host, at most.

The parameters are those of a vision transformer of two blocks, 32 tensors in two groups. Counts do not depend on sizes
as long as multi-tensor kernels hold whole lists.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

D = 256
SHAPES: list[tuple[int, ...]] = [
    *[(1, 1, D), (1, 197, D), (D, 3, 16, 16), (D,)],
    *[(D,), (D,), (3 * D, D), (3 * D,), (D, D), (D,), (D,), (D,), (4 * D, D), (4 * D,), (D, 4 * D), (D,)] * 2,
    *[(D,), (D,), (1000, D), (1000,)],
]


@dataclass(frozen=True)
class Row:
    """One line of the budget.

    Attributes:
        scaled: whether a GradScaler leaves its scale and found_inf on the optimizer.
    """

    rule: str
    launches: int
    copies: int
    syncs: int
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    scaled: bool = False

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        dtype = ["bf16"] if self.dtype is torch.bfloat16 else []
        return "-".join([self.rule, *dtype, *options, *["GradScaler"] * self.scaled])


def grouped(params: Iterable[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Two groups: what is decayed, and biases and scales, which are not."""
    params = list(params)
    flat = [p for p in params if p.dim() <= 1]
    return [{"params": [p for p in params if p.dim() > 1]}, {"params": flat, "weight_decay": 0.0}]


FUSED, FOREACH, CAPTURABLE = {"fused": True}, {"foreach": True}, {"capturable": True}
BF16 = torch.bfloat16
#: rule, launches, copies, syncs, options. By default flat rules are one written kernel on CUDA, the others foreach.
BUDGET = (
    Row("AdamW", 2, 1, 0),
    Row("AdamW", 2, 1, 0, FUSED),
    Row("AdamW", 2, 1, 0, FUSED, BF16),
    Row("AdamW", 2, 1, 0, {**FUSED, "master": "stochastic"}, BF16),
    Row("AdamW", 3, 1, 0, {**FUSED, "state_dtype": "int8"}),
    Row("AdamW", 3, 1, 0, {**FUSED, "state_dtype": "int8"}, BF16),
    Row("AdamW", 3, 1, 0, {**FUSED, "state_dtype": "int4"}),
    Row("AdamW", 3, 2, 1, FUSED, scaled=True),
    Row("AdamW", 44, 0, 0, {**FUSED, **CAPTURABLE}),
    Row("AdamW", 54, 0, 0, {**FUSED, **CAPTURABLE}, scaled=True),
    Row("AdamW", 11, 1, 1, {**FUSED, "skip_nonfinite": True}),
    Row("AdamW", 2, 129, 2, {**FUSED, "offload_state": True}),
    Row("Lion", 2, 1, 0, FUSED),
    Row("Lion", 23, 0, 0, {**FUSED, **CAPTURABLE}),
    Row("MADGRAD", 2, 1, 0, FUSED),
    Row("MADGRAD", 26, 0, 0, {**FUSED, **CAPTURABLE}),
    Row("Lamb", 16, 1, 0, FUSED),
    Row("Lamb", 54, 0, 0, {**FUSED, **CAPTURABLE}),
    Row("Prodigy", 15, 2, 1, FUSED),
    Row("Prodigy", 130, 0, 0, {**FUSED, **CAPTURABLE}),
    # Rules that need shapes: bundles of eight matrices.
    Row("AdamP", 14, 1, 0, FUSED),
    Row("Adafactor", 64, 1, 0, FUSED),
    Row("AdamW", 13, 0, 0, FOREACH),
    Row("AdamW", 63, 0, 0, FOREACH, BF16),
    Row("AdamW", 77, 0, 0, {**FOREACH, "state_dtype": "int8"}),
    Row("AdamW", 13, 128, 2, {**FOREACH, "offload_state": True}),
    Row("Lion", 8, 0, 0, FOREACH),
    Row("SGD", 6, 0, 0, {**FOREACH, "lr": 0.1, "momentum": 0.9}),
    Row("Lamb", 88, 0, 0, FOREACH),
    Row("Prodigy", 213, 1, 1, FOREACH),
    # Stacked by shape.
    Row("Muon", 322, 1, 0),
    Row("Muon", 332, 0, 0, FOREACH),
    Row("AdamP", 616, 0, 0, FOREACH),
    Row("Adafactor", 444, 0, 0, FOREACH),
    Row("CAME", 652, 0, 0, FOREACH),
    # Where one launch for each tensor is not avoided yet.
    Row("AdamW", 643, 0, 0, {**FOREACH, **CAPTURABLE}),
    Row("AdamW", 1261, 0, 0, {**FOREACH, **CAPTURABLE}, scaled=True),
)

#: Parameters that one call of a text compiled by Inductor moves, and the kernels that it launches for them at most; a
#: test of the generated code holds it to that.
BUNDLE = 8
LAUNCHES_OF_PASS = 3
