"""SAM around any optimizer: its mathematics, its two passes, and that it is an optimizer like any other."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import descend
from descend import SAM

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "descend.AdamW": lambda params: descend.AdamW(params, lr=0.05, weight_decay=0.1),
    "descend.SGDW": lambda params: descend.SGDW(params, lr=0.05, momentum=0.9),
    "descend.Adadelta": lambda params: descend.Adadelta(params, lr=1.0, rho=0.8),
    "torch.Adam": lambda params: torch.optim.Adam(params, lr=0.05),
    "torch.SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())


def model(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((), (5,), (3, 4))]


def loss_of(params: list[nn.Parameter], step: int) -> Tensor:
    """A loss whose gradient changes along the way and from step to step."""
    return sum((((p - 0.1 * step) ** 4).sum() + (p**2).sum() for p in params), torch.zeros(()))


def closure_of(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], step: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(params, step)
        loss.backward()
        return loss

    return closure


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 4, start: int = 0) -> list[float]:
    return [optimizer.step(closure_of(optimizer, params, step)).item() for step in range(start, start + steps)]


def by_hand(
    base: torch.optim.Optimizer, params: list[nn.Parameter], rhos: list[float], adaptive: bool, steps: int = 4
) -> None:
    """The paper, in as few words: the gradient at p + e, handed to the base optimizer at p."""
    for step in range(steps):
        gradients = torch.autograd.grad(loss_of(params, step), params)
        sizes = [p.detach().abs() if adaptive else torch.ones_like(p) for p in params]
        norm = sum((t * g).square().sum() for t, g in zip(sizes, gradients, strict=True)) ** 0.5
        there = [
            nn.Parameter(p.detach() + rho * t**2 * g / norm)
            for p, t, g, rho in zip(params, sizes, gradients, rhos, strict=True)
        ]
        for p, g in zip(params, torch.autograd.grad(loss_of(there, step), there), strict=True):
            p.grad = g
        base.step()


def assert_close(ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


# -------------------------------------------------------------------------------- the mathematics


@pytest.mark.capability("loop", optimizer="SAM")
@every_base
@pytest.mark.parametrize("adaptive", (False, True))
def test_steps_with_the_gradient_of_the_worst_neighbour(base: Callable[..., Any], adaptive: bool) -> None:
    ours, theirs = model(), model()
    train(SAM(base(ours), rho=0.3, adaptive=adaptive), ours)
    by_hand(base(theirs), theirs, [0.3] * 3, adaptive)
    assert_close(ours, theirs)
    unperturbed = model()
    by_hand(base(unperturbed), unperturbed, [0.0] * 3, adaptive)
    assert (ours[2] - unperturbed[2]).abs().max() > 1e-5


@pytest.mark.parametrize("adaptive", (False, True))
def test_groups_share_one_norm_and_have_their_own_rho(adaptive: bool) -> None:
    ours, theirs = model(), model()
    groups = [{"params": ours[:2]}, {"params": ours[2:], "sam_rho": 0.7, "lr": 0.02}]
    train(SAM(descend.AdamW(groups, lr=0.05), rho=0.3, adaptive=adaptive), ours)
    base = descend.AdamW([{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.02}], lr=0.05)
    by_hand(base, theirs, [0.3, 0.3, 0.7], adaptive)
    assert_close(ours, theirs)


def test_adaptive_may_differ_between_groups() -> None:
    params = model()
    groups = [{"params": params[:2]}, {"params": params[2:], "sam_adaptive": True}]
    optimizer = SAM(descend.SGD(groups, lr=0.0), rho=0.3)
    before = [p.detach().clone() for p in params]
    loss_of(params, 0).backward()
    grads = [p.grad for p in params]
    weighted = [*grads[:2], grads[2] * before[2].abs()]
    norm = sum(g.square().sum() for g in weighted) ** 0.5
    optimizer.first_step()
    for p, b, g in zip(params[:2], before[:2], grads[:2], strict=True):
        torch.testing.assert_close(p.detach() - b, 0.3 * g / norm)
    torch.testing.assert_close(params[2].detach() - before[2], 0.3 * before[2] ** 2 * grads[2] / norm)


def test_rho_0_is_the_base_optimizer() -> None:
    ours, theirs = model(), model()
    train(SAM(descend.AdamW(ours, lr=0.05), rho=0.0), ours)
    train(descend.AdamW(theirs, lr=0.05), theirs)
    assert_close(ours, theirs)


def test_maximize_looks_downhill() -> None:
    params = model()
    optimizer = SAM(descend.SGD(params, lr=0.05, maximize=True), rho=0.3)
    first = loss_of(params, 0)
    first.backward()
    optimizer.first_step(zero_grad=True)
    assert loss_of(params, 0) < first


# -------------------------------------------------------------------------------- the two passes


@every_base
def test_two_calls_are_a_closure(base: Callable[..., Any]) -> None:
    ours, theirs = model(), model()
    optimizer, expected = SAM(base(ours), rho=0.3), SAM(base(theirs), rho=0.3)
    for step in range(4):
        loss_of(ours, step).backward()
        optimizer.first_step(zero_grad=True)
        loss_of(ours, step).backward()
        optimizer.second_step(zero_grad=True)
        assert all(p.grad is None for p in ours)
    train(expected, theirs)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_step_returns_the_loss_at_the_parameters() -> None:
    params = model()
    expected = loss_of(params, 0).item()
    assert train(SAM(descend.AdamW(params)), params, steps=1) == [expected]


def test_the_closure_need_not_zero_the_gradient_between_the_passes() -> None:
    ours, theirs = model(), model()
    optimizer, expected = SAM(descend.SGD(ours, lr=0.05), rho=0.3), SAM(descend.SGD(theirs, lr=0.05), rho=0.3)

    def closure() -> Tensor:
        loss = loss_of(ours, 0)
        loss.backward()
        return loss

    optimizer.step(closure)
    train(expected, theirs, steps=1)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.complex64))
def test_parameters_come_back_exactly(dtype: torch.dtype) -> None:
    params = model(dtype)
    before = [p.detach().clone() for p in params]
    optimizer = SAM(descend.SGD(params, lr=0.0), rho=0.3)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.first_step()
    assert not any(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    optimizer.second_step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_one_norm_over_several_dtypes() -> None:
    params = [nn.Parameter(torch.ones(4, dtype=dtype)) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = SAM(descend.SGD(params, lr=0.0), rho=1.2)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.first_step()
    for p in params:
        torch.testing.assert_close(p.double() - 1, torch.full((4,), 1.2 / 12**0.5).double(), rtol=1e-2, atol=0.0)


def test_a_closure_that_raises_in_the_second_pass_leaves_the_parameters() -> None:
    params = model()
    optimizer = SAM(descend.AdamW(params), rho=0.3)
    before = [p.detach().clone() for p in params]
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ArithmeticError("no loss today")
        loss = loss_of(params, 0)
        loss.backward()
        return loss

    with pytest.raises(ArithmeticError):
        optimizer.step(closure)
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    train(optimizer, params, steps=1)


def test_gradients_may_be_missing_in_either_pass() -> None:
    params = model()
    optimizer = SAM(descend.AdamW(params), rho=0.3)
    optimizer.first_step()
    optimizer.second_step()
    before = [p.detach().clone() for p in params]
    loss_of(params[:1], 0).backward()
    optimizer.first_step(zero_grad=True)
    assert torch.equal(params[1], before[1])
    loss_of(params[1:2], 0).backward()
    optimizer.second_step()
    moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
    assert moved == [False, True, False]


@pytest.mark.parametrize(
    "calls, message",
    (
        (("step",), "without first_step"),
        (("second_step",), "before first_step"),
        (("first_step", "first_step"), "twice"),
        (("first_step", "closure"), "after first_step"),
    ),
)
def test_passes_out_of_order_say_what_to_do(calls: tuple[str, ...], message: str) -> None:
    params = model()
    optimizer = SAM(descend.AdamW(params))
    loss_of(params, 0).backward()
    *before, last = calls
    for call in before:
        getattr(optimizer, call)()
    arguments = [closure_of(optimizer, params, 0)] if last == "closure" else []
    with pytest.raises(RuntimeError, match=message):
        getattr(optimizer, "step" if last == "closure" else last)(*arguments)


# -------------------------------------------------------------------------------- mixed precision


@every_base
@pytest.mark.parametrize("clips", (False, True))
def test_grad_scaler_changes_nothing(base: Callable[..., Any], clips: bool) -> None:
    ours, theirs = model(), model()
    optimizer, expected = SAM(base(ours), rho=0.3), SAM(base(theirs), rho=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(4):
        scaler.scale(loss_of(ours, step)).backward()
        optimizer.first_step(zero_grad=True)
        scaler.scale(loss_of(ours, step)).backward()
        if clips:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(ours, 1e9)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    train(expected, theirs)
    assert_close(ours, theirs)


@pytest.mark.parametrize("overflows_in", ("first", "second", "both"))
def test_an_overflow_leaves_the_parameters_and_the_state(overflows_in: str) -> None:
    params = model(torch.float32)
    optimizer = SAM(descend.AdamW(params), rho=0.3)
    train(optimizer, params, steps=1)
    optimizer.zero_grad()
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for passage in ("first", "second"):
        scaler.scale(loss_of(params, 1)).backward()
        if overflows_in in (passage, "both"):
            params[1].grad[0] = torch.inf
        if passage == "first":
            optimizer.first_step(zero_grad=True)
            assert all(torch.isfinite(p).all() for p in params)
    scaler.step(optimizer)
    scaler.update()
    if overflows_in == "first":  # The second gradient, at the parameters themselves, is as good as any.
        assert all(torch.isfinite(p).all() and not torch.equal(p, b) for p, b in zip(params, before, strict=True))
        return
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][name], value) for i in state for name, value in state[i].items())
    assert scaler.get_scale() == 2.0
    optimizer.zero_grad()
    train(optimizer, params, steps=1)


# -------------------------------------------------------------------------------- an optimizer like any other


@every_base
def test_shares_groups_and_state_with_the_base(base: Callable[..., Any]) -> None:
    params = model()
    inner = base(params)
    optimizer = SAM(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(optimizer, params, steps=1)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert not any(isinstance(key, str) and "sam" in key for s in optimizer.state.values() for key in s)
    inner.load_state_dict(inner.state_dict())
    train(optimizer, params, steps=1)
    assert optimizer.state is inner.state


@pytest.mark.capability("resume", optimizer="SAM")
@every_base
@pytest.mark.parametrize("how", ("state_dict", "file", "base", "deepcopy", "pickle"))
def test_goes_on_after_a_copy_as_if_there_had_been_none(base: Callable[..., Any], how: str) -> None:
    ours, theirs = model(), model()
    optimizer, expected = SAM(base(ours), rho=0.3), SAM(base(theirs), rho=0.3)
    train(optimizer, ours, 2)
    train(expected, theirs, 4)
    if how in ("deepcopy", "pickle"):
        again = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        copies = [p for group in again.param_groups for p in group["params"]]
        assert again.base_optimizer.param_groups is again.param_groups
    else:
        saved = (optimizer.base_optimizer if how == "base" else optimizer).state_dict()
        if how == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        copies = [nn.Parameter(p.detach().clone()) for p in ours]
        again = SAM(base(copies), rho=0.9)
        again.load_state_dict(state_dict=saved)
        assert again.param_groups[0]["sam_rho"] == 0.3
    train(again, copies, 2, start=2)
    assert all(torch.equal(p, q) for p, q in zip(copies, theirs, strict=True))


def test_a_copy_between_the_passes_comes_back_too() -> None:
    params = model()
    optimizer = SAM(descend.AdamW(params), rho=0.3)
    loss_of(params, 0).backward()
    optimizer.first_step()
    again = copy.deepcopy(optimizer)
    copies = [p for group in again.param_groups for p in group["params"]]
    for p, q in zip(params, copies, strict=True):
        q.grad = p.grad
    optimizer.second_step()
    again.second_step()
    assert all(torch.equal(p, q) for p, q in zip(params, copies, strict=True))


def test_a_checkpoint_of_the_base_alone_keeps_our_rho() -> None:
    for base in (descend.AdamW, torch.optim.AdamW):
        alone = base(model())
        optimizer = SAM(base(model()), rho=0.3, adaptive=True)
        optimizer.load_state_dict(alone.state_dict())
        assert (optimizer.param_groups[0]["sam_rho"], optimizer.param_groups[0]["sam_adaptive"]) == (0.3, True)


def test_groups_may_be_added_later() -> None:
    first, later = model(), model()
    optimizer = SAM(descend.AdamW(first), rho=0.3)
    train(optimizer, first, 1)
    optimizer.add_param_group({"params": later, "sam_rho": 0.1})
    before = [p.detach().clone() for p in later]
    train(optimizer, [*first, *later], 1)
    assert [group["sam_rho"] for group in optimizer.param_groups] == [0.3, 0.1]
    assert not any(torch.equal(p, b) for p, b in zip(later, before, strict=True))


def test_takes_named_parameters() -> None:
    layer = nn.Linear(2, 2)
    optimizer = SAM(descend.AdamW(layer.named_parameters()))
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@every_base
def test_schedulers_and_hooks_see_one_optimizer(base: Callable[..., Any]) -> None:
    params = model()
    optimizer = SAM(base(params))
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "extra": 7})
    optimizer.register_load_state_dict_pre_hook(lambda _, given: {k: v for k, v in given.items() if k != "extra"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        lr = scheduler.get_last_lr()[0]
        for step in range(2):
            train(optimizer, params, 1, step)
            scheduler.step()
        loss_of(params, 2).backward()
        optimizer.first_step(zero_grad=True)
        loss_of(params, 2).backward()
        optimizer.second_step()
        scheduler.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == pytest.approx(lr / 4)
    assert calls == ["pre", "post"] * 3
    assert optimizer.state_dict()["extra"] == 7
    optimizer.load_state_dict(optimizer.state_dict())


def test_one_cycle_finds_the_momentum() -> None:
    optimizer = SAM(descend.AdamW(model()))
    OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.95)


def test_a_step_without_gradients_to_speak_of_is_the_base_s() -> None:
    """Distributed checkpoints make the state by such a step."""
    params = model()
    optimizer = SAM(descend.AdamW(params, lr=0.0))
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step(closure=None)
    assert all(optimizer.state[p] for p in params)


@pytest.mark.parametrize("options", ({"rho": -0.1}, {"rho": float("inf")}, {"rho": "wide"}, {"adaptive": "yes"}))
def test_bad_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SAM(descend.AdamW(model()), **options)
    inner = descend.AdamW(model())
    with pytest.raises(ValueError, match=next(iter(options))):
        SAM(inner).add_param_group({"params": model(), **{f"sam_{name}": value for name, value in options.items()}})
    assert len(inner.param_groups) == 1


def test_wants_an_optimizer() -> None:
    with pytest.raises(TypeError, match=r"base_optimizer is a list.*torch\.optim\.Optimizer"):
        SAM(model())


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.first_step()
    assert torch.equal(embedding.weight, before)
