"""Bad input: refused before anything is changed, with the argument, the value and what would be right."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.options import COMMON_DEFAULTS
from helpers import small
from helpers.cases import ROWS, Row

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

NAN, INF = math.nan, math.inf
BAD: dict[str, tuple[Any, ...]] = {
    "lr": (-1.0, NAN, INF, -INF, "fast", torch.tensor(-1.0), torch.tensor(NAN), torch.ones(2)),
    "eps": (-1e-8, NAN, INF, "small"),
    "weight_decay": (-0.1, NAN, INF, "much"),
    "momentum": (-0.1, 1.1, NAN, INF),
    "dampening": (-0.1, 1.1, NAN),
    "alpha": (-0.1, 1.1, NAN),
    "rho": (-0.1, 1.1, NAN),
    "betas": ((1.0,), (-0.1,), (NAN,), (1.5,)),
    "update_clip": (0.0, -1.0, NAN),
    "adaptive_grad_clip": (0.0, -1.0, NAN),
    "max_grad_norm": (-1.0, NAN),
    "clip_threshold": (0.0, -1.0, NAN, INF),
    "clipping_threshold": (0.0, -1.0, NAN),
    "caution": ("yes", None),
    "foreach": ("yes",),
    "fused": ("yes",),
    "maximize": ("yes", None),
}


def arguments(row: Row) -> dict[str, inspect.Parameter]:
    """The optimizer's own arguments."""
    parameters = inspect.signature(getattr(descend, row.name)).parameters
    return {name: p for name, p in parameters.items() if name not in ("params", "common")}


def bad_values(row: Row) -> list[tuple[str, Any]]:
    """Every option of this optimizer with each value that it must refuse."""
    optimizer, own = small.make(row, small.parameters()), arguments(row)
    found: list[tuple[str, Any]] = []
    for name, default in optimizer.defaults.items():
        if name in optimizer.refused or (name not in own and name not in COMMON_DEFAULTS):
            continue
        if not name.startswith("betas"):
            numeric = isinstance(default, (int, float)) and not isinstance(default, bool)
            values = BAD.get(name, (NAN, "much") if numeric else ())
            found += [
                (name, value)
                for value in values
                if not (numeric and default > 1 and isinstance(value, float) and value == 1.1)
            ]
        elif default is not None:
            for bad in BAD["betas"]:
                found += [(name, (*default[:i], *bad, *default[i + 1 :])) for i in range(len(default))]
            found += [(name, default[:-1]), (name, (*default, 0.5)), (name, 0.9)]
            found += [(name, None)] if own[name].default is not None else []
    return found


def assert_says(error: BaseException, row: Row, name: str, value: Any) -> None:
    """The message has the optimizer, the argument, the value and what would be right."""
    message = str(error)
    assert message.startswith(row.name), message
    assert re.search(rf"\b{name}\b", message), message
    shown = [str(tuple(value.shape))] if isinstance(value, Tensor) else [repr(v) for v in (value, *_parts(value))]
    shown += [str(value.item())] if isinstance(value, Tensor) and value.numel() == 1 else []
    assert any(text in message for text in shown), message
    assert re.search("expected|must be|needs", message), message


def _parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


@every_row
def test_bad_values_are_refused_by_the_constructor(row: Row) -> None:
    for name, value in bad_values(row):
        with pytest.raises(ValueError) as caught:
            small.make(row, small.parameters(), **{name: value})
        assert_says(caught.value, row, name, value)


@every_row
def test_bad_values_are_refused_in_a_group(row: Row) -> None:
    first, late = small.parameters(), small.parameters()
    optimizer = small.make(row, first)
    before = copy.deepcopy(optimizer.state_dict())
    for name, value in bad_values(row):
        group = {"params": list(late), name: value}
        with pytest.raises(ValueError) as caught:
            small.make(row, [{"params": first}, group])
        assert_says(caught.value, row, name, value)
        with pytest.raises(ValueError) as caught:
            optimizer.add_param_group(group)
        assert_says(caught.value, row, name, value)
        assert set(group) == {"params", name}
    assert str(optimizer.state_dict()) == str(before)
    optimizer.add_param_group({"params": late})
    small.take_steps(optimizer, 1)


@every_row
def test_momentum_of_one_is_refused_where_it_divides(row: Row) -> None:
    if row.name not in ("SGDP", "MADGRAD"):
        return
    with pytest.raises(ValueError, match=rf"{row.name}: momentum=1(\.0)?, expected a number in \[0, 1\)"):
        small.make(row, small.parameters(), momentum=1.0)


