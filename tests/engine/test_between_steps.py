"""What people do to parameters, gradients and state between two steps, or around one."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import descend
from descend.engine.slots import signed
from descend.terms import accumulate
from helpers import small

EXECUTORS = ({"foreach": False}, {"foreach": True}, {"fused": True})
every_executor = pytest.mark.parametrize("executor", EXECUTORS, ids=("loop", "foreach", "fused"))


def ones(*shape: int) -> nn.Parameter:
    p = nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    return p


@every_executor
def test_state_in_another_dtype_goes_on(executor: dict) -> None:
    p, q = ones(64), ones(64)
    ours, plain = descend.AdamW([p], **executor), descend.AdamW([q])
    for step in range(4):
        if step == 2:
            ours.state[p]["exp_avg"] = ours.state[p]["exp_avg"].bfloat16()
        ours.step()
        plain.step()
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


@every_executor
def test_data_that_is_exchanged_in_place_is_seen(executor: dict) -> None:
    p = ones(64)
    optimizer = descend.AdamW([p], **executor)
    optimizer.step()
    state = optimizer.state[p]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        state[name].data = state[name].data.clone()
    optimizer.step()
    assert state["step"] == 2
    assert torch.allclose(state["exp_avg"], torch.full((64,), 0.19))


@every_executor
def test_a_parameter_may_shrink(executor: dict) -> None:
    p = ones(64)
    whole = p.data
    optimizer = descend.SGD([p], lr=1.0, **executor)
    optimizer.step()
    p.data, p.grad = p.data[:8], torch.ones(8)
    optimizer.step()
    assert torch.equal(whole, torch.cat([-torch.ones(8), torch.zeros(56)]))


def test_memory_with_gaps_is_left_alone_where_fused_comes_later() -> None:
    base = torch.ones(8, 8)
    p = nn.Parameter(base[:, ::2])
    optimizer = descend.SGD([p], lr=1.0)
    p.grad = torch.ones(8, 4)
    optimizer.param_groups[0]["fused"] = True
    optimizer.step()
    assert torch.equal(base, torch.tensor([0.0, 1.0]).repeat(8, 4))


@every_executor
def test_gradients_are_the_users_to_free(executor: dict) -> None:
    p = ones(64)
    optimizer = descend.AdamW([p], **executor)
    for _ in range(3):
        p.grad = torch.ones(64)
        alive = weakref.ref(p.grad)
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        assert alive() is None


@every_executor
def test_two_parameters_may_share_a_gradient_for_a_while(executor: dict) -> None:
    p, q = ones(64), ones(64)
    optimizer = descend.SGD([p, q], lr=1.0, **executor)
    p.grad = q.grad = torch.ones(64)
    optimizer.step()
    p.grad, q.grad = torch.zeros(64), torch.ones(64)
    optimizer.step()
    assert bool((p == 0).all())
    assert bool((q == -1).all())


@every_executor
def test_a_loaded_optimizer_keeps_its_plan_and_lets_the_old_state_go(executor: dict) -> None:
    p = ones(64)
    optimizer = descend.AdamW([p], **executor)
    optimizer.step()
    old = weakref.ref(optimizer.state[p]["exp_avg"])
    saved = {"state": {0: {k: v.clone() for k, v in optimizer.state[p].items()}}}
    optimizer.load_state_dict({**optimizer.state_dict(), **saved})
    jobs = []
    for _ in range(3):
        optimizer.step()
        jobs.append(optimizer._plan.jobs(optimizer)[0])
    assert jobs[1] is jobs[2]
    gc.collect()
    assert old() is None


def test_state_that_is_cleared_is_made_anew() -> None:
    p, q = ones(8), ones(8)
    optimizer, fresh = descend.AdamW([p]), descend.AdamW([q])
    optimizer.step()
    optimizer.state[p].clear()
    with torch.no_grad():
        q.copy_(p)
    optimizer.step()
    fresh.step()
    assert torch.equal(p, q)


def test_an_infinity_is_skipped_where_only_some_groups_are_capturable() -> None:
    p, q = ones(8), ones(8)
    optimizer = descend.AdamW([{"params": [p]}, {"params": [q], "capturable": False}], capturable=True)
    q.grad = torch.full((8,), torch.inf)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert bool((p == 1).all() and (q == 1).all())


@pytest.mark.parametrize("name", ("SOAP", "KLSOAP", "Shampoo", "Kron", "Muon", "AdamMini", "AdamW"))
def test_a_step_inside_autocast_is_the_same(name: str) -> None:
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(20, 18))
        optimizer = getattr(descend, name)([p], lr=0.01)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(3):
                p.grad = p.detach().clone()
                optimizer.step()
        found.append(p.detach())
    assert torch.equal(*found)


class Late(descend.Optimizer):
    """Momentum that is taken from the second step on, as a flag that the step number decides."""

    def __init__(self, params: Any, lr: float = 1.0, **common: Any) -> None:
        super().__init__(params, dict(lr=lr), **common)

    @staticmethod
    def slots(h: Any, p: Any) -> dict:
        return {"momentum_buffer": signed()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict:
        return {"late": t > 1}

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
        return accumulate(s.momentum_buffer, 1.0, g) if k.late else g * 1.0


@every_executor
def test_a_flag_may_depend_on_the_step(executor: dict) -> None:
    p = ones(64)
    optimizer = Late([p], **executor)
    found = []
    for _ in range(3):
        optimizer.step()
        found.append(p[0].item())
    assert found == [0.0, -1.0, -3.0]


class Doubled(descend.AdamW):
    """Someone's rule on top of ours."""

    @staticmethod
    def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
        return 2 * descend.AdamW.direction(p, g, s, k)


@every_executor
def test_a_direction_can_be_multiplied(executor: dict) -> None:
    p, q = ones(64), ones(64)
    doubled, plain = Doubled([p], lr=0.1, weight_decay=0.0, **executor), descend.AdamW([q], lr=0.2, weight_decay=0.0)
    for _ in range(3):
        doubled.step()
        plain.step()
    torch.testing.assert_close(p, q)


def test_a_step_that_is_skipped_keeps_no_gradient() -> None:
    p = nn.Parameter(torch.ones(4))
    optimizer = descend.AdamW([p], skip_nonfinite=True)
    p.grad = torch.full((4,), torch.inf)
    gradient = weakref.ref(p.grad)
    optimizer.step()
    optimizer.zero_grad()
    assert gradient() is None
    assert torch.equal(p, torch.ones(4))


def test_groups_that_come_later_estimate_on_their_own_tensors() -> None:
    ends = []
    for capturable in (False, True):
        params = small.parameters(torch.float32, ((3, 4), (5,)))
        optimizer = descend.Prodigy(params[:1], capturable=capturable)
        small.take_steps(optimizer, 3)
        optimizer.add_param_group({"params": params[1:]})
        small.take_steps(optimizer, 3, 3)
        ends.append([float(optimizer.param_groups[1][name]) for name in ("d", "d_max", "k")])
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)
