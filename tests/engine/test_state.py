"""State and gradients: what a step makes, counts, and leaves alone, at lr 0 too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small
from helpers.cases import Row
from helpers.contract import EXECUTORS, every_executor, every_row, switch


@every_row
def test_state_is_made_lazily_and_the_same_by_every_executor(row: Row) -> None:
    made = []
    for executor in EXECUTORS:
        optimizer = small.busy(row, small.parameters(), **switch(executor))
        assert not optimizer.state
        small.take_steps(optimizer)
        made.append(optimizer)
    for p, q in zip(*map(small.parameters_of, made), strict=True):
        ours, theirs = (optimizer.state[x] for optimizer, x in zip(made, (p, q), strict=True))
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            assert (value.dtype, value.shape, value.stride()) == (
                theirs[name].dtype, theirs[name].shape, theirs[name].stride()
            )  # fmt: skip
            torch.testing.assert_close(value, theirs[name], rtol=1e-9, atol=1e-12)


@every_row
@every_executor
def test_parameters_without_gradients_are_left_alone(row: Row, executor: str) -> None:
    params = small.parameters()
    optimizer = small.busy(row, params, **switch(executor))
    before = small.values(optimizer)
    optimizer.step()
    assert small.same(small.values(optimizer), before)
    assert not any(optimizer.state.values())
    small.set_gradients(params[3:], 0, small.is_curved(optimizer))
    optimizer.step()
    assert small.same(small.values(optimizer)[:3], before[:3])
    assert not any(optimizer.state.get(p) for p in params[:3])
    assert all(optimizer.state[p]["step"] == 1 for p in params[3:])


@every_row
@every_executor
def test_gradients_are_never_written_to(row: Row, executor: str) -> None:
    for options in row.variants:
        params = small.parameters(shapes=((), (5,), (6, 4), (18, 17)))
        optimizer = small.make(row, params, **options, **switch(executor))
        for step in range(2):
            small.set_gradients(params, step, small.is_curved(optimizer))
            before = [(p.grad, p.grad._version, p.grad.detach().clone()) for p in params]
            optimizer.step()
            for p, (grad, version, value) in zip(params, before, strict=True):
                assert p.grad is grad, options
                assert grad._version == version, options
                assert torch.equal(grad, value), options


@every_row
def test_state_is_a_plain_number_or_tensor_that_shares_no_memory(row: Row) -> None:
    params = small.parameters(shapes=((), (5,), (6, 4)))
    optimizer = small.busy(row, params)
    small.set_gradients(params, 0, small.is_curved(optimizer))
    optimizer.step()
    owners = {x.untyped_storage().data_ptr() for p in params for x in (p, p.grad)}
    # The counters of all parameters are one tensor's elements, so that one addition counts them.
    assert len({optimizer.state[p]["step"].data_ptr() for p in params}) == len(params)
    for p in params:
        for name, value in optimizer.state[p].items():
            assert isinstance(value, (Tensor, int, float))
            if name == "step":
                continue
            if isinstance(value, Tensor):
                assert not value.requires_grad
                assert value.untyped_storage().data_ptr() not in owners
                owners.add(value.untyped_storage().data_ptr())


@every_row
def test_step_counts_each_parameter_in_a_float32_tensor(row: Row) -> None:
    params = small.parameters(torch.bfloat16)
    optimizer = small.busy(row, params)
    small.take_steps(optimizer, 3)
    for p in params:
        step = optimizer.state[p]["step"]
        assert (step.item(), step.dtype, step.device.type, step.shape) == (3, torch.float32, "cpu", ())


@every_row
@every_executor
def test_zero_gradients_at_lr_zero_move_nothing(row: Row, executor: str) -> None:
    """Distributed checkpoints make an optimizer's state by such a step."""
    params = small.parameters()
    optimizer = small.busy(row, params, **switch(executor))
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], Tensor) else 0.0
    before = small.values(optimizer)
    for p in params:
        loss = 0 * (p * p).sum()
        (p.grad,) = (
            torch.autograd.grad(loss, [p], create_graph=True) if small.is_curved(optimizer) else (p.detach() * 0,)
        )
    optimizer.step(closure=None)
    assert small.same(small.values(optimizer), before)
    assert all(optimizer.state[p] for p in params)


@every_row
@every_executor
def test_at_lr_zero_nothing_moves(row: Row, executor: str) -> None:
    if row.name in MOVES_AT_LR_ZERO:
        pytest.skip(MOVES_AT_LR_ZERO[row.name])
    optimizer = small.busy(row, small.parameters(), **switch(executor), lr=0.0)
    before = small.values(optimizer)
    small.take_steps(optimizer, 3)
    assert small.same(small.values(optimizer), before)


@every_row
def test_once_lr_is_zero_nothing_moves_any_more(row: Row) -> None:
    if row.name in MOVES_ON_AT_LR_ZERO:
        pytest.skip(MOVES_ON_AT_LR_ZERO[row.name])
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 3)
    optimizer.param_groups[0]["lr"] = 0.0
    before = small.values(optimizer)
    small.take_steps(optimizer, 2, 3)
    assert small.same(small.values(optimizer), before)


MOVES_AT_LR_ZERO = {
    "MADGRAD": "adds eps to lr, as in its paper",
    "Rprop": "lr is where its step sizes start, step_sizes[0] the least of them",
}
MOVES_ON_AT_LR_ZERO = {
    **MOVES_AT_LR_ZERO,
    "Adafactor": "lr is inside the average",
    "ASGD": "its rate follows lr one step later, as in torch",
    "RMSpropTF": "lr is inside the momentum",
    "ScheduleFreeAdamW": "its average moves on",
    "ScheduleFreeRAdam": "its average moves on",
    "ScheduleFreeSGD": "its average moves on",
}


@pytest.mark.parametrize("name", ("RMSprop", "RMSpropTF"))
def test_a_variance_of_nothing_is_not_negative(name: str) -> None:
    """The square of the average can round above the average of squares."""
    param = nn.Parameter(torch.linspace(-1, 1, 64))
    optimizer = getattr(descend, name)(
        [param], lr=1e-4, alpha=0.7, eps=0.0 if name == "RMSprop" else 1e-12, centered=True
    )
    for _ in range(120):
        param.grad = torch.linspace(0.1, 3.3, 64)
        optimizer.step()
    assert not torch.isnan(param).any()