@every_row
def test_unknown_options_are_refused_with_the_nearest(row: Row) -> None:
    for wrong, right in (("weigth_decay", "weight_decay"), ("maximise", "maximize"), ("for_each", "foreach")):
        if right in small.make(row, small.parameters()).defaults:
            with pytest.raises(TypeError, match=f"{row.name} has no option '{wrong}'; did you mean .*'{right}'"):
                small.make(row, small.parameters(), **{wrong: 0.1})
    with pytest.raises(TypeError, match=f"{row.name} has no option 'zzz'"):
        small.make(row, small.parameters(), zzz=1)


@every_row
def test_misspelt_group_keys_are_refused_and_the_users_own_stay(row: Row) -> None:
    for wrong, right in (("weigth_decay", "weight_decay"), ("maximise", "maximize"), ("foreahc", "foreach")):
        if right in small.make(row, small.parameters()).defaults:
            with pytest.raises(ValueError, match=f"{row.name}: .*'{wrong}'.*did you mean '{right}'"):
                small.make(row, [{"params": small.parameters(), wrong: 0.1}])
    own = {
        "name": "all", "lr_scale": 0.5, "layer_scale": 1.0, "initial_lr": 0.1, "swa_lr": 0.1, "group_name": "x",
        "wd_mult": 1.0, "lr_mult": 2.0, "is_bias": False, "tag": ["a", "b"],
    }  # fmt: skip
    optimizer = small.make(row, [{"params": small.parameters(), **own}])
    small.take_steps(optimizer, 1)
    group = optimizer.state_dict()["param_groups"][0]
    assert {name: group[name] for name in own} == own


# -------------------------------------------------------------------------------- parameters


@every_row
def test_no_parameters_at_all_are_refused(row: Row) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        small.make(row, [])


@every_row
def test_a_parameter_in_two_groups_is_refused(row: Row) -> None:
    p, q = (nn.Parameter(torch.ones(6, 4)) for _ in range(2))
    with pytest.raises(ValueError, match="more than one parameter group"):
        small.make(row, [{"params": [p]}, {"params": [q, p]}])
    optimizer = small.make(row, [p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [q, p]})
    assert len(optimizer.param_groups) == 1


@every_row
def test_a_parameter_twice_in_one_group_warns_as_in_torch(row: Row) -> None:
    p = nn.Parameter(torch.ones(6, 4))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        small.make(row, [p, p])


@every_row
@pytest.mark.parametrize("names", (False, True), ids=("position", "name"))
def test_what_cannot_be_optimized_is_refused_by_name(row: Row, names: bool) -> None:
    good = nn.Parameter(torch.ones(6, 4))
    shown = "layer.weight" if names else "1"
    wrong: dict[str, Any] = {
        "leaf": good * 2,
        "torch.int64": torch.ones(3, dtype=torch.int64),
        "torch.bool": torch.ones(3, dtype=torch.bool),
        "sparse": torch.ones(3, 3).to_sparse().requires_grad_(),
    }
    optimizer = small.make(row, [("first", good)] if names else [good])
    for why, bad in wrong.items():
        other = nn.Parameter(torch.ones(6, 4))
        group = [("other", other), ("layer.weight", bad)] if names else [other, bad]
        with pytest.raises(ValueError, match=rf"{row.name}: parameter {re.escape(shown)} .*{why}.*expected"):
            small.make(row, group)
        with pytest.raises(ValueError, match=rf"{row.name}: parameter {re.escape(shown)} .*{why}.*expected"):
            optimizer.add_param_group({"params": group})
        assert len(optimizer.param_groups) == 1


@every_row
def test_what_is_no_tensor_is_refused(row: Row) -> None:
    for bad in (["weight"], [3.0], [[torch.ones(2)]]):
        with pytest.raises(TypeError):
            small.make(row, bad)
    with pytest.raises(TypeError):
        small.make(row, torch.ones(3, requires_grad=True))


@every_row
def test_sparse_gradients_are_refused_before_anything_is_changed(row: Row) -> None:
    params = small.parameters(shapes=((5,), (6, 4)))
    optimizer = small.busy(row, [("bias", params[0]), ("embedding", params[1])])
    small.take_steps(optimizer, 1)
    before, state = small.values(optimizer), small.states(optimizer)
    small.set_gradients(params, 1, small.is_curved(optimizer))
    params[1].grad = params[1].grad.detach().to_sparse()
    with pytest.raises(RuntimeError, match=f"{row.name}: the gradient of parameter 'embedding' is sparse.*dense"):
        optimizer.step()
    assert small.same(small.values(optimizer), before)
    assert small.same_states(small.states(optimizer), state)


@every_row
def test_a_sparse_gradient_at_first_makes_no_state(row: Row) -> None:
    params = small.parameters(shapes=((5,), (6, 4)))
    optimizer = small.busy(row, params)
    small.set_gradients(params, 0, small.is_curved(optimizer))
    params[1].grad = params[1].grad.detach().to_sparse()
    with pytest.raises(RuntimeError, match=f"{row.name}: the gradient of parameter 1 of group 0 is sparse"):
        optimizer.step()
    assert not any(optimizer.state.values())


