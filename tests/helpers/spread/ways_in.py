"""What processes do for tests/test_ways_in_spread.py: optimizers over FSDP1, ZeRO-1 and exchanged parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer

import descend


def said(make: Callable[[], object]) -> str:
    """The message of the ValueError that came; nothing if none did."""
    try:
        make()
    except ValueError as error:
        return str(error)
    return ""


def over_fsdp1(names: list[str], use_orig_params: bool) -> dict[str, str]:
    """What each optimizer says to FSDP1's parameters; one that says nothing takes a step."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        model = FullyShardedDataParallel(layers, device_id=torch.device("cpu"), use_orig_params=use_orig_params)

        def train(name: str) -> None:
            optimizer = getattr(descend, name)(model.parameters(), lr=0.1)
            model(torch.ones(2, 8)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

        return {name: said(lambda name=name: train(name)) for name in names}  # type: ignore[misc]


def over_zero1(name: str, shapes: list[tuple[int, ...]]) -> list[float]:
    """Two steps over ZeRO-1 (SOAP only measures in its first), which leaves some process without a matrix, or without any parameter."""
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind = descend.partitioned(getattr(descend, name))
        optimizer = ZeroRedundancyOptimizer(params, optimizer_class=kind, lr=0.1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    return [float(p.detach().flatten()[0]) for p in params]


def exchanged(name: str, options: dict[str, object]) -> str:
    """What a step says that finds pieces where the optimizer was built with whole parameters."""
    model = nn.Linear(8, 8)
    optimizer = getattr(descend, name)(model.parameters(), lr=0.1, **options)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    before = [p.to_local().clone() for p in model.parameters()]
    message = said(optimizer.step)
    if message:
        assert all(torch.equal(p.to_local(), x) for p, x in zip(model.parameters(), before, strict=True))
    return message
