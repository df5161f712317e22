"""A mixture by patterns says what it would otherwise decide in silence."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from torch import nn

import descend


def model() -> nn.Module:
    return nn.ModuleDict({"hidden": nn.Linear(16, 16, bias=False), "wide": nn.Linear(1024, 4, bias=False)})


def test_a_matrix_that_its_rule_leaves_to_another_is_named() -> None:
    with pytest.warns(
        UserWarning, match=r"rules: 'muon' leaves 'wide.weight' of shape \(4, 1024\) to AdamW at its own lr=0.02"
    ):
        descend.create_optimizer_v2(model(), rules=[("*", "muon", {"lr": 0.02})], fallback_kinds=())


@pytest.mark.parametrize(
    "rules",
    (
        [("*", "muon", {"lr": 0.02, "fallback_lr_scale": 0.1})],
        [("*", "muon", {"lr": 0.02, "fallback": "lion", "fallback_options": {"lr": 1e-4}})],
        [("hidden.*", "muon", {"lr": 0.02}), ("*", "adamw", {"lr": 1e-3})],
        [("*", "soap", {"lr": 0.02})],
    ),
    ids=lambda rules: rules[0][1],
)
def test_a_choice_that_is_said_is_not_warned_of(rules: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        descend.create_optimizer_v2(model(), rules=rules, fallback_kinds=())


@pytest.mark.parametrize("opt", ("sgd", "adamw"))
def test_opt_beside_rules_is_an_error(opt: str) -> None:
    with pytest.raises(ValueError, match=f"rules and opt, .* leave out opt='{opt}'"):
        descend.create_optimizer_v2(model(), opt, rules=[("*", "adamw")], lr=0.1)
    assert type(descend.create_optimizer_v2(model(), lr=0.1)).__name__ == "SGD"
