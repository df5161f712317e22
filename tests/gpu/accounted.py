"""Steps on the virtual GPU, and the same steps on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import budget
import pytest
import torch
import virtual
from torch import Tensor

import descend
from descend.engine.executors import kernels


def stand_in(signature: kernels.Signature, stage: int) -> Any:
    """A kernel's text, run on the host; it counts as the launches that a test of the generated code finds."""
    function = kernels._Text(signature, stage)
    spec = kernels._example(replace(signature, device=torch.device("cpu")), stage)
    count = budget.launches_of_pass(signature, stage == len(signature.rounds))

    def code(arguments: list[Tensor]) -> Sequence[Tensor]:
        account = virtual.current().account
        account.note("launches", "kernel", count)
        account.traffic += _traffic(spec, arguments, stage == len(signature.rounds))
        with account.closed():
            made = function(*kernels._regrown(spec, iter(map(virtual.to_host, arguments))))
        return [virtual.to_gpu(x) for x in ((made,) if isinstance(made, Tensor) else made)]

    return code


def _traffic(spec: Any, arguments: Sequence[Tensor], is_last: bool) -> int:
    """A kernel reads all of its arguments once, and the last one writes parameters and state."""
    params, state, *_ = kernels._regrown(spec, iter(arguments))
    return virtual.bytes_of(list(arguments)) + virtual.bytes_of((params, state)) * is_last


@contextmanager
def uncompiled() -> Iterator[None]:
    """A time in which kernels are stood in for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_compiled", stand_in)
        patch.setattr(kernels, "BUNDLE", budget.BUNDLE)
        patch.setattr("descend.engine.executors.fused._missing_compiler", lambda device: None)
        kernels.kernel.cache_clear()
        yield
    kernels.kernel.cache_clear()


def train(row: budget.Row, gpu: virtual.VirtualGpu | None, steps: int = 3) -> list[Tensor]:
    """The parameters after some steps, of which the last one is accounted for."""
    torch.manual_seed(0)
    place = virtual.to_gpu if gpu else torch.clone
    params = [torch.nn.Parameter(place(torch.randn(shape).to(row.dtype))) for shape in budget.SHAPES]
    groups = [
        {"params": [p for p in params if p.dim() > 1]},
        {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
    ]
    ways = {} if gpu else {"fused": False, "foreach": False}
    optimizer = getattr(descend, row.rule)(groups, **{**row.options, **ways})
    for _ in range(steps):
        for p in params:
            p.grad = place(torch.randn(p.shape, device="cpu").to(row.dtype))
        if row.scaled:
            optimizer.grad_scale = place(torch.full((), 2.0, device="cpu"))
            optimizer.found_inf = place(torch.zeros((), device="cpu"))
        if gpu:
            gpu.account.reset()
        optimizer.step()
    return [virtual.to_host(p.detach()) for p in params]
