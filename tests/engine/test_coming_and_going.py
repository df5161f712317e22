"""Parameters, groups, dtypes and state that come, go and change between two steps of every optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from descend.engine.executors import loop
from helpers import small
from helpers.cases import Row
from helpers.contract import every_executor, every_row, refuses, relayout, switch


@every_row
@every_executor
def test_a_late_first_gradient_starts_from_its_own_first_step(row: Row, executor: str) -> None:
    if row.name in small.SHARED:
        pytest.skip(small.SHARED[row.name])
    shapes = ((6, 4), (5,), (6, 4), (1, 7))
    options = {**small.alone(row), **switch(executor)}
    together, apart = (small.busy(row, small.parameters(shapes=shapes), **options) for _ in range(2))
    late, *others = small.parameters_of(together)
    for step in range(5):
        if step < 3:
            small.set_gradients(others, step, small.is_curved(together), places=(1, 2, 3))
            together.step()
            together.zero_grad()
        else:
            small.take_steps(together, 1, step)
            lonely = small.parameters_of(apart)[:1]
            small.set_gradients(lonely, step, small.is_curved(apart))
            apart.step()
    assert together.state[late]["step"] == 2
    assert together.state[others[0]]["step"] == 5
    start = small.parameters(shapes=shapes)
    assert small.distance([late], lonely, start[:1]) < 1e-12
    if not small.is_curved(together):
        before = small.busy(row, small.parameters(shapes=shapes)[1:], **options)
        for step in range(5):
            small.set_gradients(small.parameters_of(before), step, places=(1, 2, 3))
            before.step()
        assert small.distance(others, small.values(before), start[1:]) < 1e-12


@every_row
@every_executor
def test_groups_added_after_steps_start_fresh(row: Row, executor: str) -> None:
    if row.name in small.SHARED:
        pytest.skip(small.SHARED[row.name])
    options = {**small.alone(row), **switch(executor)}
    if any(variant.get("use_fallback") for variant in row.variants):
        options["use_fallback"] = True  # the first group has no matrix
    params, old = small.parameters(), small.parameters()
    optimizer, without = small.busy(row, params[:5], **options), small.busy(row, old[:5], **options)
    small.take_steps(optimizer, 2)
    small.take_steps(without, 5)
    optimizer.add_param_group({"params": params[5:], "lr": row.lr / 2, "name": "late"})
    small.take_steps(optimizer, 3, 2)
    assert small.same(params[:5], old[:5])
    assert [optimizer.state[p]["step"].item() for p in params] == [5] * 5 + [3] * 3
    assert all(
        torch.isfinite(p).all() and not torch.equal(p, start) for p, start in zip(params[5:], old[5:], strict=True)
    )


@every_row
@every_executor
def test_one_optimizer_serves_several_dtypes(row: Row, executor: str) -> None:
    if row.name in small.SHARED:
        pytest.skip(small.SHARED[row.name])
    options = {**small.alone(row), **switch(executor)}
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    shapes = ((5,), (6, 4))
    mixed = [p for dtype in dtypes for p in small.parameters(dtype, shapes)]
    optimizer = small.busy(row, mixed, **options)
    small.take_steps(optimizer)
    exact = [p for dtype in dtypes for p in small.parameters(dtype, shapes)]
    one_by_one = small.busy(row, exact, **options)
    for step in range(3):
        for i, p in enumerate(exact):
            small.set_gradients([p], step, small.is_curved(optimizer), places=[i])
            one_by_one.step()
            p.grad = None
    assert small.same(mixed, exact)
    assert all(s["step"] == 3 for s in small.states(optimizer))


def as_pairs(params: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]


@pytest.mark.capability("complex")
@every_row
@every_executor
def test_complex_parameters_are_pairs_of_reals_or_refused(row: Row, executor: str) -> None:
    """Rules that see rows or matrices may read a pair otherwise, but not as anything infinite or still."""
    params = small.parameters(torch.complex128, ((), (6, 4), (3, 2, 2)))
    real = small.parameters(shapes=((6, 4),))
    try:
        optimizer = small.busy(row, [*params, *real], **{**small.alone(row), **switch(executor)})
    except ValueError as error:
        if "complex" not in str(error):
            raise
        pytest.skip(str(error))
    pairs = as_pairs(params)
    expected = small.busy(
        row, [*pairs, *small.parameters(shapes=((6, 4),))], **{**small.alone(row), **switch(executor)}
    )
    start = small.values(optimizer)[: len(params)]
    for step in range(3):
        small.set_gradients(params, step, small.is_curved(optimizer))
        for p, pair in zip(params, pairs, strict=True):
            pair.grad = torch.view_as_real(p.grad.detach()).clone()
        optimizer.step()
        if optimizer.reach in ("elementwise", "tensor") and not small.is_curved(optimizer):
            expected.step()
            assert small.distance(as_pairs(params), pairs, as_pairs(start)) < 1e-12
    assert all(torch.isfinite(p).all() and not torch.equal(p, at) for p, at in zip(params, start, strict=True))


@every_row
def test_groups_may_run_in_different_ways(row: Row) -> None:
    ways = [
        {"foreach": False},
        {"foreach": True},
        {"foreach": False, "maximize": True},
        {"foreach": True, "lr": row.lr / 2},
    ]
    if not refuses(row, "capturable"):
        ways += [{"capturable": True}]
    if refuses(row, "maximize"):
        del ways[2]
    shapes = ((5,), (6, 4))
    groups = [{"params": small.parameters(shapes=shapes), **way} for way in ways]
    optimizer = small.busy(row, groups, **small.alone(row))
    start = small.values(optimizer)
    small.take_steps(optimizer, 4)
    assert all(s["step"] == 4 for s in small.states(optimizer))
    if row.name not in small.SHARED:
        apart = [nn.Parameter(p.detach().clone()) for p in start]
        pairs = zip(apart[::2], apart[1::2], ways, strict=True)
        lonely = [small.busy(row, pair, **{**small.alone(row), **way}) for *pair, way in pairs]
        for step in range(4):
            small.set_gradients(apart, step, small.is_curved(optimizer))
            for one in lonely:
                one.step()
        if not small.is_curved(optimizer):
            assert small.distance(apart, small.values(optimizer), start) < 1e-12


@every_row
@every_executor
@pytest.mark.parametrize("what", ("data", "layout", "state", "state tensors", "options", "order"))
def test_what_changes_between_steps_is_seen(
    row: Row, executor: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHUNK", 16)
    optimizer = small.busy(row, small.parameters(), **small.alone(row), **switch(executor))
    small.take_steps(optimizer, 2)
    params, (group,) = small.parameters_of(optimizer), optimizer.param_groups
    start = small.values(optimizer)
    for p in params:
        if what == "data":
            p.data = p.data.clone()
        elif what == "layout":
            p.data = relayout(p.data, "channels last" if p.dim() == 4 else "transposed")
        elif what == "state":
            optimizer.state[p] = {name: value.clone() for name, value in optimizer.state[p].items()}
        elif what == "state tensors":
            optimizer.state[p].update({name: value.clone() for name, value in optimizer.state[p].items()})
    if what == "options":
        changed = {"lr": row.lr / 2, "cautious_weight_decay": True, "update_clip": 0.5}
        # A state_dict with an option that the rule refuses does not load.
        group.update({name: value for name, value in changed.items() if name not in getattr(optimizer, "refused", ())})
    elif what == "order" and not small.is_curved(optimizer):
        group["params"] = params[::-1]
    twin = small.busy(row, [nn.Parameter(p.detach().clone()) for p in small.parameters_of(optimizer)])
    twin.load_state_dict(optimizer.state_dict())
    small.take_steps(optimizer, 2, 2)
    small.take_steps(twin, 2, 2)
    start = start[::-1] if what == "order" and not small.is_curved(optimizer) else start
    assert small.distance(small.values(optimizer), small.values(twin), start) < 1e-11
