"""Steps on the virtual GPU, and the same steps on the host."""

from __future__ import annotations

import ctypes
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
from descend.engine.executors import kernels, tiled, triton_launch, writer


def stand_in(signature: kernels.Signature, stage: int) -> Any:
    """A kernel's text, run on the host; it counts as the launches that a test of the generated code finds."""
    function = kernels._Text(signature, stage)
    spec = kernels.example(replace(signature, device=torch.device("cpu")), stage)

    def code(arguments: list[Tensor]) -> Sequence[Tensor]:
        account = virtual.current().account
        account.note("launches", "kernel", budget.LAUNCHES_OF_PASS)
        account.traffic += _traffic(spec, arguments, stage == len(signature.rounds))
        with account.closed():
            made = function(*kernels._regrown(spec, iter(map(virtual.to_host, arguments))))
        return [virtual.to_gpu(x) for x in ((made,) if isinstance(made, Tensor) else made)]

    return code


def _traffic(spec: Any, arguments: Sequence[Tensor], is_last: bool) -> int:
    """A kernel reads all of its arguments once, and the last one writes parameters and state."""
    params, state, *_ = kernels._regrown(spec, iter(arguments))
    return virtual.bytes_of(list(arguments)) + virtual.bytes_of((params, state)) * is_last


def stand_in_launch(function: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """A launch of a written kernel, or of one that no rule changes: what it does, done on the host."""
    account = virtual.current().account
    account.note("launches", "kernel")
    with account.closed():
        given = [virtual.to_host(x) for x in arguments]
        if isinstance(function, writer.Written):
            account.traffic += _moved(function, *given)
        elif function == "total":
            partials, firsts, totals = given
            for job, (first, last) in enumerate(zip(firsts.tolist(), firsts.tolist()[1:], strict=False)):
                totals[job] = partials[first:last].sum(0)
        elif function == "place":
            out, start, count, *numbers = given
            out[start : start + count] = torch.tensor(numbers[:count], device="cpu")


def _moved(kernel: writer.Written, held: Tensor, addresses: Tensor, rows: Tensor, table: Tensor, *rest: Any) -> int:
    """Run the text on each parameter, whose memory the tables name; the bytes that the kernel reads and writes."""
    jobs, _, sizes, *others, count = rest
    partials = others.pop() if kernel.sums else None
    known = others[: -1 if kernel.singles else None]
    signature = replace(kernel.signature, device=torch.device("cpu"))
    example = kernels.example(signature, kernel.stage)
    models, parameter_count = [*kernels.leaves(example[:3])], len([*kernels.leaves(example[:2])])
    traffic = 0
    for job in range(count):
        where = [*held[:, job].tolist(), *addresses.view(-1, count)[:, job].tolist()]
        tensors = [_at(a, model, int(sizes[job])) for a, model in zip(where, models, strict=True)]
        mine = [
            x if x.dim() == 1 and scope == "global" else x[job : job + 1]
            for (scope, _), x in zip(signature.rounds, known)
        ]
        made = kernels.text(signature, kernel.stage, example)(*tensors, table[rows[job]][None], *mine)
        traffic += virtual.bytes_of(tensors) + virtual.bytes_of(tensors[:parameter_count]) * (not kernel.sums)
        if partials is not None:
            partials[jobs == job] = 0
            partials[(jobs == job).nonzero()[0]] = made[0][0]
    return traffic


def _at(address: int, model: Tensor, rows: int) -> Tensor:
    """The memory of one argument as a tensor, shaped as the text's example is."""
    shape = model.shape if tuple(model.shape) == (1,) else (rows, *model.shape[1:])
    size = sum((n - 1) * step for n, step in zip(shape, model.stride(), strict=True)) + 1
    memory = (ctypes.c_byte * (size * model.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=model.dtype).as_strided(shape, model.stride())


@contextmanager
def uncompiled() -> Iterator[None]:
    """A time in which kernels are stood in for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_compiled", stand_in)
        patch.setattr(kernels, "BUNDLE", budget.BUNDLE)
        patch.setattr(triton_launch, "function", lambda kernel: kernel)
        patch.setattr(triton_launch, "launch", stand_in_launch)
        patch.setattr(triton_launch, "_fixed", str)
        patch.setattr("descend.engine.executors.fused._missing_compiler", lambda device: None)
        kernels.kernel.cache_clear()
        tiled._compiled.cache_clear()
        yield
    kernels.kernel.cache_clear()
    tiled._compiled.cache_clear()


def train(row: budget.Row, gpu: virtual.VirtualGpu | None, steps: int = 3) -> list[Tensor]:
    """The parameters after some steps, of which the last one is accounted for."""
    torch.manual_seed(0)
    place = virtual.to_gpu if gpu else torch.clone
    params = [torch.nn.Parameter(place(torch.randn(shape).to(row.dtype))) for shape in budget.SHAPES]
    ways = {} if gpu else {"fused": False, "foreach": False}
    optimizer = getattr(descend, row.rule)(budget.grouped(params), **{**row.options, **ways})
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
