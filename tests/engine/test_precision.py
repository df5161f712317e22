"""Half precision, memory layouts, pieces, and options that change how a step runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.executors import loop
from helpers import small
from helpers.cases import Row
from helpers.contract import every_executor, every_row, laid_out, refuses, relayout, switch


def ulps(x: Tensor, y: Tensor) -> int:
    """The most bfloat16 numbers that lie between two elements."""
    x, y = (
        torch.where(bits < 0, -(bits & 0x7FFF), bits) for bits in (t.detach().view(torch.int16).int() for t in (x, y))
    )
    return int((x - y).abs().max()) if x.numel() else 0


@pytest.mark.capability("bf16")
@every_row
@every_executor
def test_bfloat16_is_the_rounded_float32_step(row: Row, executor: str) -> None:
    # Curvature from the first step serves all: a gradient's graph is in one dtype.
    plain = {"update_each": 100} if row.name == "Adahessian" else {}
    options = {**switch(executor), **plain, "master": None}
    rounded = small.busy(row, small.parameters(torch.bfloat16), **options)
    small.take_steps(rounded)
    half = small.parameters_of(rounded)
    single = [nn.Parameter(p.detach().float()) for p in half]
    exact = small.busy(row, single, **options)
    exact.load_state_dict(rounded.state_dict())
    small.set_gradients(half, 3)
    for p, q in zip(single, half, strict=True):
        p.grad = q.grad.float()
    rounded.step()
    exact.step()
    assert max(ulps(q, p.to(torch.bfloat16)) for p, q in zip(single, half, strict=True)) <= 1
    for s, t in zip(small.states(rounded), small.states(exact), strict=True):
        for name, value in s.items():
            torch.testing.assert_close(value, t[name], rtol=1e-6, atol=1e-8)


@every_row
@every_executor
@pytest.mark.parametrize("layout", ("channels last", "transposed", "with gaps"))
def test_memory_layouts_change_nothing(row: Row, executor: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHUNK", 16)
    expected = small.busy(row, small.parameters(), **switch(executor))
    start = small.values(expected)
    small.take_steps(expected)
    for contiguous_gradients in (False, True):
        params = laid_out(small.parameters(), layout)
        optimizer = small.busy(row, params, **switch(executor))
        places = [(p.data_ptr(), p.stride()) for p in params]
        for step in range(3):
            small.set_gradients(params, step, small.is_curved(optimizer))
            if not small.is_curved(optimizer):
                for p in params:
                    p.grad = p.grad.contiguous() if contiguous_gradients else relayout(p.grad, "with gaps")
            optimizer.step()
        assert small.distance(params, small.values(expected), start) < 1e-11
        assert [(p.data_ptr(), p.stride()) for p in params] == places


@every_row
def test_pieces_of_any_size_give_the_same(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for chunk in (7, 64, 1 << 17):
        monkeypatch.setattr(loop, "CHUNK", chunk)
        optimizer = small.busy(row, small.parameters(), foreach=False)
        start = small.values(optimizer)
        small.take_steps(optimizer)
        ends.append(small.values(optimizer))
    assert small.distance(ends[0], ends[2], start) < 1e-13
    assert small.distance(ends[1], ends[2], start) < 1e-13


@every_row
@every_executor
def test_maximize_is_descent_on_the_negated_gradient(row: Row, executor: str) -> None:
    if refuses(row, "maximize"):
        return
    up, down = small.parameters(), small.parameters()
    optimizer = small.busy(row, up, maximize=True, **switch(executor))
    expected = small.busy(row, down, **switch(executor))
    for step in range(3):
        small.set_gradients(down, step)
        for p, q in zip(up, down, strict=True):
            p.grad = -q.grad
        optimizer.step()
        expected.step()
    assert small.same(up, down)
    assert small.same_states(small.states(optimizer), small.states(expected))


@pytest.mark.capability("capturable")
@every_row
@every_executor
def test_capturable_is_the_same_text_on_the_device(row: Row, executor: str) -> None:
    if refuses(row, "capturable"):
        pytest.skip(f"{row.name}: {getattr(descend, row.name).refused['capturable']}")
    expected = small.busy(row, small.parameters(), **switch(executor))
    optimizer = small.busy(row, small.parameters(), capturable=True, **switch(executor))
    start = small.values(optimizer)
    small.take_steps(optimizer, 8)
    small.take_steps(expected, 8)
    assert small.distance(small.values(optimizer), small.values(expected), start) < 1e-10
