"""Lookahead around any optimizer: its mathematics, and that it is an optimizer like any other."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

import descend
from descend import Lookahead
from helpers import small
from helpers.cases import ROWS, Row
from oracles import ORACLES
from oracles import Lookahead as Oracle

SLOW = "lookahead_slow_buff"
ADAMW = next(row for row in ROWS if row.name == "AdamW")
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def around(
    row: Row = ADAMW, k: int = 2, alpha: float = 0.3, dtype: torch.dtype = torch.float64, **options: Any
) -> Lookahead:
    return Lookahead(small.busy(row, small.parameters(dtype), **options), alpha=alpha, k=k)


def reload(optimizer: Lookahead) -> dict[str, Any]:
    """The state_dict, through a file that holds no code."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -------------------------------------------------------------------------------- the mathematics


@pytest.mark.capability("loop", optimizer="Lookahead")
@pytest.mark.parametrize("alpha, k", ((0.5, 6), (0.8, 3), (1.0, 2), (0.3, 1)))
def test_matches_the_oracle(alpha: float, k: int) -> None:
    params = small.parameters()
    halves = [{"params": params[:4]}, {"params": params[4:], "lr": 0.02}]
    optimizer = Lookahead(descend.AdamW(halves, lr=0.05), alpha=alpha, k=k)
    start = [[p.detach().numpy().copy() for p in group["params"]] for group in optimizer.param_groups]
    base = ORACLES["AdamW"]([{"params": start[0]}, {"params": start[1], "lr": 0.02}], lr=0.05)
    oracle = Oracle(base, alpha=alpha, k=k)
    for step in range(14):
        small.set_gradients(params, step)
        if step in (4, 5):
            params[4].grad = None
        grads = [
            [None if p.grad is None else p.grad.numpy() for p in group["params"]] for group in optimizer.param_groups
        ]
        optimizer.step()
        oracle.step(grads)
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            np.testing.assert_allclose(p.detach().numpy(), oracle.groups[i]["params"][j], rtol=1e-12, atol=1e-13)
            if p.numel():
                np.testing.assert_allclose(optimizer.state[p][SLOW], oracle.state[i, j][SLOW], rtol=1e-12, atol=1e-13)


def test_sync_lookahead_synchronises_now() -> None:
    optimizer = around(k=3)
    small.take_steps(optimizer, 4)
    params = small.parameters_of(optimizer)
    small.set_gradients(params, 4)
    fast, slow = small.values(optimizer), [optimizer.state[p][SLOW].clone() for p in params]
    optimizer.sync_lookahead()
    for p, f, s in zip(params, fast, slow, strict=True):
        torch.testing.assert_close(p.detach(), s + 0.3 * (f - s), rtol=1e-12, atol=1e-14)
        assert torch.equal(p, optimizer.state[p][SLOW])


def test_sync_lookahead_before_the_first_step_does_no_harm() -> None:
    optimizer, plain = around(k=50), small.busy(ADAMW, small.parameters())
    optimizer.sync_lookahead()
    small.take_steps(optimizer, 2)
    small.take_steps(plain, 2)
    assert small.same(small.values(optimizer), small.values(plain))


@pytest.mark.parametrize("option, value", (("alpha", 0.9), ("k", 3)))
def test_its_options_matter_and_can_be_set_in_a_group(option: str, value: float) -> None:
    ends = []
    for by_group in (False, True):
        optimizer = around() if by_group else around(**{option: value})
        if by_group:
            optimizer.param_groups[0][f"lookahead_{option}"] = value
        start = small.values(optimizer)
        small.take_steps(optimizer, 8)
        ends.append(small.values(optimizer))
    plain = around()
    small.take_steps(plain, 8)
    assert small.same(*ends)
    assert small.distance(ends[0], small.values(plain), start) > 0.05


@every_row
def test_goes_around_every_optimizer(row: Row) -> None:
    optimizer, plain = around(row), small.busy(row, small.parameters())
    start = small.values(plain)
    small.take_steps(optimizer, 2)
    small.take_steps(plain, 2)
    assert small.same(small.values(optimizer), small.values(plain))
    small.take_steps(optimizer, 2, 2)
    small.take_steps(plain, 2, 2)
    assert small.distance(small.values(optimizer), small.values(plain), start) > 1e-3
    assert optimizer.is_second_order == small.is_curved(plain)


