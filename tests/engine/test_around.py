"""Optimizers around others: steps that are skipped, gradients that are missing, accumulation, modes, schedules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

import descend
from descend import SAM, Lookahead
from helpers import small
from helpers.cases import ROWS, Row

EXECUTORS = ({"foreach": False}, {"foreach": True}, {"fused": True})
every_executor = pytest.mark.parametrize("executor", EXECUTORS, ids=("loop", "foreach", "fused"))
every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
FREE: dict[str, Callable[..., Any]] = {
    "AdamW": lambda params, **options: descend.ScheduleFreeAdamW(params, lr=0.05, **options),
    "RAdam": lambda params, **options: descend.ScheduleFreeRAdam(params, lr=0.5, **options),
    "SGD": lambda params, **options: descend.ScheduleFreeSGD(params, lr=0.05, **options),
}
every_free = pytest.mark.parametrize("free", FREE.values(), ids=FREE.keys())
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "descend.AdamW": lambda params: descend.AdamW(params, lr=0.05),
    "descend.SGD": lambda params: descend.SGD(params, lr=0.05),
    "torch.AdamW": lambda params: torch.optim.AdamW(params, lr=0.05),
    "torch.SGD": lambda params: torch.optim.SGD(params, lr=0.05),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())


def pair(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return small.parameters(dtype, ((5,), (3, 4)))


# ------------------------------------------------------------------------------------------------ Lookahead


@every_base
def test_sync_lookahead_needs_no_gradients(base: Any) -> None:
    optimizer = Lookahead(base(pair()), alpha=0.25, k=2)
    small.take_steps(optimizer, 3)  # and zero_grad()
    params = small.parameters_of(optimizer)
    expected = [
        slow + 0.25 * (p.detach() - slow)
        for p in params
        for slow in [optimizer.state[p]["lookahead_slow_buff"].clone()]
    ]
    optimizer.sync_lookahead()
    for p, value in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-13, atol=1e-13)


@every_base
def test_a_parameter_whose_gradients_miss_every_synchronisation_is_synchronised(base: Any) -> None:
    params = pair()
    optimizer = Lookahead(base(params), alpha=0.5, k=2)
    slow = None
    for step in range(8):
        small.set_gradients(params, step)
        if step % 2:
            params[0].grad = None
        fast = params[0].detach().clone()
        optimizer.step()
        if step == 3:  # the first, after one that it missed
            assert torch.equal(params[0], fast)
            slow = fast
        if step == 7:
            torch.testing.assert_close(params[0].detach(), slow + 0.5 * (fast - slow), rtol=1e-13, atol=1e-13)
            assert not torch.equal(params[0], fast)


@every_executor
@pytest.mark.parametrize("how", ("skip_nonfinite", "scaler", "capturable"))
def test_steps_that_are_skipped_do_not_count(executor: dict[str, Any], how: str) -> None:
    params = pair(torch.float32)
    options = {} if how == "scaler" else {how: True}
    optimizer = Lookahead(descend.AdamW(params, **options, **executor), k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=how != "skip_nonfinite")
    for step in range(4):
        small.set_gradients(params, step)
        for p in params:
            p.grad *= scaler.scale(torch.ones(())).item()
        if step in (0, 2):
            params[1].grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.param_groups[0]["lookahead_step"] == (0, 1, 1, 2)[step]
    assert all(optimizer.state[p]["lookahead_synced"] == 2 for p in params)


def test_options_in_a_group_are_checked() -> None:
    optimizer = Lookahead(descend.AdamW(pair()))
    for name, value in (("alpha", 2.0), ("k", 0)):
        with pytest.raises(ValueError, match=f"Lookahead: {name}={value!r}, expected"):
            optimizer.add_param_group({"params": pair(), f"lookahead_{name}": value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("overflows", (False, True))
def test_lookahead_around_sam_brings_the_parameters_back(overflows: bool) -> None:
    params = pair(torch.float32)
    optimizer = Lookahead(SAM(descend.AdamW(params, lr=0.1), rho=0.5), k=2)
    before = small.values(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(2):
        small.set_gradients(params, step)
        if step == 0:
            optimizer.first_step()
        elif overflows:
            params[1].grad[0] = torch.inf
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert small.same(small.values(optimizer), before) is overflows
    assert optimizer.param_groups[0]["lookahead_step"] == (0 if overflows else 1)


# ------------------------------------------------------------------------------------------------ SAM


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3))

    def loss(self, batch: int) -> Tensor:
        x = small.noise((4, 3), torch.float64, batch, 0)
        return ((x @ self.weight.T) ** 4).mean()


@pytest.mark.parametrize("zeroes", ("to none", "in place", "by the model", "never"))
def test_a_closure_with_gradient_accumulation_is_refused(zeroes: str) -> None:
    """As Lightning does it: all micro-batches but the last have gone through the model when step(closure) comes."""
    model = Line()
    optimizer = SAM(descend.SGD(model.parameters(), lr=0.1), rho=0.5)
    before = model.weight.detach().clone()
    model.loss(0).backward()

    def closure() -> Tensor:
        if zeroes == "by the model":
            model.zero_grad(set_to_none=False)
        elif zeroes != "never":
            optimizer.zero_grad(set_to_none=zeroes == "to none")
        loss = model.loss(1)
        loss.backward()
        return loss

    if zeroes == "never":
        with pytest.raises(RuntimeError, match=r"adds to gradients of earlier .*first_step\(zero_grad=True\)"):
            optimizer.step(closure)
        assert torch.equal(model.weight, before)
        optimizer.zero_grad()
    optimizer.step(closure)
    twin = Line()
    expected = SAM(descend.SGD(twin.parameters(), lr=0.1), rho=0.5)
    for finish in (expected.first_step, expected.second_step):
        twin.loss(1).backward()
        finish(zero_grad=True)
    assert torch.equal(model.weight, twin.weight)


def test_two_calls_accumulate_over_all_micro_batches() -> None:
    model, twin = Line(), Line()
    optimizers = [SAM(descend.SGD(each.parameters(), lr=0.1), rho=0.5) for each in (model, twin)]
    for finish in (optimizers[0].first_step, optimizers[0].second_step):
        for batch in range(2):
            (model.loss(batch) / 2).backward()
        finish(zero_grad=True)
    for finish in (optimizers[1].first_step, optimizers[1].second_step):
        ((twin.loss(0) + twin.loss(1)) / 2).backward()
        finish(zero_grad=True)
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-13, atol=1e-13)


def test_scalers_are_told_only_while_the_parameters_are_elsewhere() -> None:
    model = Line()
    optimizer = SAM(descend.SGD(model.parameters(), lr=0.1))
    seen = []

    def closure() -> Tensor:
        seen.append(optimizer._step_supports_amp_scaling)
        optimizer.zero_grad()
        loss = model.loss(0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [False, False]
    closure()
    optimizer.first_step(zero_grad=True)
    closure()
    optimizer.second_step()
    assert seen == [False, False, False, True]
    assert not optimizer._step_supports_amp_scaling


@pytest.mark.parametrize("kind", (descend.SGDW, torch.optim.SGD))
def test_sam_takes_parameters_and_a_class(kind: Any) -> None:
    ends = []
    for form in range(4):
        model = Line()
        options = {"lr": 0.1, "momentum": 0.9}
        optimizer = (
            lambda m=model: SAM(kind(m.parameters(), **options), 0.3, True),
            lambda m=model: SAM(m.parameters(), kind, 0.3, True, **options),
            lambda m=model: SAM(m.parameters(), base_optimizer=kind, rho=0.3, adaptive=True, **options),
            lambda m=model: SAM(base_optimizer=kind(m.parameters(), **options), rho=0.3, adaptive=True),
        )[form]()
        assert type(optimizer.base_optimizer) is kind
        assert optimizer.param_groups[0]["sam_rho"] == 0.3
        for finish in (optimizer.first_step, optimizer.second_step):
            model.loss(0).backward()
            finish(zero_grad=True)
        ends.append(model.weight.detach())
    assert all(torch.equal(end, ends[0]) for end in ends)


def test_sam_passes_no_options_to_an_optimizer_that_is_there() -> None:
    with pytest.raises(TypeError, match="lr"):
        SAM(descend.SGD(pair(), lr=0.1), lr=0.1)  # type: ignore[call-overload]


# ------------------------------------------------------------------------------------------------ schedule-free


@every_free
@pytest.mark.parametrize("around", (SAM, Lookahead))
def test_modes_reach_through_wrappers(free: Any, around: Any) -> None:
    optimizer = around(free(pair()))
    if around is Lookahead:
        small.take_steps(optimizer, 7)
    else:
        for finish in (optimizer.first_step, optimizer.second_step) * 7:
            small.set_gradients(small.parameters_of(optimizer), 0)
            finish()
    y = small.values(optimizer)
    optimizer.eval()
    assert not small.same(small.values(optimizer), y)
    act = optimizer.first_step if around is SAM else optimizer.sync_lookahead
    called: list[int] = []
    for refused in (act, lambda: optimizer.step(lambda: called.append(1))):
        with pytest.raises(RuntimeError, match="train"):
            refused()
    assert not called
    optimizer.train()
    act()


def test_frozen_parameters_stay() -> None:
    params = pair()
    optimizer = Lookahead(descend.AdamW(params, lr=0.05), k=2)
    small.take_steps(optimizer, 3)
    params[0].requires_grad_(False)
    before = params[0].detach().clone()
    for step in range(3, 12):
        small.set_gradients(params[1:], step)
        optimizer.step()
    assert torch.equal(params[0], before)


def test_wrappers_have_modes_only_where_the_base_has() -> None:
    assert not hasattr(SAM(descend.AdamW(pair())), "train")
    assert not hasattr(Lookahead(torch.optim.AdamW(pair())), "eval")


@every_executor
@pytest.mark.parametrize("capturable", (False, True))
@every_free
def test_x_stays_where_it_is_as_beta_changes(free: Any, capturable: bool, executor: dict[str, Any]) -> None:
    """x is the mean of z, whatever β has been when."""
    optimizer = free(pair(), weight_lr_power=0.0, capturable=capturable, **executor)
    group = optimizer.param_groups[0]
    params = small.parameters_of(optimizer)
    zs: list[list[Tensor]] = []
    for step, beta in enumerate((0.9, 0.5, 0.95, 0.7, 0.85)):
        group.update(betas=(beta, 0.5)) if "betas" in group else group.update(momentum=beta)
        small.set_gradients(params, step)
        if step == 3:
            params[1].grad = None
        optimizer.step()
        zs.append([optimizer.state[p]["z"].clone() for p in params])
    group.update(betas=(0.3, 0.5)) if "betas" in group else group.update(momentum=0.3)
    for before in (True, False):
        optimizer.eval()
        means = [torch.stack([z for i, z in enumerate(each) if j == 0 or i != 3]).mean(0)
                 for j, each in enumerate(zip(*zs, strict=True))]  # fmt: skip
        for p, mean in zip(params, means, strict=True):
            torch.testing.assert_close(p.detach(), mean, rtol=1e-9, atol=1e-11)
        if before:
            optimizer.train()


@every_free
def test_checkpoints_without_the_beta_of_y_have_the_groups(free: Any) -> None:
    optimizer, other = free(pair()), free(pair())
    small.take_steps(optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        del state["y_beta"]
    with torch.no_grad():
        for p, q in zip(small.parameters_of(other), small.parameters_of(optimizer), strict=True):
            p.copy_(q)
    other.load_state_dict(saved)
    for each in (optimizer, other):
        small.take_steps(each, 2, 3)
        each.eval()
    assert small.same(small.values(optimizer), small.values(other))


@every_free
@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16))
@pytest.mark.parametrize("options", ({}, {"master": "split"}, {"master": None}), ids=str)
def test_averaged_holds_x_and_changes_nothing(free: Any, dtype: torch.dtype, options: dict[str, Any]) -> None:
    optimizer, plain = free(pair(dtype), **options), free(pair(dtype), **options)
    for step in range(6):
        for each in (optimizer, plain):
            small.take_steps(each, 1, step)
        with optimizer.averaged():
            held, saved = small.values(optimizer), optimizer.state_dict()
            assert saved["param_groups"][0]["train_mode"] is False
            with pytest.raises(RuntimeError, match="train"):
                optimizer.step()
        with pytest.raises(ArithmeticError), optimizer.averaged():
            raise ArithmeticError
    assert small.same(small.values(optimizer), small.values(plain))
    assert small.same_states(small.states(optimizer), small.states(plain))
    plain.eval()
    assert small.same(held, small.values(plain))
    with plain.averaged():
        assert small.same(held, small.values(plain))
    assert small.same(held, small.values(plain))


@every_free
def test_state_can_be_made_in_either_mode(free: Any) -> None:
    """Distributed checkpoints fake a first step of an optimizer that is to load, in whatever mode it is."""
    optimizer = free(pair())
    before = small.values(optimizer)
    optimizer.eval()
    lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    for p in small.parameters_of(optimizer):
        p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = lr
    assert small.same(small.values(optimizer), before)
    assert all(torch.equal(optimizer.state[p]["z"], p) for p in small.parameters_of(optimizer))
    small.set_gradients(small.parameters_of(optimizer), 0)
    with pytest.raises(RuntimeError, match="train"):
        optimizer.step()


# ------------------------------------------------------------------------------------------------ cyclic momentum


@every_row
@pytest.mark.parametrize("executor", EXECUTORS[:2], ids=("loop", "foreach"))
@pytest.mark.parametrize("schedule", (OneCycleLR, CyclicLR))
def test_schedules_cycle_momentum(row: Row, schedule: Any, executor: dict[str, Any]) -> None:
    """Over the options that everybody has, where some have no momentum at first."""
    ends = []
    for cycles in (True, False):
        optimizer = small.make(row, small.parameters(shapes=((18, 17), (5,))), **executor)
        given = {"total_steps": 8} if schedule is OneCycleLR else {"base_lr": 0.5 * row.lr, "step_size_up": 2}
        if cycles and not {"betas", "momentum"} & optimizer.defaults.keys():
            with pytest.raises(ValueError, match="must support momentum or beta1"):
                schedule(optimizer, max_lr=row.lr, cycle_momentum=True, **given)
            return
        scheduler = schedule(optimizer, max_lr=row.lr, cycle_momentum=cycles, **given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(6):
                small.take_steps(optimizer, 1, step)
                scheduler.step()
        ends.append(small.values(optimizer))
    assert all(bool(value.isfinite().all()) for value in ends[0])
    start = small.parameters(shapes=((18, 17), (5,)))
    assert small.distance(*ends, [p.detach() for p in start]) > 1e-4
