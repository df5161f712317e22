"""One of each kind of text and storage in each executor: what `make test-versions` runs on every torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend

SHAPES = ((), (5,), (6, 64), (18, 32), (4, 3, 3, 3))
EXECUTORS = {"foreach": {"foreach": True}, "fused": {"fused": True}}
KINDS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "elementwise": ("AdamW", torch.float32, {}),
    "every stage": ("AdamW", torch.float32, {"caution": True, "adaptive_grad_clip": 0.1, "centralize_grad": True}),
    "sums of a tensor and of all": ("Lamb", torch.float32, {}),
    "sums of all that carry a number": ("Prodigy", torch.float32, {"lr": 1.0}),
    "rows and columns": ("Adafactor", torch.float32, {}),
    "a number a tensor": ("NvNovoGrad", torch.float32, {}),
    "matrices": ("Muon", torch.float32, {}),
    "float64": ("AdamW", torch.float64, {}),
    "complex": ("AdamW", torch.complex64, {}),
    "capturable": ("AdamW", torch.float32, {"capturable": True}),
    "int8": ("AdamW", torch.float32, {"state_dtype": "int8"}),
    "int4": ("AdamW", torch.float32, {"state_dtype": "int4"}),
    "int8 and sums": ("Lamb", torch.float32, {"state_dtype": "int8"}),
    "bfloat16 with compensation": ("AdamW", torch.bfloat16, {"master": "kahan"}),
    "bfloat16 in two halves": ("AdamW", torch.bfloat16, {"master": "split"}),
    "bfloat16 rounded at random": ("AdamW", torch.bfloat16, {"master": "stochastic"}),
    "float16 with compensation": ("AdamW", torch.float16, {"master": "kahan"}),
}


def noise(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def train(name: str, dtype: torch.dtype, **options: Any) -> tuple[list[Tensor], list[dict[str, Any]]]:
    params = [nn.Parameter(noise(shape, dtype, i)) for i, shape in enumerate(SHAPES)]
    optimizer = getattr(descend, name)(params, **{"lr": 1e-2, **options})
    for step in range(4):
        for i, p in enumerate(params):
            p.grad = noise(tuple(p.shape), dtype, 100 * step + i)
        optimizer.step()
    return [p.detach() for p in params], [optimizer.state[p] for p in params]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_executors_agree_with_the_loop(executor: str, kind: str) -> None:
    name, dtype, options = KINDS[kind]
    expected, told = train(name, dtype, foreach=False, **options)
    found, state = train(name, dtype, **EXECUTORS[executor], **options)
    # A last digit may tip a number over to its neighbour, which is far among those of few bits.
    coarse = dtype in (torch.bfloat16, torch.float16) or "state_dtype" in options
    start = [noise(shape, dtype, i) for i, shape in enumerate(SHAPES)]
    for x, y, at in zip(found, expected, start, strict=True):
        share = float(torch.linalg.vector_norm((x - y).flatten()) / torch.linalg.vector_norm((y - at).flatten()))
        assert share < (0.02 if coarse else 1e-9 if dtype == torch.float64 else 1e-4)
    kinds = [{n: (t.dtype, t.shape) for n, t in each.items()} for each in state]
    assert kinds == [{n: (t.dtype, t.shape) for n, t in each.items()} for each in told]
