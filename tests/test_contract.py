"""What torch expects of any optimizer, and what we promise of every one of ours, held to over the whole catalogue."""

from __future__ import annotations

import ast
import gc
import inspect
import textwrap
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from cases import ROWS, Row
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import descend
from descend.engine.executors import foreach, loop
from descend.engine.tensorlist import TensorList

EXECUTORS = ("loop", "foreach")
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_executor = pytest.mark.parametrize("executor", EXECUTORS)


def switch(executor: str) -> dict[str, bool]:
    return {"foreach": executor == "foreach"}


def refuses(row: Row, option: str) -> bool:
    """Whether this optimizer cannot have the option; it then says why."""
    rule = getattr(descend, row.name)
    if option in rule.refused:
        with pytest.raises(ValueError, match=f"{option}=True is not possible: .{{10,}}"):
            small.make(row, small.parameters(), **{option: True})
    return option in rule.refused


# -------------------------------------------------------------------------------- state and gradients


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


# -------------------------------------------------------------------------------- hooks and closures


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


# -------------------------------------------------------------------------------- schedulers and scaling


def replayed(row: Row, seen: list[dict[str, Any]]) -> list[Tensor]:
    """The parameters after steps whose changing options are written into the group by hand."""
    optimizer = small.busy(row, small.parameters())
    for step, options in enumerate(seen):
        optimizer.param_groups[0].update(options)
        small.take_steps(optimizer, 1, step)
    return small.values(optimizer)


@every_row
@pytest.mark.parametrize("kind", ("one cycle", "plateau", "lambda"))
def test_learning_rate_schedulers_drive_it(row: Row, kind: str) -> None:
    optimizer = small.busy(row, small.parameters())
    options = optimizer.param_groups[0]
    cycles = [name for name in ("betas", "momentum") if options.get(name) is not None]
    if kind == "one cycle":
        scheduler: Any = OneCycleLR(optimizer, max_lr=2 * row.lr, total_steps=6, cycle_momentum=bool(cycles))
    elif kind == "plateau":
        scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    else:
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            seen.append({name: options[name] for name in ("lr", *cycles)})
            small.take_steps(optimizer, 1, step)
            if step < 5:
                scheduler.step(1.0) if kind == "plateau" else scheduler.step()
    assert len({s["lr"] for s in seen}) > 2
    assert kind != "one cycle" or not cycles or len({str(s[cycles[0]]) for s in seen}) > 2
    assert small.same(small.values(optimizer), replayed(row, seen))


@every_row
@every_executor
@pytest.mark.parametrize("corrected", (False, True), ids=("plain", "corrected decay"))
def test_lr_may_be_a_tensor(row: Row, executor: str, corrected: bool) -> None:
    decays = (
        corrected
        and not refuses(row, "corrected_weight_decay")
        and "weight_decay" in small.busy(row, small.parameters()).defaults
    )
    options = {"weight_decay": 0.1, "corrected_weight_decay": True} if decays else {}
    ends = []
    for lr in (row.lr, torch.tensor(row.lr, dtype=torch.float64), torch.tensor([row.lr], dtype=torch.float64)):
        optimizer = small.busy(row, small.parameters(), **options, **switch(executor), lr=lr)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for step in range(3):
            small.take_steps(optimizer, 1, step)
            scheduler.step()
        assert not isinstance(lr, Tensor) or optimizer.param_groups[0]["lr"] is lr
        ends.append(small.values(optimizer))
    assert small.same(ends[1], ends[0])
    assert small.same(ends[2], ends[0])