def test_goes_around_torchs_optimizers() -> None:
    ours, theirs = around(amsgrad=False), Lookahead(torch.optim.AdamW(small.parameters(), lr=0.05), alpha=0.3, k=2)
    start = small.values(ours)
    small.take_steps(ours, 6)
    small.take_steps(theirs, 6)
    assert small.distance(small.values(ours), small.values(theirs), start) < 1e-10


# -------------------------------------------------------------------------------- an optimizer like others


def test_hooks_run_once_each() -> None:
    calls: Counter[str] = Counter()

    def note(name: str) -> Callable[..., None]:
        return lambda optimizer, *rest: calls.update([f"{name} of {type(optimizer).__name__}"])

    optimizer = around()
    optimizer.register_step_pre_hook(note("step pre"))
    optimizer.register_step_post_hook(note("step post"))
    optimizer.register_state_dict_pre_hook(note("state_dict pre"))
    optimizer.register_state_dict_post_hook(note("state_dict post"))
    optimizer.register_load_state_dict_pre_hook(note("load pre"))
    optimizer.register_load_state_dict_post_hook(note("load post"))
    small.take_steps(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    names = ("step pre", "step post", "state_dict pre", "state_dict post", "load pre", "load post")
    assert calls == {f"{name} of Lookahead": 1 for name in names}


def test_closure_runs_once_with_gradients_enabled() -> None:
    optimizer, modes = around(), []

    def closure() -> Tensor:
        modes.append(torch.is_grad_enabled())
        small.set_gradients(small.parameters_of(optimizer), 0)
        return torch.tensor(0.5)

    assert float(optimizer.step(closure)) == 0.5
    assert modes == [True]
    assert optimizer.step(closure=None) is None


@pytest.mark.capability("resume", optimizer="Lookahead")
@pytest.mark.parametrize("way", ("deepcopy", "pickle", "state_dict"))
@pytest.mark.parametrize("steps", (1, 3, 4))
def test_a_copy_goes_on_exactly(way: str, steps: int) -> None:
    optimizer = around()
    small.take_steps(optimizer, steps)
    if way == "deepcopy":
        twin = copy.deepcopy(optimizer)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(optimizer))
    else:
        twin = around()
        with torch.no_grad():
            for p, value in zip(small.parameters_of(twin), small.values(optimizer), strict=True):
                p.copy_(value)
        twin.load_state_dict(reload(optimizer))
    assert small.parameters_of(twin)[1] is not small.parameters_of(optimizer)[1]
    small.take_steps(optimizer, 5, steps)
    small.take_steps(twin, 5, steps)
    assert small.same(small.values(twin), small.values(optimizer))
    assert small.same_states(small.states(twin), small.states(optimizer))
    twin.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    twin.state_dict()


def test_state_dict_holds_the_slow_weights_under_timms_name() -> None:
    optimizer = around(k=3)
    small.take_steps(optimizer, 3)
    saved = optimizer.state_dict()
    assert set(saved["state"]) == set(range(len(small.SHAPES)))
    for i, p in enumerate(small.parameters_of(optimizer)):
        assert torch.equal(saved["state"][i][SLOW], p)
    (group,) = saved["param_groups"]
    assert (group["lookahead_alpha"], group["lookahead_k"], group["lookahead_step"]) == (0.3, 3, 3)


@pytest.mark.parametrize("kind", (descend.AdamW, torch.optim.AdamW), ids=("ours", "torch's"))
def test_loads_a_checkpoint_of_the_base_optimizer_alone(kind: type[torch.optim.Optimizer]) -> None:
    base = kind(small.parameters())
    small.take_steps(base, 2)
    optimizer = Lookahead(kind(small.parameters()), k=3)
    optimizer.load_state_dict(base.state_dict())
    small.take_steps(optimizer, 3, 2)
    p = small.parameters_of(optimizer)[0]
    assert optimizer.state[p]["step"] == 5
    assert torch.equal(optimizer.state[p][SLOW], p)


