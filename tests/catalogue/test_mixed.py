"""Several rules in one optimizer are what separate optimizers are, bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small

EXECUTORS = ({"foreach": False}, {"foreach": True}, {"fused": True})
every_executor = pytest.mark.parametrize("executor", EXECUTORS, ids=("loop", "foreach", "fused"))
SHAPES = ((6, 4), (18, 17), (5,), (4, 3, 3, 3), (16, 32))
#: For each group a rule, its options, and the places of its parameters.
PARTS: tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...] = (
    ("muon", {"lr": 0.02, "weight_decay": 0.1}, (0, 1)),
    ("lamb", {"lr": 0.01}, (2,)),
    ("lion", {"lr": 1e-3, "betas": (0.9, 0.98)}, (3,)),
    ("nadam", {"lr": 3e-3}, (4,)),
)
MIXTURES: dict[str, tuple[tuple[str, dict[str, Any], tuple[int, ...]], ...]] = {
    "muon lamb lion nadam": PARTS,
    "adafactor prodigy": (("adafactorbv", {"lr": 1e-2}, (0, 1, 3)), ("prodigy", {}, (2, 4))),
    "soap sgd": (("soap", {"lr": 3e-3}, (0, 1, 4)), ("sgd", {"lr": 0.1}, (2, 3))),
    "kron scion adamw": (
        ("kron", {"lr": 1e-3}, (0, 1)),
        ("scion", {"lr": 1e-2}, (3,)),
        ("adamw", {"lr": 1e-3}, (2, 4)),
    ),
    "schedule-free lars": (("schedulefreeadamw", {"lr": 1e-2}, (0, 2)), ("lars", {"lr": 0.1}, (1, 3, 4))),
}
every_mixture = pytest.mark.parametrize("parts", MIXTURES.values(), ids=list(MIXTURES))


def groups(params: list[nn.Parameter], parts: Any) -> list[dict[str, Any]]:
    return [{"params": [params[i] for i in places], "rule": rule, **options} for rule, options, places in parts]


def mixture(params: list[nn.Parameter], parts: Any, **common: Any) -> descend.Mixed:
    return descend.Mixed(groups(params, parts), **common)


def separate(params: list[nn.Parameter], parts: Any, **common: Any) -> list[torch.optim.Optimizer]:
    return [
        descend.get_optimizer_class(rule)([params[i] for i in places], **momentum(rule), **options, **common)
        for rule, options, places in parts
    ]


def momentum(rule: str) -> dict[str, float]:
    """The factory's own, for the names that take it."""
    return {"momentum": 0.9} if descend.get_optimizer_info(rule).has_momentum else {}


def train(optimizers: list[Any], params: list[nn.Parameter], steps: int = 3, start: int = 0) -> None:
    for step in range(start, start + steps):
        small.set_gradients(params, step)
        for optimizer in optimizers:
            optimizer.step()


def states(params: list[nn.Parameter], optimizers: list[Any]) -> list[dict[str, Any]]:
    return [next(o.state[p] for o in optimizers if p in o.state) for p in params]


def check(ours: tuple[list[nn.Parameter], list[Any]], theirs: tuple[list[nn.Parameter], list[Any]]) -> None:
    for p, q in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(p, q)
    for a, b in zip(states(*ours), states(*theirs), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@every_executor
@every_mixture
@pytest.mark.parametrize(
    ("dtype", "options"),
    (
        (torch.float32, {}),
        (torch.float64, {}),
        (torch.bfloat16, {"master": "kahan"}),
        (torch.float32, {"state_dtype": "int8"}),
    ),
    ids=("float32", "float64", "kahan", "int8"),
)
def test_a_mixture_is_separate_optimizers(
    parts: Any, executor: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    if executor.get("fused") and (options or dtype == torch.float64):
        pytest.skip("one dtype is compiled for here; the kernels are those of the separate optimizers")
    found = []
    for make in (lambda *a, **k: [mixture(*a, **k)], separate):
        params = small.parameters(dtype, SHAPES)
        optimizers = make(params, parts, **executor, **options)
        train(optimizers, params)
        found.append((params, optimizers))
    check(*found)


@every_mixture
@pytest.mark.parametrize("state_dtype", (None, "int4"))
def test_resume_is_exact_and_plain(parts: Any, state_dtype: str | None) -> None:
    """4-bit numbers are rounded by their parameter's place, so that separate optimizers have other bits."""
    whole, first = small.parameters(torch.float32, SHAPES), small.parameters(torch.float32, SHAPES)
    through, half = (mixture(params, parts, state_dtype=state_dtype) for params in (whole, first))
    train([through], whole, 4)
    train([half], first, 2)
    buffer = io.BytesIO()
    torch.save(half.state_dict(), buffer)
    buffer.seek(0)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    again = mixture(second, parts, state_dtype=state_dtype)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    train([again], second, 2, 2)
    check((second, [again]), (whole, [through]))


def test_copies_and_pickles_go_on() -> None:
    params = small.parameters(torch.float32, SHAPES)
    optimizer = mixture(params, PARTS)
    train([optimizer], params, 2)
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        others = small.parameters_of(copied)
        train([copied], others, 2, 2)  # type: ignore[arg-type]
    train([optimizer], params, 2, 2)
    mine = [params[i] for _, _, places in PARTS for i in places]
    assert all(torch.equal(p, q) for p, q in zip(mine, others, strict=True))


def test_steps_inside_backward() -> None:
    ends = []
    for early in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))

        def make(named: Any) -> descend.Mixed:
            named = list(named)
            return descend.Mixed(
                [
                    {"params": [p for n, p in named if p.dim() > 1], "rule": "muon"},
                    {"params": [p for n, p in named if p.dim() == 1], "rule": "lion", "lr": 1e-3},
                ]
            )

        optimizer: Any = descend.step_in_backward(model, make) if early else make(model.named_parameters())
        for step in range(3):
            model(small.noise((4, 16), torch.float32, step, 0)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


def test_schedules_and_late_groups() -> None:
    params = small.parameters(torch.float32, SHAPES)
    optimizer = mixture(params[:4], PARTS[:3])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train([optimizer], params[:4], 1)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.005, 5e-4]
    optimizer.add_param_group({"params": params[4:], "rule": descend.NAdam, "lr": 1e-3})
    train([optimizer], params, 1, 1)
    assert [row.rule for row in descend.param_groups_table(optimizer)] == ["Muon", "Muon", "Lamb", "Lion", "NAdam"]


