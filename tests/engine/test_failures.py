"""What a step that raises leaves behind, and what steps do not keep."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.tensorlist import TensorList
from helpers import small
from helpers.cases import Row
from helpers.contract import every_executor, every_row, switch


@every_row
@every_executor
def test_a_step_that_raises_midway_leaves_the_rest_as_it_was(
    row: Row, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = getattr(descend, row.name)
    marker, move = 12345.0, kind.move

    def raising_move(cls: Any, p: Any, g: Any, s: Any, k: Any) -> None:
        if any((x == marker).any() for x in (g.tensors if isinstance(g, TensorList) else (g,))):
            raise ArithmeticError("midway")
        move.__func__(cls, p, g, s, k)

    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    params = [p for dtype in dtypes for p in small.parameters(dtype, ((5,), (6, 4)))]
    optimizer = small.busy(row, params, **switch(executor))
    small.take_steps(optimizer, 2)
    before, state = small.values(optimizer), small.states(optimizer)
    small.set_gradients(params, 2, small.is_curved(optimizer))
    for p in params[2:4]:
        p.grad.data[0] = marker
    monkeypatch.setattr(kind, "move", classmethod(raising_move))
    with pytest.raises(ArithmeticError, match="midway"):
        optimizer.step()
    after = small.states(optimizer)
    assert small.same(small.values(optimizer)[2:], before[2:])
    assert [s["step"].item() for s in after[2:]] == [2] * 4
    for s in (*after, *state):
        s.pop("hessian", None)  # Adahessian's estimate of this step, which the next one makes again.
    assert small.same_states(after[3:], state[3:])
    monkeypatch.undo()
    small.take_steps(optimizer, 1, 2)
    assert all(torch.isfinite(p).all() for p in params)


def test_adahessian_leaks_nothing_over_a_thousand_steps() -> None:
    param = nn.Parameter(torch.ones(5))
    optimizer = descend.Adahessian([param], lr=1e-3)
    losses: list[weakref.ref[Tensor]] = []

    def live() -> int:
        gc.collect()
        return sum(isinstance(x, Tensor) for x in gc.get_objects())

    for step in range(1000):
        loss = (param**4).sum()
        losses.append(weakref.ref(loss))
        loss.backward(create_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        if step == 10:
            before = live()
    del loss
    assert live() <= before
    assert not any(ref() is not None for ref in losses)
