"""On a card every optimizer gives what its oracle gives, each way, in each storage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import descend
from helpers import small
from helpers.cases import ROWS, Row, variant_id
from helpers.harness import run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

WAYS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
STORAGES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "bf16": (torch.bfloat16, {}),
    "split": (torch.bfloat16, {"master": "split"}),
    "stochastic": (torch.bfloat16, {"master": "stochastic"}),
    "int8": (torch.float32, {"state_dtype": "int8"}),
    "int4": (torch.float32, {"state_dtype": "int4"}),
}
BY_NAME = {row.name: row for row in ROWS}
FIRST_ORDER = [row for row in ROWS if row.name != "Adahessian"]  # whose oracle is given a curvature


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("row", FIRST_ORDER, ids=[row.name for row in FIRST_ORDER])
def test_float32_matches_the_oracle(row: Row, way: str) -> None:
    # Newton-Schulz multiplies in bfloat16 unless told otherwise.
    exact = {"ns_dtype": "float32"} if row.name in ("Muon", "NorMuon") else {}
    errors = run(row.name, row.lr, row.variants[0], dtype=torch.float32, device="cuda", **WAYS[way], **exact).errors()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < row.float32, f"{worst}: {errors[worst]:.1e}"


@pytest.mark.parametrize(
    ("row", "options"),
    [
        pytest.param(row, options, id=f"{row.name}-{variant_id(options)}")
        for row in FIRST_ORDER
        for options in row.variants
    ],
)
def test_float64_matches_the_oracle(row: Row, options: dict[str, Any]) -> None:
    """By default: multi-tensor operations where there are some."""
    errors = run(row.name, row.lr, options, device="cuda").errors()
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < (1e-6 if getattr(descend, row.name).reach == "matrix" else 1e-9), (
        f"{worst}: {errors[worst]:.1e}"
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Adafactor", "Muon", "SOAP"))
def test_storage_gives_what_it_gives_on_the_host(name: str, storage: str, way: str) -> None:
    dtype, options = STORAGES[storage]
    shapes = ((), (5,), (6, 64), (18, 32), (40, 256), (4, 3, 3, 3))
    start = small.parameters(dtype, shapes)
    found = []
    for device, chosen in (("cpu", WAYS["loop"]), ("cuda", WAYS[way])):
        params = [torch.nn.Parameter(p.detach().clone().to(device)) for p in start]
        optimizer = getattr(descend, name)(params, lr=BY_NAME[name].lr, **options, **chosen)
        for step in range(4):
            for i, p in enumerate(params):
                p.grad = small.noise(p.shape, dtype, step, i).to(device)
            optimizer.step()
        found.append([p.detach().cpu().float() for p in params])
    # A last digit may tip a number over to its neighbour, which is far among those of few bits.
    assert small.distance(found[1], found[0], [p.detach().float() for p in start]) < 0.1


@pytest.mark.parametrize("way", ("foreach", "fused"))
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_a_captured_step_replays_what_steps_do(row: Row, way: str) -> None:
    """A whole capturable step in a CUDA graph: nothing waits, and nothing comes from the host."""
    refused = getattr(descend, row.name).refused
    for option in ("capturable", *(["fused"] if way == "fused" else [])):
        if option in refused:
            pytest.skip(f"{row.name}: {refused[option]}")
    shapes = ((), (5,), (6, 4), (18, 17), (4, 3, 3, 3))
    found = []
    for captured in (False, True):
        params = [torch.nn.Parameter(p.detach().cuda()) for p in small.parameters(torch.float32, shapes)]
        for i, p in enumerate(params):
            p.grad = small.noise(p.shape, torch.float32, 0, i).cuda()
        optimizer = small.make(row, params, capturable=True, **WAYS[way])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            for _ in range(4):
                graph.replay()
        else:
            for _ in range(4):
                optimizer.step()
        torch.cuda.synchronize()
        found.append([p.detach().cpu() for p in params])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
