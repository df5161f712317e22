"""What a step may ask of a GPU: launches, copies between host and device, and waits of the host, at most.

The parameters are those of a vision transformer of two blocks, 32 tensors in two groups. Counts do not depend on sizes
as long as multi-tensor kernels hold whole lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from descend.engine.executors.kernels import Signature

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


#: Parameters that one call of a compiled text moves, twice as many where it takes sums.
BUNDLE = 8
FUSED, FOREACH, CAPTURABLE = {"fused": True}, {"foreach": True}, {"capturable": True}
BF16 = torch.bfloat16
#: rule, launches, copies, syncs, options. The default on CUDA is foreach.
BUDGET = (
    Row("AdamW", 5, 1, 0, FUSED),
    Row("AdamW", 5, 1, 0, FUSED, BF16),
    Row("AdamW", 40, 1, 0, {**FUSED, "master": "stochastic"}, BF16),
    Row("AdamW", 6, 1, 0, {**FUSED, "state_dtype": "int8"}),
    Row("AdamW", 60, 1, 0, {**FUSED, "state_dtype": "int4"}),
    Row("AdamW", 6, 2, 1, FUSED, scaled=True),
    Row("AdamW", 44, 0, 0, {**FUSED, **CAPTURABLE}),
    Row("AdamW", 54, 0, 0, {**FUSED, **CAPTURABLE}, scaled=True),
    Row("AdamW", 14, 1, 1, {**FUSED, "skip_nonfinite": True}),
    Row("AdamW", 5, 129, 0, {**FUSED, "offload_state": True}),
    Row("MADGRAD", 5, 1, 0, FUSED),
    Row("Lamb", 29, 1, 0, FUSED),
    Row("Prodigy", 25, 2, 1, FUSED),
    Row("Adafactor", 75, 1, 0, FUSED),
    Row("AdamW", 20, 0, 0, FOREACH),
    Row("AdamW", 75, 0, 0, FOREACH, BF16),
    Row("AdamW", 77, 0, 0, {**FOREACH, "state_dtype": "int8"}),
    Row("Lion", 12, 0, 0, FOREACH),
    Row("SGD", 9, 0, 0, {**FOREACH, "lr": 0.1, "momentum": 0.9}),
    # Where one launch for each tensor is not avoided yet.
    Row("AdamW", 643, 0, 0, {**FOREACH, **CAPTURABLE}),
    Row("AdamW", 1500, 0, 0, {**FOREACH, **CAPTURABLE}, scaled=True),
    Row("Lamb", 319, 20, 0, FOREACH),
    Row("Adafactor", 601, 100, 0, FOREACH),
    Row("Muon", 420, 0, 0),
)


def launches_of_pass(signature: Signature, is_last: bool) -> int:
    """Kernels that one call of a compiled text launches, at most; a test of the generated code holds them to it."""
    if signature.shaped:
        return 3
    if signature.storage.random:  # not one for the bundle yet
        return signature.bundle * signature.storage.lanes
    return 1 if is_last else 3