def test_a_checkpoint_of_another_optimizer_changes_nothing() -> None:
    optimizer = around()
    small.take_steps(optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    few = Lookahead(descend.AdamW(small.parameters()[:3]))
    for other, why in ((Lookahead(descend.Lion(small.parameters())), "Lion"), (few, "3 parameters, expected 8")):
        with pytest.raises(ValueError, match=f"AdamW: .*{why}"):
            optimizer.load_state_dict(other.state_dict())
        assert str(optimizer.state_dict()) == str(before)


def test_bfloat16_slow_weights_are_kept_in_float32() -> None:
    optimizer = around(dtype=torch.bfloat16)
    small.take_steps(optimizer, 4)
    loaded = around(dtype=torch.bfloat16)
    loaded.load_state_dict(reload(optimizer))
    for p, q in zip(small.parameters_of(optimizer), small.parameters_of(loaded), strict=True):
        assert optimizer.state[p][SLOW].dtype == loaded.state[q][SLOW].dtype == torch.float32
        assert torch.equal(optimizer.state[p][SLOW], loaded.state[q][SLOW])


@pytest.mark.parametrize("kind", ("one cycle", "plateau", "lambda"))
def test_schedulers_drive_it(kind: str) -> None:
    optimizer, plain = around(k=50), small.busy(ADAMW, small.parameters())
    schedulers: list[Any] = []
    for o in (optimizer, plain):
        if kind == "one cycle":
            schedulers.append(OneCycleLR(o, max_lr=0.1, total_steps=6))
        elif kind == "plateau":
            schedulers.append(ReduceLROnPlateau(o, factor=0.5, patience=0))
        else:
            schedulers.append(LambdaLR(o, lambda step: 1 / (1 + step)))
    for step in range(5):
        for o, scheduler in zip((optimizer, plain), schedulers, strict=True):
            small.take_steps(o, 1, step)
            scheduler.step(*((1.0,) if kind == "plateau" else ()))
    assert optimizer.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert small.same(small.values(optimizer), small.values(plain))


def test_grad_scaler_skips_infinite_gradients() -> None:
    optimizer = around(k=2, dtype=torch.float32)
    params = small.parameters_of(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(3):
        small.set_gradients(params, step)
        for p in params:
            p.grad *= scaler.scale(torch.ones(())).item()
        if step == 1:
            params[3].grad[0] = torch.inf
        before = small.values(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert small.same(small.values(optimizer), before) == (step == 1)
    assert optimizer.param_groups[0]["lookahead_step"] == 2
    assert all(optimizer.state[p]["step"] == 2 for p in params)


def test_groups_added_later_look_ahead_too() -> None:
    optimizer = around()
    small.take_steps(optimizer, 3)
    late = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [late], "lr": 0.5, "lookahead_k": 1})
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    small.take_steps(optimizer, 3, 3)
    assert SLOW in optimizer.state[late]
    assert optimizer.param_groups[-1]["lookahead_step"] == 3


def test_the_base_optimizers_defaults_are_its_own() -> None:
    base = small.busy(ADAMW, small.parameters())
    before = dict(base.defaults)
    Lookahead(base)
    assert base.defaults == before


@pytest.mark.parametrize("option, value", (
    ("alpha", -0.1), ("alpha", 1.5), ("alpha", float("nan")), ("alpha", "half"), ("k", 0), ("k", -1), ("k", 2.5),
))  # fmt: skip
def test_bad_options_are_named(option: str, value: Any) -> None:
    base = small.busy(ADAMW, small.parameters())
    keys = set(base.param_groups[0])
    with pytest.raises((TypeError, ValueError), match=f"Lookahead.*{option}={value!r}.*expected"):
        Lookahead(base, **{option: value})
    assert set(base.param_groups[0]) == keys


def test_something_else_than_an_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="Lookahead: base_optimizer is a list, expected"):
        Lookahead(small.parameters())  # type: ignore[arg-type]
