"""Hooks and closures of every optimizer, as torch has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from helpers import small
from helpers.cases import Row
from helpers.contract import every_row


@every_row
def test_hooks_run_once_each(row: Row) -> None:
    calls: Counter[str] = Counter()

    def note(name: str) -> Callable[..., None]:
        return lambda optimizer, *rest: calls.update([name])

    optimizer = small.busy(row, small.parameters())
    handles = [
        optimizer.register_step_pre_hook(note("step pre")),
        optimizer.register_step_post_hook(note("step post")),
        optimizer.register_state_dict_pre_hook(note("state_dict pre")),
        optimizer.register_state_dict_post_hook(note("state_dict post")),
        optimizer.register_load_state_dict_pre_hook(note("load pre")),
        optimizer.register_load_state_dict_post_hook(note("load post")),
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
    ]
    small.take_steps(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    for handle in handles:
        handle.remove()
    small.take_steps(optimizer, 1)
    optimizer.state_dict()
    assert set(calls.values()) == {1}
    assert len(calls) == len(handles)


@every_row
def test_hooks_may_change_state_dicts(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 1)
    optimizer.register_state_dict_post_hook(lambda _, state_dict: {**state_dict, "extra": 7})
    saved = optimizer.state_dict()
    assert saved["extra"] == 7
    loaded = small.busy(row, small.parameters())
    loaded.register_load_state_dict_pre_hook(lambda _, given: {k: v for k, v in given.items() if k != "extra"})
    seen: list[float] = []
    loaded.register_load_state_dict_post_hook(lambda o: seen.append(o.state[small.parameters_of(o)[0]]["step"].item()))
    loaded.load_state_dict(saved)
    assert seen == [1]


@every_row
@pytest.mark.parametrize("by_keyword", (False, True))
def test_closure_runs_once_with_gradients_enabled(row: Row, by_keyword: bool) -> None:
    params = small.parameters()
    optimizer = small.busy(row, params)
    expected = small.busy(row, small.parameters())
    modes: list[bool] = []

    def closure() -> Tensor:
        modes.append(torch.is_grad_enabled())
        small.set_gradients(params, 0, small.is_curved(optimizer))
        return torch.tensor(1.25)

    loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
    small.take_steps(expected, 1)
    assert (float(loss), modes) == (1.25, [True])
    assert small.same(small.values(optimizer), small.values(expected))
    optimizer.zero_grad()
    assert optimizer.step(closure=None) is None
    with torch.no_grad():
        optimizer.step(closure)
    assert modes == [True, True]


@every_row
def test_a_closure_that_raises_changes_nothing(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 1)
    before, state = small.values(optimizer), small.states(optimizer)

    def closure() -> float:
        raise ArithmeticError("no loss today")

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert small.same(small.values(optimizer), before)
    assert small.same_states(small.states(optimizer), state)
