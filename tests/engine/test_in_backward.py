"""Parameters that move inside backward end where ordinary steps end, bit by bit."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small
from helpers.cases import ROWS, Row

SHAPES = ((5,), (1, 7), (6, 4), (18, 17), (4, 3, 3, 3))
every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


class Model(nn.Module):
    """Parameters whose gradients are given numbers."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weights = nn.ParameterList(small.parameters(dtype, SHAPES))

    def loss(self, step: int) -> Tensor:
        terms = [(small.noise(p.shape, p.dtype, step, i) * p).sum() for i, p in enumerate(self.weights)]
        return sum(term.double() for term in terms)


def train(model: Model, optimizer: Any, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        model.loss(step).backward()
        optimizer.step()
        optimizer.zero_grad()


def in_backward(row: Row, model: Model, **options: Any) -> Any:
    made = {**small.busiest(row.name), **small.alone(row), **options}
    return descend.step_in_backward(model, lambda params: small.make(row, params, **made))


def possible(row: Row) -> None:
    """Skip where the rule needs all gradients, or their graph; that this is said is a test of its own."""
    if row.name in small.SHARED or row.name == "Adahessian":
        pytest.skip(f"{row.name}: needs all gradients at once, or their graph; step_in_backward refuses it")


@pytest.mark.capability("in backward")
@every_row
def test_ends_where_ordinary_steps_end(row: Row) -> None:
    possible(row)
    usual, early = Model(), Model()
    options = {**small.busiest(row.name), **small.alone(row)}
    optimizers = small.make(row, usual.named_parameters(), **options), in_backward(row, early)
    for model, optimizer in zip((usual, early), optimizers, strict=True):
        train(model, optimizer, 3)
    assert small.same(small.values(optimizers[0]), small.values(optimizers[1]))
    assert small.same_states(small.states(optimizers[0]), small.states(optimizers[1]))
    assert all(p.grad is None for p in early.parameters())


@every_row
def test_resumes_from_a_file(row: Row) -> None:
    possible(row)
    whole, first = Model(torch.bfloat16), Model(torch.bfloat16)
    optimizer = in_backward(row, whole, state_dtype="int8")
    train(whole, optimizer, 4)
    saved = in_backward(row, first, state_dtype="int8")
    train(first, saved, 2)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": saved.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    second = Model(torch.bfloat16)
    again = in_backward(row, second, state_dtype="int8")
    second.load_state_dict(loaded["model"])
    again.load_state_dict(loaded["optimizer"])
    train(second, again, 2, 2)
    assert small.same(small.values(optimizer), small.values(again))
    assert small.same_states(small.states(optimizer), small.states(again))


def test_only_one_gradient_is_there_at_a_time() -> None:
    model = Model()
    there: list[int] = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: there.append(sum(q.grad is not None for q in model.parameters()))
        )
    optimizer = descend.step_in_backward(model, descend.AdamW)
    train(model, optimizer, 2)
    assert there == [1] * 2 * len(SHAPES)


def test_schedulers_and_hooks() -> None:
    seen, ends = [], []
    for early in (False, True):
        model = Model()
        made = descend.SGD(model.parameters(), lr=0.1)
        optimizer = descend.step_in_backward(model, lambda params: descend.SGD(params, lr=0.1)) if early else made
        optimizer.register_step_post_hook(lambda *_: seen.append(True))
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for step in range(3):
            train(model, optimizer, 1, step)
            scheduler.step()
        ends.append(small.values(optimizer))
    assert len(seen) == 6
    assert small.same(*ends)


def test_weights_that_thaw_move_in_step_and_copies_move_all_there() -> None:
    usual, early = Model(), Model()
    for model in (usual, early):
        model.weights[0].requires_grad_(False)
    optimizers = descend.AdamW(usual.parameters()), descend.step_in_backward(early, descend.AdamW)
    for model, optimizer in zip((usual, early), optimizers, strict=True):
        train(model, optimizer, 1)
        model.weights[0].requires_grad_(True)
        train(model, optimizer, 2, 1)
    assert small.same(*map(small.values, optimizers))
    model, optimizer = copy.deepcopy((early, optimizers[1]))
    train(model, optimizer, 1, 3)
    train(usual, optimizers[0], 1, 3)
    assert small.same(small.values(optimizer), small.values(optimizers[0]))


def test_a_second_backward_is_refused_before_anything_moves() -> None:
    model = Model()
    optimizer = descend.step_in_backward(model, descend.AdamW)
    model.loss(0).backward()
    before = small.values(optimizer)
    with pytest.raises(RuntimeError, match="second backward pass before optimizer.step.*gradient_accumulation_steps=1"):
        model.loss(1).backward()
    assert small.same(before, small.values(optimizer))


def test_what_needs_all_gradients_is_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match="Lamb needs the gradients of all parameters.*max_grad_norm=None"):
        descend.step_in_backward(model, descend.Lamb)
    with pytest.raises(ValueError, match="Prodigy needs the gradients of all parameters"):
        descend.step_in_backward(model, descend.Prodigy)
    with pytest.raises(ValueError, match="Adahessian differentiates the gradients"):
        descend.step_in_backward(model, descend.Adahessian)
    with pytest.raises(TypeError, match="made a Lookahead, expected an optimizer of descend that wraps no other"):
        descend.step_in_backward(model, lambda params: descend.Lookahead(descend.AdamW(params)))  # type: ignore[type-var]
    with pytest.raises(TypeError, match="made a SGD"):
        descend.step_in_backward(model, torch.optim.SGD)  # type: ignore[type-var]


def test_guards_hold_in_backward_too() -> None:
    model = Model()
    with pytest.raises(ValueError, match="skip_nonfinite=True needs all gradients"):
        descend.step_in_backward(model, lambda params: descend.AdamW(params, skip_nonfinite=True))
    optimizer = descend.step_in_backward(model, descend.ScheduleFreeAdamW)
    train(model, optimizer, 1)
    optimizer.eval()
    with pytest.raises(RuntimeError, match="after eval"):
        model.loss(1).backward()


def test_compensation_outlives_evaluations_in_between() -> None:
    ends = []
    for early in (False, True):
        model = Model(torch.bfloat16)
        optimizer: Any = (
            descend.step_in_backward(model, descend.ScheduleFreeAdamW)
            if early
            else descend.ScheduleFreeAdamW(model.parameters())
        )
        for step in range(3):
            train(model, optimizer, 1, step)
            optimizer.eval()
            optimizer.train()
        ends.append((small.values(optimizer), small.states(optimizer)))
    assert small.same(ends[0][0], ends[1][0])
    assert small.same_states(ends[0][1], ends[1][1])


def test_a_scaler_is_refused() -> None:
    model = Model(torch.float32)
    optimizer = descend.step_in_backward(model, descend.AdamW)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model.loss(0)).backward()
    with pytest.raises(RuntimeError, match="gradients that a GradScaler scaled"):
        scaler.step(optimizer)