# -------------------------------------------------------------------------------- checkpoints


def refuses(optimizer: torch.optim.Optimizer, saved: dict[str, Any], match: str) -> None:
    before, groups, state = small.values(optimizer), str(optimizer.param_groups), small.states(optimizer)
    given = str(saved)
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(saved)
    assert small.same(small.values(optimizer), before)
    assert small.same_states(small.states(optimizer), state)
    assert str(optimizer.param_groups) == groups
    assert str(saved) == given


@every_row
def test_a_checkpoint_of_other_shapes_is_refused(row: Row) -> None:
    optimizer = small.busy(row, small.parameters(shapes=((5,), (20, 18))))
    small.take_steps(optimizer, 2)
    other = small.busy(row, small.parameters(shapes=((5,), (24, 21))))
    small.take_steps(other, 2)
    refuses(optimizer, other.state_dict(), rf"{row.name}: state '\w+' has shape \(.*\), expected \(.*20, 18")
    for shapes in (((20, 18),), ((5,), (20, 18), (2,))):
        other = small.busy(row, small.parameters(shapes=shapes))
        small.take_steps(other, 2)
        refuses(optimizer, other.state_dict(), rf"{row.name}: .* {len(shapes)} parameters, expected 2")
    p, q = small.parameters(shapes=((5,), (20, 18)))
    other = small.busy(row, [{"params": [p]}, {"params": [q]}])
    refuses(optimizer, other.state_dict(), rf"{row.name}: .* 2 parameter groups, expected 1")


@functools.cache
def saved_by(name: str) -> dict[str, Any]:
    row = next(row for row in ROWS if row.name == name)
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 1)
    return optimizer.state_dict()


@every_row
def test_a_checkpoint_of_another_optimizer_is_refused(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 2)
    others = [other.name for other in ROWS if other.name != row.name]
    refuses(optimizer, saved_by(others[0]), f"{row.name}: .*{others[0]}")
    for name in others:
        with pytest.raises(ValueError, match=f"{row.name}: .*{name}"):
            optimizer.load_state_dict(saved_by(name))


@every_row
def test_torchs_checkpoint_of_another_optimizer_is_refused(row: Row) -> None:
    """torch writes no name into it; state that this optimizer has no place for gives it away."""
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 1)
    for other in (torch.optim.Adadelta, torch.optim.Rprop, torch.optim.ASGD):
        if other.__name__ != row.name:
            theirs = other(small.parameters())
            small.take_steps(theirs, 1)
            refuses(optimizer, theirs.state_dict(), rf"{row.name}: .*state '\w+'.*keeps")


@every_row
def test_a_checkpoint_of_a_later_format_is_refused(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    saved = optimizer.state_dict()
    refuses(optimizer, {**saved, "descend_format": 99}, f"{row.name}: .*format 99.*up to 1")


# -------------------------------------------------------------------------------- options together


@every_row
def test_two_executors_at_once_are_refused(row: Row) -> None:
    with pytest.raises(ValueError, match=f"{row.name}: foreach=True and fused=True"):
        small.make(row, small.parameters(), foreach=True, fused=True)


@every_row
def test_options_that_cannot_be_honoured_say_why(row: Row) -> None:
    rule = getattr(descend, row.name)
    for option, reason in rule.refused.items():
        with pytest.raises(ValueError, match=f"{row.name}: {option}=.* is not possible: {re.escape(reason)}"):
            small.make(row, small.parameters(), **{option: 0.1 if option.endswith("clip") else True})


@every_row
def test_constructing_warns_of_nothing(row: Row) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.take_steps(small.busy(row, small.parameters()), 1)


def test_corrected_decay_needs_an_lr_to_refer_to() -> None:
    for lr in (0.0, torch.tensor(0.0)):
        with pytest.raises(ValueError, match="AdamW: lr=.*corrected_weight_decay needs a positive lr"):
            descend.AdamW(small.parameters(), lr=lr, corrected_weight_decay=True)


def test_adahessian_without_a_graph_says_what_to_call() -> None:
    params = small.parameters()
    optimizer = descend.Adahessian(params)
    small.set_gradients(params, 0)
    before = small.values(optimizer)
    with pytest.raises(RuntimeError, match=r"Adahessian: .*backward\(create_graph=True\)"):
        optimizer.step()
    assert small.same(small.values(optimizer), before)
    assert all(s["step"] == 0 for s in small.states(optimizer) if s)


def test_the_parameters_of_a_group_are_not_consumed_by_a_refusal() -> None:
    group: dict[str, Any] = {"params": (p for p in small.parameters()), "betas": (0.9, 2.0)}
    with pytest.raises(ValueError, match="betas"):
        descend.AdamW([group])
    del group["betas"]
    assert len(descend.AdamW([group]).param_groups[0]["params"]) == len(small.SHAPES)
