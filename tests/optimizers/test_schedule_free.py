"""Schedule-free optimizers: what the parameters hold in which mode, and that no mode is lost or mixed up."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend

KINDS: dict[str, Callable[..., Any]] = {
    "AdamW": lambda params, **options: descend.ScheduleFreeAdamW(params, lr=0.05, **options),
    "RAdam": lambda params, **options: descend.ScheduleFreeRAdam(params, lr=0.5, **options),
    "SGD": lambda params, **options: descend.ScheduleFreeSGD(params, lr=0.05, **options),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
BETA = 0.9


def model(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((), (0,), (5,), (3, 4))]


def train(optimizer: Any, params: list[nn.Parameter], steps: int = 8, start: int = 0) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        for p in params:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad = (p.detach() + noise).to(p.dtype)
        optimizer.step()


def values(params: list[nn.Parameter]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(xs: list[Any], ys: list[Any]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def assert_close(xs: list[Any], ys: list[Any]) -> None:
    for x, y in zip(xs, ys, strict=True):
        torch.testing.assert_close(x.detach(), y.detach(), rtol=1e-11, atol=1e-13)


# ------------------------------------------------------------------------------------- what the parameters hold


@every_kind
def test_evaluation_is_at_the_mean_of_all_z(kind: Callable[..., Any]) -> None:
    params = model()
    optimizer = kind(params, weight_lr_power=0.0)
    zs: list[list[Tensor]] = []
    for step in range(9):
        train(optimizer, params, 1, step)
        zs.append([optimizer.state[p]["z"].clone() for p in params])
    y = values(params)
    optimizer.eval()
    means = [torch.stack(z).mean(0) for z in zip(*zs, strict=True)]
    assert_close(params, means)
    assert_close(y, [(1 - BETA) * z + BETA * x for z, x in zip(zs[-1], means, strict=True)])


@every_kind
def test_weights_grow_with_the_step_and_the_largest_lr(kind: Callable[..., Any]) -> None:
    params = model()
    optimizer = kind(params, r=1.5, weight_lr_power=2.0)
    if isinstance(optimizer, descend.ScheduleFreeRAdam):
        optimizer.param_groups[0].update(betas=(BETA, 0.5), silent_sgd_phase=False)  # rectification: 1 at every step
    weights: list[float] = []
    zs: list[Tensor] = []
    for step, lr in enumerate((0.01, 0.02, 0.04, 0.03)):
        optimizer.param_groups[0]["lr"] = lr
        train(optimizer, params, 1, step)
        zs.append(optimizer.state[params[2]]["z"].clone())
        weights.append((step + 1) ** 1.5 * min(lr if lr != 0.03 else 0.04, 0.04) ** 2)
    optimizer.eval()
    assert_close([params[2]], [sum(w * z for w, z in zip(weights, zs, strict=True)) / sum(weights)])


@every_kind
def test_the_average_is_nearer_to_the_solution(kind: Callable[..., Any]) -> None:
    param = nn.Parameter(torch.full((50,), 2.0, dtype=torch.float64))
    optimizer = kind([param])
    train(optimizer, [param], 400)
    z = optimizer.state[param]["z"].norm()
    optimizer.eval()
    assert param.norm() < 0.7 * z


# ------------------------------------------------------------------------------------- the two modes


@every_kind
def test_train_and_eval_are_harmless_twice(kind: Callable[..., Any]) -> None:
    params = model()
    optimizer = kind(params)
    train(optimizer, params)
    y = values(params)
    optimizer.train()
    assert same(params, y)
    optimizer.eval()
    x = values(params)
    assert not torch.equal(x[2], y[2])
    optimizer.eval()
    assert same(params, x)
    optimizer.train()
    assert_close(params, y)
    back = values(params)
    optimizer.train()
    assert same(params, back)


@every_kind
def test_an_evaluation_in_between_changes_nothing(kind: Callable[..., Any]) -> None:
    ours, theirs = model(), model()
    optimizer, expected = kind(ours, weight_decay=0.1), kind(theirs, weight_decay=0.1)
    for step in range(8):
        train(optimizer, ours, 1, step)
        optimizer.eval()
        optimizer.train()
    train(expected, theirs, 8)
    assert_close(ours, theirs)


@every_kind
def test_a_step_after_eval_says_what_to_do(kind: Callable[..., Any]) -> None:
    params = model()
    optimizer = kind(params)
    train(optimizer, params)
    optimizer.eval()
    before, state = values(params), copy.deepcopy(optimizer.state_dict())
    called = []
    with pytest.raises(RuntimeError, match=r"ScheduleFree\w+: .*call optimizer\.train\(\)"):
        optimizer.step(lambda: called.append(1))
    assert not called
    assert same(params, before)
    after = optimizer.state_dict()
    assert all(same(list(after["state"][i].values()), list(s.values())) for i, s in state["state"].items())
    optimizer.train()
    train(optimizer, params)


@every_kind
def test_modes_before_the_first_step_leave_the_parameters(kind: Callable[..., Any]) -> None:
    params = model()
    optimizer = kind(params)
    before = values(params)
    optimizer.eval()
    optimizer.train()
    assert same(params, before)
    train(optimizer, params[:3], 2)
    optimizer.eval()
    assert torch.equal(params[3], before[3])


@every_kind
def test_added_groups_take_the_mode_of_the_others(kind: Callable[..., Any]) -> None:
    params, later = model(), model()
    optimizer = kind(params)
    train(optimizer, params)
    optimizer.eval()
    optimizer.add_param_group({"params": later})
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]
    before = values(later)
    optimizer.train()
    assert same(later, before)
    train(optimizer, [*params, *later], 2)


@every_kind
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_is_rounded_once(kind: Callable[..., Any], dtype: torch.dtype) -> None:
    params = model(dtype)
    optimizer = kind(params, master=None)
    train(optimizer, params)
    exact = [p.detach().float().lerp(optimizer.state[p]["z"], 1 - 1 / BETA).to(dtype) for p in params]
    optimizer.eval()
    assert same(params, exact)


# ------------------------------------------------------------------------------------- copies and checkpoints


@every_kind
@pytest.mark.parametrize("mode", ("train", "eval"))
@pytest.mark.parametrize("how", ("state_dict", "file", "deepcopy", "pickle"))
def test_training_resumes_from_either_mode(kind: Callable[..., Any], mode: str, how: str) -> None:
    params = model()
    optimizer = kind(params, weight_decay=0.1)
    train(optimizer, params)
    getattr(optimizer, mode)()
    if how in ("deepcopy", "pickle"):
        again = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        copies = again.param_groups[0]["params"]
    else:
        saved = optimizer.state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        copies = [nn.Parameter(p.detach().clone()) for p in params]
        again = kind(copies)
        again.load_state_dict(saved)
    assert [group["train_mode"] for group in again.param_groups] == [mode == "train"]
    if mode == "eval":
        with pytest.raises(RuntimeError, match="train"):
            again.step()
    for o, ps in ((optimizer, params), (again, copies)):
        o.train()
        train(o, ps, 3, start=8)
    assert same(params, copies)
    optimizer.eval()
    again.eval()
    assert same(params, copies)


@every_kind
def test_a_mode_is_adopted_with_the_state(kind: Callable[..., Any]) -> None:
    params, others = model(), model()
    optimizer, other = kind(params), kind(others)
    train(optimizer, params)
    train(other, others)
    other.eval()
    saved, weights = optimizer.state_dict(), values(params)
    other.load_state_dict(saved)
    with torch.no_grad():
        for q, weight in zip(others, weights, strict=True):
            q.copy_(weight)
    train(optimizer, params, 2)
    train(other, others, 2)
    assert same(params, others)


# ------------------------------------------------------------------------------------- edges


@every_kind
def test_lr_0_leaves_everything_in_place(kind: Callable[..., Any]) -> None:
    params = model()
    optimizer = kind(params)
    optimizer.param_groups[0]["lr"] = 0.0
    before = values(params)
    train(optimizer, params, 3)
    assert same(params, before)
    optimizer.eval()
    assert_close(params, before)


@pytest.mark.parametrize(
    "make, name",
    (
        (lambda p: descend.ScheduleFreeAdamW(p, betas=(0.0, 0.999)), r"betas\[0\]"),
        (lambda p: descend.ScheduleFreeRAdam(p, betas=(0.0, 0.999)), r"betas\[0\]"),
        (lambda p: descend.ScheduleFreeSGD(p, momentum=0.0), "momentum"),
        (lambda p: descend.ScheduleFreeSGD(p, momentum=1.0), "momentum"),
        (lambda p: descend.ScheduleFreeSGD(p, hyperball=True), "hyperball"),
        (lambda p: descend.ScheduleFreeSGD(p, warmup_steps=-1), "warmup_steps"),
    ),
)
def test_bad_options_are_named(make: Callable[..., Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make(model())


@every_kind
def test_decay_stages_act_at_y(kind: Callable[..., Any]) -> None:
    ends = []
    for options in ({}, {"cautious_weight_decay": True}, {"corrected_weight_decay": True}):
        params = model()
        optimizer = kind(params, weight_decay=0.5, **options)
        optimizer.param_groups[0]["lr"] *= 0.5
        train(optimizer, params)
        ends.append(params[3].detach())
    assert all((x - y).abs().max() > 1e-4 for i, x in enumerate(ends) for y in ends[:i])


def test_cautious_decay_pulls_only_where_it_helps() -> None:
    param = nn.Parameter(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    optimizer = descend.ScheduleFreeSGD([param], lr=0.1, weight_decay=0.5, cautious_weight_decay=True)
    param.grad = torch.tensor([1.0, -1.0, 1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["z"], torch.tensor([0.85, 1.1, -1.1, -0.85]))