@every_row
@every_executor
def test_grad_scaler_skips_infinite_gradients(row: Row, executor: str) -> None:
    optimizer, expected = (small.busy(row, small.parameters(torch.float32), **switch(executor)) for _ in range(2))
    params, curved = small.parameters_of(optimizer), small.is_curved(optimizer)
    # A graph remembers the scale that a loss had; only gradients are brought back from it.
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0 if curved else 4.0)
    for step, infinite in enumerate((False, True) if curved else (False, True, False)):
        small.set_gradients(params, step, curved)
        scale = scaler.scale(torch.ones(())).item()
        if not curved:
            for p in params:
                p.grad *= scale
        if infinite:
            params[3].grad.data[0] = torch.inf
        before, state = small.values(optimizer), small.states(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if infinite:
            assert small.same(small.values(optimizer), before)
            assert small.same_states(small.states(optimizer), state)
            assert scaler.get_scale() == scale / 2
        else:
            small.take_steps(expected, 1, step)
    assert small.same(small.values(optimizer), small.values(expected))


# -------------------------------------------------------------------------------- parameters that come and go


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


# -------------------------------------------------------------------------------- precision and layouts


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


def laid_out(params: list[nn.Parameter], layout: str) -> list[nn.Parameter]:
    """The same values in another memory layout."""
    return [nn.Parameter(relayout(p.detach(), layout)) for p in params]


def relayout(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.clone()
    if layout == "transposed":
        return x.t().contiguous().t() if x.dim() == 2 else x.clone()
    spaced = torch.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype) if x.dim() else x
    return spaced[..., ::2].copy_(x) if x.dim() else x.clone()


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


# -------------------------------------------------------------------------------- failures and leaks


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
        s.pop("hessian", None)  # Adahessian's estimate of this step, which the next one makes anew.
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


# -------------------------------------------------------------------------------- operations and memory

# torch.where and friends, sums and fresh copies exist for one tensor at a time only.
NO_MULTI_TENSOR_FORM = {"_to_copy", "where", "scalar_tensor", "gt", "ge", "lt", "le", "logical_and", "sum"}
# Reading a step counter and making a view of a tensor are no work on its elements.
NO_WORK = {"_local_scalar_dense", "detach", "view_as_real", "view", "unfold"}
LOOPING = {
    "Adahessian": "its probes and its products with the Hessian are made tensor by tensor",
}


class Operations(TorchDispatchMode):
    """Counts what reaches torch's dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in NO_WORK:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def operations(row: Row, options: dict[str, Any], tensors: int) -> Counter[str]:
    optimizer = small.make(row, small.parameters(torch.float32, ((6, 4),) * tensors), **options, foreach=True)
    small.take_steps(optimizer, 2)
    small.set_gradients(small.parameters_of(optimizer), 2, small.is_curved(optimizer))
    with Operations() as seen:
        optimizer.step()
    return seen.calls


@pytest.mark.capability("foreach")
@every_row
def test_foreach_dispatches_as_much_for_ten_tensors_as_for_forty(row: Row) -> None:
    reach = getattr(descend, row.name).reach
    if row.name in LOOPING or reach in ("rows", "matrix"):
        pytest.skip(LOOPING.get(row.name, f"{reach}: its tensors keep their shapes and run one by one"))
    for options in row.variants:
        ten, forty = operations(row, options, 10), operations(row, options, 40)
        growing = {name for name in forty if forty[name] != ten[name]}
        assert not growing - NO_MULTI_TENSOR_FORM, (options, growing)


class LiveBytes(TorchDispatchMode):
    """Follows the memory of tensors that are made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in given:
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: (ref, size) for key, (ref, size) in self.live.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def peak_memory(row: Row, options: dict[str, Any], shape: tuple[int, ...], tensors: int, foreach: bool = False) -> int:
    """Most bytes that a step holds beside parameters, gradients and state."""
    optimizer = small.make(row, small.parameters(torch.float32, (shape,) * tensors), **options, foreach=foreach)
    small.take_steps(optimizer, 1)
    small.set_gradients(small.parameters_of(optimizer), 1, small.is_curved(optimizer))
    with LiveBytes() as seen:
        optimizer.step()
    return seen.peak


@every_row
def test_loop_holds_a_few_pieces_and_never_the_model(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elementwise rules are held to pieces, with options that sum over whole tensors to a few times one tensor."""
    monkeypatch.setattr(loop, "CHUNK", 512)
    rule = getattr(descend, row.name)
    for options in row.variants:
        if row.name == "Adahessian":
            pytest.skip("one backward pass gives the products with the Hessian of all parameters")
        peak = peak_memory(row, options, (64, 64), 1)
        a_few_numbers = 64
        assert peak_memory(row, options, (64, 64), 4) <= peak + a_few_numbers, options
        sums = rule.reach != "elementwise" or options.keys() & {"caution", "clipping_threshold"}
        assert peak <= (8 * 4 * 64 * 64 if sums else 6 * 4 * 512), options


@every_row
def test_foreach_holds_a_batch_and_never_the_model(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    reach = getattr(descend, row.name).reach
    if row.name in LOOPING or reach in ("rows", "matrix"):
        pytest.skip(LOOPING.get(row.name, f"{reach}: its tensors keep their shapes and run one by one"))
    monkeypatch.setattr(foreach, "BATCH_BYTES", 4 * 4 * 32 * 32)
    options = small.busiest(row.name)
    peak = peak_memory(row, options, (32, 32), 8, foreach=True)
    a_few_numbers = 256
    assert peak_memory(row, options, (32, 32), 16, foreach=True) <= peak + a_few_numbers
    assert peak <= 8 * 4 * 4 * 32 * 32


# -------------------------------------------------------------------------------- the text itself

SOURCE = Path(descend.__file__).parent
MATHS_LINES = 25


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def test_adams_moments_stand_once_in_the_package() -> None:
    def updates(function: ast.FunctionDef) -> bool:
        calls = {ast.unparse(node).replace(" ", "") for node in ast.walk(function) if isinstance(node, ast.Call)}
        first = any(call.startswith("ema(s.exp_avg,g,") for call in calls)
        return first and any(call.startswith("ema_sq(s.exp_avg_sq,g,") for call in calls)

    found = [f"{path.stem}.{f.name}" for path in SOURCE.rglob("*.py") for f in functions(path) if updates(f)]
    assert found == ["adam.moments"]


@every_row
def test_the_mathematics_is_short(row: Row) -> None:
    rule = getattr(descend, row.name)
    lines = 0
    for name in ("scalars", "direction", "move"):
        if name in vars(rule):
            (function,) = ast.parse(textwrap.dedent(inspect.getsource(getattr(rule, name)))).body
            assert isinstance(function, ast.FunctionDef)
            code = "\n".join(map(ast.unparse, function.body)).splitlines()
            lines += sum(1 + len(line) // 120 for line in code if not line.lstrip().startswith(('"""', "'")))
    assert lines <= MATHS_LINES, lines
