"""Hooks of step_in_backward belong to one optimizer, and go with it; a step that fails leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torch.utils.checkpoint import checkpoint

import descend
from helpers import small
from helpers.cases import ROWS, Row

EXECUTORS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
executors = pytest.mark.parametrize("executor", EXECUTORS, ids=["loop", "foreach", "fused"])
KINDS: dict[str, Callable[..., Any]] = {
    "SGD": descend.SGD,
    "AdamW": descend.AdamW,
    "Lion": descend.Lion,
    "ScheduleFreeAdamW": descend.ScheduleFreeAdamW,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss(model: nn.Module) -> Tensor:
    return model(torch.linspace(-1, 1, 6).reshape(2, 3)).square().sum()


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def early(model: nn.Module, kind: str, **options: Any) -> Any:
    return descend.step_in_backward(model, lambda params: KINDS[kind](params, **options))


def train(model: nn.Module, optimizer: Any, steps: int = 2) -> None:
    for _ in range(steps):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()


@kinds
@executors
def test_a_dropped_optimizer_is_freed_and_moves_nothing(kind: str, executor: dict[str, Any]) -> None:
    model = network()
    dropped = early(model, kind, lr=0.1, **executor)
    train(model, dropped)
    gone = weakref.ref(dropped)
    state = weakref.ref(next(iter(dropped.state.values()))["step"])
    del dropped
    gc.collect()
    assert gone() is None
    assert state() is None
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    before = values(model)
    loss(model).backward()
    assert small.same(before, values(model))
    assert all(p.grad is not None for p in model.parameters())


@kinds
@executors
def test_an_optimizer_after_a_dropped_one_is_alone(kind: str, executor: dict[str, Any]) -> None:
    model, twin = network(), network()
    dropped = early(model, kind, lr=0.1, **executor)
    del dropped
    second = early(model, "SGD", lr=0.0)
    before = values(model)
    train(model, second)
    assert small.same(before, values(model))
    del second
    third, usual = KINDS[kind](model.parameters(), **executor), KINDS[kind](twin.parameters(), **executor)
    train(model, third)
    train(twin, usual)
    assert small.same(values(model), values(twin))


def test_the_model_is_freed_with_its_optimizer() -> None:
    model = network()
    optimizer = early(model, "AdamW")
    train(model, optimizer)
    gone = [weakref.ref(p) for p in model.parameters()]
    del model, optimizer
    gc.collect()
    assert not any(p() is not None for p in gone)


def test_a_second_owner_is_refused_by_name() -> None:
    model = network()
    first = early(model, "AdamW")
    with pytest.raises(RuntimeError, match=r"parameter '0.weight' moves in backward already, by another AdamW"):
        early(model, "SGD")
    with pytest.raises(RuntimeError, match=r"parameter '0.weight' moves in backward already, by this AdamW.*remove"):
        descend.step_in_backward(model, lambda _: first)
    with pytest.raises(RuntimeError, match=r"parameter 'weight' moves in backward already"):
        early(model[2], "SGD")
    train(model, first)


@kinds
def test_without_its_hooks_an_optimizer_goes_on_in_step(kind: str) -> None:
    model, twin = network(), network()
    optimizer, usual = early(model, kind), KINDS[kind](twin.named_parameters())
    train(model, optimizer)
    optimizer.remove_backward_hooks()
    optimizer.remove_backward_hooks()
    train(model, optimizer)
    train(twin, usual, 4)
    assert small.same(values(model), values(twin))
    assert small.same_states(small.states(optimizer), small.states(usual))
    early(model, "SGD")


class Fails(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ArithmeticError("in the middle of backward")


@executors
def test_after_an_error_inside_backward_zero_grad_begins_again(executor: dict[str, Any]) -> None:
    model = network()
    optimizer = early(model, "AdamW", **executor)
    failing = nn.Sequential(model[0], model[1])
    with pytest.raises(ArithmeticError):
        model[2](Fails.apply(failing(torch.ones(2, 3)))).sum().backward()
    assert sum(optimizer.state[p]["step"].item() for p in optimizer.state) == 2
    with pytest.raises(RuntimeError, match=r"parameter '2.*After an error inside backward, zero_grad\(\) begins again"):
        loss(model).backward()
    optimizer.zero_grad()
    train(model, optimizer, 1)
    assert [optimizer.state[p]["step"].item() for p in model.parameters()] == [1, 1, 2, 2]


@kinds
@executors
def test_a_refused_gradient_is_not_applied_by_step(kind: str, executor: dict[str, Any]) -> None:
    model, twin = network(), network()
    optimizer, usual = early(model, kind, **executor), early(twin, kind, **executor)
    for net in (model, twin):
        loss(net).backward()
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss(model).backward()
    optimizer.step()
    usual.step()
    assert small.same(values(model), values(twin))
    train(model, optimizer)
    train(twin, usual)
    assert small.same(values(model), values(twin))


def test_a_gradient_at_evaluated_weights_is_not_applied_by_step() -> None:
    model = network()
    optimizer = early(model, "ScheduleFreeAdamW")
    train(model, optimizer)
    before = values(model)
    optimizer.eval()
    with pytest.raises(RuntimeError, match="after eval"):
        loss(model).backward()
    optimizer.train()
    optimizer.step()
    assert all(torch.allclose(p, q) for p, q in zip(values(model), before, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_checkpoints_share(reentrant: bool) -> None:
    shared = nn.Linear(3, 3)
    twin = copy.deepcopy(shared)
    optimizer, usual = early(shared, "SGD", lr=0.1), descend.SGD(twin.parameters(), lr=0.1)
    x = torch.ones(3, requires_grad=True)

    def twice(layer: nn.Module) -> Any:
        inner = checkpoint(layer, x, use_reentrant=reentrant)
        return checkpoint(layer, inner, use_reentrant=reentrant)

    if reentrant:
        with pytest.raises(RuntimeError, match=r"several activation checkpoints share.*use_reentrant=False"):
            twice(shared).sum().backward()
        return
    for layer, each in ((shared, optimizer), (twin, usual)):
        twice(layer).sum().backward()
        each.step()
    assert small.same(values(shared), values(twin))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_have_no_hooks_and_go_on(way: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = early(model, "AdamW")
    train(model, optimizer)
    other, copied = way((model, optimizer))
    train(model, optimizer)
    train(other, copied)
    assert small.same(values(model), values(other))
    early(other, "SGD")


def test_parameters_that_change_places_move_by_their_own_gradients() -> None:
    model, twin = network(), network()
    optimizer, usual = early(model, "AdamW"), descend.AdamW(twin.parameters())
    train(model, optimizer)
    train(twin, usual)
    for each in (optimizer, usual):
        each.state.pop(each.param_groups[0]["params"].pop(0))
        each.param_groups[0].pop("param_names", None)
    before = values(model)
    train(model, optimizer)
    train(twin, usual)
    assert small.same(values(model), values(twin))
    assert [torch.equal(p, q) for p, q in zip(before, values(model), strict=True)] == [True, False, False, False]


def test_a_scaler_and_a_framework_that_clips_read_one_message() -> None:
    optimizer = early(network(), "AdamW")
    with pytest.raises(RuntimeError, match="gradients that a GradScaler scaled.*before they could be clipped"):
        _ = optimizer._step_supports_amp_scaling


@executors
def test_clipping_between_a_scaler_and_a_step(executor: dict[str, Any]) -> None:
    """torch's recipe, unscale_(), clip, step(), ends the same where the step would divide by the scale itself."""
    ends = []
    for scale in (None, 1024.0):
        model = network()
        optimizer = descend.AdamW(model.parameters(), lr=0.1, **executor)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(3):
            scaler.scale(loss(model)).backward()
            scaler.unscale_(optimizer)
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01) > 0.01
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append(values(model))
    assert all(torch.allclose(p, q, rtol=1e-5) for p, q in zip(*ends, strict=True))


