"""What load_state_dict takes: names that match or do not, options, steps in any form; and how it refuses."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import descend
from descend.engine.options import EXECUTION_DEFAULTS
from helpers import small
from helpers.cases import Row
from helpers.loading import ADAMW, after_steps, by_name, every_executor, every_row, named, refuses

# -------------------------------------------------------------------------------- names


@every_row
def test_names_that_differ_are_listed_and_nothing_is_loaded(row: Row) -> None:
    saved = after_steps(named(row, "abc"))
    optimizer = named(row, "bad")
    small.take_steps(optimizer, 1)
    match = rf"{row.name}: .*state_dict lacks 'd'; the optimizer lacks 'c'.*strict=False"
    refuses(optimizer, lambda: optimizer.load_state_dict(saved), match)


@every_row
def test_without_strict_what_both_have_is_loaded_by_name(row: Row) -> None:
    first = named(row, "abc", lr=row.lr and row.lr / 2)
    saved = after_steps(first)
    optimizer = named(row, "bad")
    small.take_steps(optimizer, 1)
    before = copy.deepcopy(by_name(optimizer))
    missing, unexpected = result = optimizer.load_state_dict(saved, strict=False)
    assert (missing, unexpected) == (["d"], ["c"])
    assert (result.missing_keys, result.unexpected_keys) == (missing, unexpected)
    ours, theirs = by_name(optimizer), by_name(first)
    assert small.same_states([ours["a"], ours["b"]], [theirs["a"], theirs["b"]])
    assert small.same_states([ours["d"]], [before["d"]])
    assert optimizer.param_groups[0]["lr"] == (row.lr and row.lr / 2)
    assert optimizer.param_groups[0]["param_names"] == ["b", "a", "d"]
    small.take_steps(optimizer, 1, 2)


def test_without_strict_groups_may_be_added() -> None:
    saved = after_steps(named(ADAMW, "ab", lr=0.3))
    optimizer = named(ADAMW, "cd", "ba", lr=0.7)
    assert optimizer.load_state_dict(saved, strict=False) == (["c", "d"], [])
    assert [group["lr"] for group in optimizer.param_groups] == [0.7, 0.3]
    assert [s["step"].item() for s in small.states(optimizer) if s] == [2, 2]


def test_all_that_matches_is_said_to() -> None:
    saved = after_steps(named(ADAMW, "ab"))
    assert named(ADAMW, "ba").load_state_dict(saved) == ([], [])
    assert named(ADAMW, "ba").load_state_dict(saved, strict=False) == ([], [])


@pytest.mark.parametrize(
    "ours, theirs", (("module.", ""), ("", "module."), ("", "_orig_mod."), ("", "module._orig_mod."))
)
def test_a_prefix_that_wrappers_add_is_understood(ours: str, theirs: str) -> None:
    first, second = named(ADAMW, "abc", prefix=theirs), named(ADAMW, "cba", prefix=ours)
    saved = after_steps(first)
    assert second.load_state_dict(saved) == ([], [])
    found, expected = by_name(second), by_name(first)
    assert small.same_states([found[name] for name in "abc"], [expected[name] for name in "abc"])
    assert second.param_groups[0]["param_names"] == [f"{ours}{name}" for name in "cba"]


def test_a_prefix_is_no_excuse_for_other_names() -> None:
    saved = after_steps(named(ADAMW, "abc", prefix="module."))
    for names in ("abd", "ab"):
        optimizer = named(ADAMW, names, prefix="")
        refuses(optimizer, lambda o=optimizer: o.load_state_dict(saved), "AdamW: .*lacks 'a', 'b'.*'module.a'")
    assert optimizer.load_state_dict(saved, strict=False) == (["a", "b"], ["module.a", "module.b", "module.c"])
    odd = descend.AdamW([("a", nn.Parameter(torch.ones(6, 4))), ("ma", nn.Parameter(torch.ones(6, 4)))])
    refuses(odd, lambda: odd.load_state_dict(after_steps(named(ADAMW, "ab", prefix="m"))), "lacks 'a'; .*lacks 'mb'")


def test_names_that_occur_twice_cannot_tell_parameters_apart() -> None:
    def twice(*names: str) -> descend.AdamW:
        return descend.AdamW([{"params": [(name, nn.Parameter(torch.ones(4)))]} for name in names])

    saved = after_steps(twice("w", "w", "v"))
    again = twice("w", "w", "v")
    assert again.load_state_dict(saved) == ([], [])  # each stands where it stood
    assert all(s["step"] == 2 for s in small.states(again))
    other = twice("v", "w", "w")
    refuses(other, lambda: other.load_state_dict(saved), "AdamW: the optimizer has 2 parameters of the name 'w'")


def test_without_names_on_both_sides_positions_decide() -> None:
    saved = after_steps(named(ADAMW, "abc"))
    unnamed = small.busy(ADAMW, small.parameters(shapes=[(6, 4)] * 3))
    assert unnamed.load_state_dict(saved) == ([], [])
    few = small.busy(ADAMW, small.parameters(shapes=[(6, 4)] * 2))
    for strict in (True, False):
        match = "AdamW: group 0 of the state_dict has 3 parameters, expected 2" + ("$" if strict else ".*needs names")
        refuses(few, lambda s=strict: few.load_state_dict(saved, strict=s), match)


@pytest.mark.parametrize("flat", (False, True), ids=("nested", "flat"))
@pytest.mark.parametrize("names", ("model's", "own"))
def test_distributed_checkpoints_have_matched_names_already(flat: bool, names: str, tmp_path: Path) -> None:
    """They bring state into the loader's order and leave ``param_names`` in the saver's."""
    form = StateDictOptions(flatten_optimizer_state_dict=flat)

    def make(order: int) -> tuple[nn.Module, descend.AdamW]:
        model = nn.Linear(4, 4)
        model.bias = nn.Parameter(torch.zeros(4, 4))
        pairs = [(f"{'my ' if names == 'own' else ''}{name}", p) for name, p in model.named_parameters()]
        return model, descend.AdamW(pairs[::order], lr=0.1)

    model, first = make(1)
    small.take_steps(first, 2)
    dcp.save({"o": get_optimizer_state_dict(model, first, options=form)}, checkpoint_id=tmp_path, no_dist=True)
    other, second = make(-1)
    loaded = {"o": get_optimizer_state_dict(other, second, options=form)}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other, second, loaded["o"], options=form)
    assert small.same_states(small.states(second)[::-1], small.states(first))


def test_names_and_parameters_that_do_not_go_together() -> None:
    optimizer = named(ADAMW, "ab")
    saved = after_steps(named(ADAMW, "ab"))
    saved["param_groups"][0]["param_names"].pop()
    refuses(optimizer, lambda: optimizer.load_state_dict(saved), "the state_dict has 2 parameters and 1 names")


@every_row
def test_a_groups_options_come_from_where_its_first_parameter_was(row: Row) -> None:
    saved = after_steps(named(row, "ab", "cd"))
    for group, delta in zip(saved["param_groups"], (0.25, 0.5), strict=True):
        group["lr"] = delta
    optimizer = named(row, "bc", "da")
    optimizer.load_state_dict(saved)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]


# -------------------------------------------------------------------------------- options

LOADERS = {"foreach": False, "fused": None, "capturable": False, "state_dtype": torch.float32, "master": "split"}
SAVERS = {
    "foreach": True,
    "fused": False,
    "capturable": True,
    "state_dtype": None,
    "master": None,
    "offload_state": True,
}


@every_row
def test_how_to_run_and_to_rest_is_the_loaders(row: Row) -> None:
    optimizer = small.busy(row, small.parameters(), **LOADERS)
    saved = after_steps(small.busy(row, small.parameters()))
    saved["param_groups"][0].update(SAVERS)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in EXECUTION_DEFAULTS} == {**LOADERS, "offload_state": False}
    assert all(s["step"].device.type == "cpu" for s in small.states(optimizer))


BAD = [
    ("lr", -1.0), ("lr", float("nan")), ("weight_decay", -0.1), ("betas", (2.0, 0.9)), ("betas", (0.9,)),
    ("momentum", 2.0), ("eps", float("nan")), ("update_clip", 0.0), ("caution", "yes"), ("weight_decay", None),
]  # fmt: skip


@every_row
def test_options_of_a_file_are_checked_as_the_constructors(row: Row) -> None:
    optimizer = small.busy(row, small.parameters())
    small.take_steps(optimizer, 1)
    saved = after_steps(small.busy(row, small.parameters()))
    refused = []
    for name, value in BAD:
        try:
            small.busy(row, [{"params": small.parameters(), name: value}])
        except ValueError as error:
            if name in optimizer.defaults:
                changed = {**saved, "param_groups": [{**saved["param_groups"][0], name: value}]}
                match = re.escape(f"{error} (group 0 of the state_dict)")
                refuses(optimizer, lambda given=changed: optimizer.load_state_dict(given), match)
                refused.append(name)
    assert {"lr", "update_clip", "caution"} <= set(refused)


def test_options_that_exclude_each_other_or_the_rule() -> None:
    optimizer = descend.Mars(small.parameters())
    saved = after_steps(descend.Mars(small.parameters()))
    saved["param_groups"][0]["hyperball"] = True
    refuses(optimizer, lambda: optimizer.load_state_dict(saved), "Mars: hyperball=True is not possible")
    muon = descend.Muon(small.parameters())
    saved = after_steps(descend.Muon(small.parameters()))
    saved["param_groups"][0]["use_muon"] = True
    refuses(muon, lambda: muon.load_state_dict(saved), "Muon: parameter 0: use_muon=True")


def test_groups_that_shared_a_learning_rate_get_one_each() -> None:
    lr = torch.tensor(0.1)
    params = small.parameters(shapes=((5,), (6, 4)))
    optimizer = descend.AdamW([{"params": params[:1]}, {"params": params[1:]}], lr=lr)
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["lr"] = lr
    optimizer.load_state_dict(saved)
    optimizer.param_groups[0]["lr"].fill_(0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.5, 0.1])


def test_corrected_decay_from_a_file_without_its_reference() -> None:
    """timm until 1.0.28 kept none."""
    saved = after_steps(descend.AdamW(small.parameters(), lr=0.05, weight_decay=0.1, corrected_weight_decay=True))
    del saved["param_groups"][0]["max_lr_snapshot"]
    optimizer = descend.AdamW(small.parameters(), lr=0.1)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["max_lr_snapshot"] == 0.1
    small.take_steps(optimizer, 1, 2)


# -------------------------------------------------------------------------------- steps, and errors

STEPS = (3, 3.0, np.float32(3), torch.tensor(3), torch.tensor([3.0]), torch.tensor([[3]]), torch.tensor(3.0).double())


@every_executor
@pytest.mark.parametrize("step", STEPS, ids=repr)
@pytest.mark.parametrize("where", ("state", "group"))
def test_a_step_may_come_in_any_form(step: Any, where: str, executor: dict[str, Any]) -> None:
    first = descend.AdamW(small.parameters(torch.float32), lr=0.1, **executor)
    saved = after_steps(first, 3)
    for state in saved["state"].values():
        state.pop("step")
        if where == "state":
            state["step"] = step
    if where == "group":
        saved["param_groups"][0]["step"] = step
    second = descend.AdamW([nn.Parameter(value) for value in small.values(first)], **executor)
    second.load_state_dict(saved)
    for state in small.states(second):
        assert (state["step"].dtype, state["step"].shape, state["step"].item()) == (torch.float32, (), 3)
    assert "step" not in second.param_groups[0]
    for optimizer in (first, second):
        small.take_steps(optimizer, 2, 3)
    assert small.same(small.values(second), small.values(first))


@every_row
def test_a_file_that_counts_no_steps_has_taken_one(row: Row) -> None:
    """Rules that begin at t == 1 would begin again."""
    first = small.busy(row, small.parameters())
    saved = after_steps(first, 1)
    for state in saved["state"].values():
        del state["step"]
    second = small.busy(row, [nn.Parameter(value) for value in small.values(first)])
    second.load_state_dict(saved)
    assert all(s["step"] == 1 for s in small.states(second))
    for optimizer in (first, second):
        small.take_steps(optimizer, 1, 1)
    assert small.same(small.values(second), small.values(first))


def broken(**changes: Any) -> dict[str, Any]:
    saved = after_steps(descend.NAdam(small.parameters(shapes=((5,), (6, 4)))))
    saved["state"][1].update(changes)
    return saved


@pytest.mark.parametrize(
    "saved, match",
    (
        (broken(step=torch.ones(2)), r"NAdam: state 'step' is a tensor of shape \(2,\), expected one number for parameter 1"),
        (broken(step="three"), "NAdam: state 'step' is 'three', expected one number for parameter 1 of group 0"),
        (broken(step=-1), "NAdam: state 'step' is -1, expected a finite number >= 0"),
        (broken(step=float("nan")), "NAdam: state 'step' is nan, expected a finite number"),
        (broken(mu_product=torch.ones(2)), r"NAdam: state 'mu_product' is a tensor of shape \(2,\)"),
        (broken(exp_avg="much"), "NAdam: state 'exp_avg' is 'much', expected a tensor"),
        (broken(exp_avg=torch.ones(3, 4)), r"NAdam: state 'exp_avg' has shape \(3, 4\), expected \(6, 4\) for parameter 1"),
        (broken(exp_avg=torch.ones(6, 4) * 1j), "NAdam: state 'exp_avg' has dtype torch.complex64, expected torch.float64"),
        ({**broken(), "state": {0: torch.ones(5)}}, "NAdam: the state of parameter 0 of group 0 is a Tensor, expected a dict"),
        ({"weight": torch.ones(5)}, "NAdam: state_dict has no 'state' but 'weight'; is it a model's?"),
        ({"state": {}, "param_groups": [{"lr": 0.1}]}, "NAdam: a group of the state_dict has no 'params'"),
    ),
)  # fmt: skip
def test_errors_say_what_came_and_what_is_right(saved: Any, match: str) -> None:
    optimizer = descend.NAdam(small.parameters(shapes=((5,), (6, 4))))
    small.take_steps(optimizer, 1)
    refuses(optimizer, lambda: optimizer.load_state_dict(saved), match)


def test_what_is_no_state_dict_is_a_type_error() -> None:
    optimizer = descend.NAdam(small.parameters())
    refuses(optimizer, lambda: optimizer.load_state_dict([1]), "NAdam: state_dict is a list", TypeError)
