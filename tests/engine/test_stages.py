"""The stages around a rule follow their papers, in float64, where the rule's direction is plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import descend
from oracles import stages
from oracles.base import Array, Options, State, norm

EXECUTORS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
LR, DECAY, STEPS = 0.05, 0.3, 5
AT_ZERO, LARGE = 6, 7
SHAPES = ((), (0,), (1,), (5,), (4, 3), (3, 2, 2), (2, 3), (50, 60))


def sgd(g: Array, s: State, t: int) -> Array:
    """Heavy ball with a momentum of 0.9."""
    s["m"] = g if t == 1 else 0.9 * s["m"] + g
    return np.asarray(s["m"])


def adam(g: Array, s: State, t: int) -> Array:
    """Adam's direction, both averages free of their bias."""
    s["m"], s["v"] = 0.9 * s.get("m", 0.0) + 0.1 * g, 0.999 * s.get("v", 0.0) + 0.001 * g * g
    return np.asarray(s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8))


def lamb(g: Array, s: State, t: int) -> Array:
    """Adam's direction with the eps of LAMB."""
    s["m"], s["v"] = 0.9 * s.get("m", 0.0) + 0.1 * g, 0.999 * s.get("v", 0.0) + 0.001 * g * g
    return np.asarray(s["m"] / (1 - 0.9**t) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-6))


def lion(g: Array, s: State, t: int) -> Array:
    """The sign of Lion's interpolated momentum."""
    u = np.sign(0.9 * s.get("m", 0.0) + 0.1 * g)
    s["m"] = 0.99 * s.get("m", 0.0) + 0.01 * g
    return np.asarray(u)


def nadam(g: Array, s: State, t: int) -> Array:
    """NAdam's direction (Dozat, 2016), with a momentum that grows to 0.9."""
    now, ahead = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * i)) for i in (t, t + 1))
    s["product"] = s.get("product", 1.0) * now
    s["m"], s["v"] = 0.9 * s.get("m", 0.0) + 0.1 * g, 0.999 * s.get("v", 0.0) + 0.001 * g * g
    m = (1 - now) * g / (1 - s["product"]) + ahead * s["m"] / (1 - s["product"] * ahead)
    return np.asarray(m / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8))


RULES: dict[str, tuple[Callable[..., Array], Options]] = {
    "SGD": (sgd, {"momentum": 0.9}),
    "AdamW": (adam, {"weight_decay": DECAY}),
    "Lion": (lion, {"weight_decay": DECAY}),
    "NAdam": (nadam, {"weight_decay": DECAY, "decoupled_weight_decay": True}),
    "Lamb": (lamb, {"weight_decay": DECAY, "decoupled_decay": True, "max_grad_norm": None}),
}
EACH: tuple[Options, ...] = (
    {}, {"caution": True}, {"grams": True}, {"update_clip": 0.3}, {"centralize_grad": True}, {"adaptive_grad_clip": 0.02},
    {"cautious_weight_decay": True}, {"corrected_weight_decay": True}, {"hyperball": True},
)  # fmt: skip
SEVERAL: tuple[Options, ...] = (
    {"caution": True, "update_clip": 0.3, "adaptive_grad_clip": 0.02, "cautious_weight_decay": True},
    {"centralize_grad": True, "grams": True, "update_clip": 0.3, "corrected_weight_decay": True, "maximize": True},
    {"caution": True, "hyperball": True, "update_clip": 0.3, "maximize": True},
)


def expected(rule: str, h: Options, p: Array, g: Array, s: State, t: int, lr: float) -> Array:
    """The parameter after its t-th step."""
    direction, own = RULES[rule]
    decay = own.get("weight_decay", 0.0)
    g = -g if h.get("maximize") else g
    if "adaptive_grad_clip" in h:
        g = stages.adaptive_gradient_clip(p, g, h["adaptive_grad_clip"])
    if h.get("centralize_grad"):
        g = stages.centralise(g)
    u = direction(g, s, t)
    if h.get("caution"):
        u = stages.cautious(u, g)
    if h.get("grams"):
        u = stages.grams(u, g)
    if "update_clip" in h:
        u = stages.clip_update(u, h["update_clip"])
    if h.get("hyperball"):
        return stages.hyperball(p, u, lr)
    rate = lr * decay * (lr / LR if h.get("corrected_weight_decay") else 1.0)
    p = stages.cautious_decay(p, u, rate) if h.get("cautious_weight_decay") else p * (1 - rate)
    if rule == "Lamb" and norm(p) > 0 and norm(u) > 0:
        u = u * norm(p) / norm(u)
    return p - lr * u


