"""Sharded parameters on a card, on a mesh of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import descend
from helpers import small

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("fused", (None, True))
@pytest.mark.parametrize("name", ("AdamW", "Lamb", "Prodigy", "Adafactor", "Muon"))
def test_a_shard_moves_as_the_whole(name: str, fused: bool | None, mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    found = []
    for sharded in (False, True):
        start = [p.detach().cuda() for p in small.parameters(torch.float32, ((5,), (6, 64), (18, 32), (40, 256)))]
        params = [torch.nn.Parameter(distribute_tensor(p, mesh, [Shard(0)]) if sharded else p) for p in start]
        optimizer = getattr(descend, name)(params, lr=0.01, fused=fused)
        for step in range(3):
            for i, p in enumerate(params):
                g = small.noise(p.shape, torch.float32, step, i).cuda()
                p.grad = distribute_tensor(g, mesh, [Shard(0)]) if sharded else g
            optimizer.step()
        found.append([(p.full_tensor() if sharded else p).detach().cpu() for p in params])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