def test_groups_of_one_rule_share_its_sums() -> None:
    ends = []
    for several in (True, False):
        params = small.parameters(torch.float32, SHAPES)
        halves = [{"params": params[:2]}, {"params": params[2:], "lr": 3e-3}]
        optimizer: Any = (
            descend.Mixed([{**half, "rule": "lamb"} for half in halves], lr=1e-2)
            if several
            else descend.Lamb(halves, lr=1e-2)
        )
        train([optimizer], params)
        ends.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("group", "error", "message"),
    (
        ({}, ValueError, "group 0 names no rule"),
        ({"rule": "adamww"}, ValueError, "there is no optimizer 'adamww'; did you mean 'adamw'"),
        ({"rule": torch.optim.SGD}, ValueError, "expected a name such as 'adamw', or an optimizer class of descend"),
        ({"rule": "adamw", "betas": (0.9, 2.0)}, ValueError, r"AdamW: betas\[1\]=2.0"),
        ({"rule": "adamw", "weigth_decay": 0.1}, ValueError, "did you mean 'weight_decay'"),
        ({"rule": "soap", "capturable": True}, ValueError, "SOAP: capturable=True is not possible"),
    ),
)
def test_bad_groups_are_refused_by_name(group: dict[str, Any], error: type[Exception], message: str) -> None:
    params = [nn.Parameter(torch.ones(8, 8))]
    with pytest.raises(error, match=message):
        descend.Mixed([{"params": params, **group}])


def test_an_option_that_a_rule_does_not_have() -> None:
    params = small.parameters(torch.float32, SHAPES)
    with pytest.raises(TypeError, match="SGD has no option 'betas'"):
        descend.Mixed([{"params": params, "rule": "sgd"}], betas=(0.9, 0.99))


def test_a_parameter_of_two_groups_is_named() -> None:
    p = nn.Parameter(torch.ones(8, 8))
    with pytest.raises(ValueError, match=r"parameter 'w' of group 1 is in group 0 too"):
        descend.Mixed([{"params": [("w", p)], "rule": "muon"}, {"params": [("w", p)], "rule": "adamw"}])


def test_a_checkpoint_of_other_rules_is_refused_before_anything_changes() -> None:
    params, others = small.parameters(torch.float32, SHAPES), small.parameters(torch.float32, SHAPES)
    saved = mixture(params, PARTS)
    train([saved], params, 1)
    optimizer = mixture(others, (("adamw", {}, (0, 1)), *PARTS[1:]))
    train([optimizer], others, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="group 0 of the state_dict is moved by 'muon', expected 'adamw'"):
        optimizer.load_state_dict(saved.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(
        torch.equal(value, after["state"][i][name])
        for i, state in before["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    )


# ------------------------------------------------------------------------------------------------ fallbacks

OTHERS = {"lion": descend.Lion, "sgd": descend.SGD, "adopt": descend.Adopt, "lamb": descend.Lamb}


@every_executor
@pytest.mark.parametrize("fallback", OTHERS)
@pytest.mark.parametrize("matrices", ("Muon", "NorMuon", "Dion"))
def test_a_fallback_is_that_rule(matrices: str, fallback: str, executor: dict[str, Any]) -> None:
    found = []
    for several in (False, True):
        params = small.parameters(torch.float32, ((18, 17), (5,), (16, 32), (7,)))
        kind = getattr(descend, matrices)
        if several:
            other = OTHERS[fallback]
            optimizers = [
                kind(params[::2], lr=0.01, **executor),
                other(params[1::2], lr=0.003, weight_decay=0.01 if matrices == "Dion" else 0.0, **executor),
            ]
        else:
            options = {"fallback": fallback, "fallback_lr_scale": 0.3}
            optimizers = [kind(params, lr=0.01, **options, **executor)]
        train(optimizers, params)
        found.append((params, optimizers))
    for p, q in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for a, b in zip(states(*found[0]), states(*found[1]), strict=True):
        assert a.keys() == b.keys()


def test_a_fallback_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="there is no rule 'lionn'; did you mean 'lion'"):
        descend.Muon([nn.Parameter(torch.ones(8, 8))], fallback="lionn")
    with pytest.raises(TypeError, match="Lion has no option 'amsgrad'"):
        descend.Muon([nn.Parameter(torch.ones(8, 8))], fallback="lion", fallback_options={"amsgrad": True})
    with pytest.raises(ValueError, match=r"Lion: betas\[0\]=2"):
        descend.Muon([nn.Parameter(torch.ones(8, 8))], fallback="lion", fallback_options={"betas": (2, 0.9)})
    with pytest.raises(ValueError, match="'prodigy' keeps numbers in its parameter groups"):
        descend.Muon([nn.Parameter(torch.ones(8, 8))], fallback="prodigy")