def start() -> list[Array]:
    """Parameters of every kind of shape, one with a unit of zeros, one all zeros."""
    rng = np.random.default_rng(0)
    found = [np.asarray(rng.normal(size=shape)) for shape in SHAPES]
    found[4][1] = 0.0
    found[3][2] = 0.0
    found[AT_ZERO][:] = 0.0
    return found


def gradients(step: int) -> list[Array]:
    """Gradients with zeros, of which few or none agree with what came before."""
    rng = np.random.default_rng(1)
    found = [np.asarray(rng.normal(size=shape) + 0.1) for shape in SHAPES]
    found[4][2] = 0.0
    found[5][:, 0] = 0.0
    if step == 0:
        return [g * 0 if i == 3 else g for i, g in enumerate(found)]
    if step in (1, 3):  # turned around, but too small to turn the momentum
        found = [-1e-3 * g for g in found]
        found[LARGE].flat[:2] *= -1.0
        if step == 3:
            found[2][:], found[AT_ZERO][:] = 0.0, 0.0
    return found


def compare(rule: str, options: Options, executor: str) -> None:
    lrs = [LR, LR, LR / 2, LR / 4, LR]
    ours = [nn.Parameter(torch.tensor(p)) for p in start()]
    before = start()
    made = {**RULES[rule][1], **options, **EXECUTORS[executor]}
    optimizer = getattr(descend, rule)(ours, lr=LR, **made)
    theirs, states = start(), [dict[str, Any]() for _ in SHAPES]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = lrs[step]
        grads = gradients(step)
        for i, (p, g) in enumerate(zip(ours, grads, strict=True)):
            p.grad = torch.tensor(g)
            if g.size:
                theirs[i] = np.asarray(expected(rule, options, theirs[i], g, states[i], step + 1, lrs[step]))
        optimizer.step()
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            if q.size:
                moved = np.abs(q - before[i]).max() or 1.0
                error = np.abs(p.detach().numpy() - q).max() / moved
                assert error < 1e-10, f"shape {SHAPES[i]} (number {i}), step {step}: {error:.1e}"


def possible(rule: str, options: Options) -> bool:
    refused = getattr(descend, rule).refused
    return not any(name in refused for name in options)


def cases() -> list[Any]:
    """Loop and foreach take all; compiled, AdamW takes several stages at once, and all else is slow."""
    found = []
    for executor in EXECUTORS:
        for rule in RULES:
            for options in (*EACH, *SEVERAL):
                if possible(rule, options):
                    quick = executor != "fused" or (rule == "AdamW" and options in SEVERAL)
                    name = f"{executor}-{rule}-" + ("+".join(options) or "none")
                    found.append(
                        pytest.param(rule, options, executor, id=name, marks=() if quick else pytest.mark.slow)
                    )
    return found


@pytest.mark.usefixtures("bundles_of_one")
@pytest.mark.parametrize("rule, options, executor", cases())
def test_stages_match_their_papers(rule: str, options: Options, executor: str) -> None:
    compare(rule, options, executor)


def test_the_problem_has_the_cases_that_it_is_to_have() -> None:
    """Shares of agreement below 1e-3 and at zero, units that are clipped at zero, updates that are clipped."""
    shares, p = [], start()
    for i in (4, LARGE):
        state = {}
        for step in range(STEPS):
            g = gradients(step)[i]
            shares.append(float(np.mean(adam(g, state, step + 1) * g > 0)))
    assert 0.0 in shares
    assert any(0 < share < 1e-3 for share in shares)
    clipped = stages.adaptive_gradient_clip(p[4], gradients(0)[4], 0.02)
    assert math.isclose(norm(clipped[1]), 0.02 * 1e-3)


@pytest.mark.parametrize(
    "options", [{"fused": True, "capturable": True}, {"fused": True}, {"capturable": True}, {}], ids=str
)
def test_a_step_that_a_scaler_skips_carries_nothing_on(options: Options) -> None:
    ends = []
    for skipping in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = descend.NAdam([p], lr=LR, momentum_decay=0.5, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1000, backoff_factor=1 - 1e-9)
        for step in range(4):
            if step == 2 and not skipping:
                continue
            scaler.scale((p * p).sum() * (math.inf if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        ends.append((p.detach().clone(), {name: float(optimizer.state[p][name]) for name in ("step", "mu_product")}))
    assert torch.allclose(ends[0][0], ends[1][0], rtol=1e-6)
    assert ends[0][1] == pytest.approx(ends[1][1])