# Rules of matrices are warned of, or refused, where they get a vector alone.
ANY, MATRICES = ((), (1,), (5,), (1, 7), (6, 4), (4, 3, 3, 3)), ((6, 4), (18, 17))
OF_MATRICES = ("Muon", "NorMuon", "AdaMuon", "Dion", "SOAP", "KLSOAP", "Shampoo")


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_torch_makes_an_optimizer_for_each_parameter(row: Row) -> None:
    if row.name in small.SHARED or row.name == "Adahessian":
        pytest.skip(f"{row.name}: needs all gradients at once, or their graph")
    shapes = MATRICES if row.name in OF_MATRICES else ANY
    params, twins = small.parameters(shapes=shapes), small.parameters(shapes=shapes)

    def make(given: Any, **options: Any) -> torch.optim.Optimizer:
        return small.make(row, given, **small.alone(row), **options)

    _apply_optimizer_in_backward(make, params, {"foreach": False})
    usual = make(twins, foreach=False)
    for step in range(3):
        for ps in (params, twins):
            sum((small.noise(p.shape, p.dtype, step, i) * p).sum() for i, p in enumerate(ps)).backward()
        usual.step()
        usual.zero_grad()
    assert small.same([p.detach() for p in params], [p.detach() for p in twins])
    assert all(p.grad is None for p in params)
