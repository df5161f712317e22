"""Mixtures by patterns of parameter names."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import descend


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Linear(16, 16)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(16, 10)


RULES: Any = [
    ("blocks.*.mlp.weight", "muon", {"lr": 0.02, "weight_decay": 0.1}),
    (re.compile(r"bias$"), "sgd", {"lr": 0.1}),
    (lambda name, p: p.dim() == 1, "lion"),
    ("*", "adamw"),
]


def moves(optimizer: Any) -> dict[str, tuple[str, float, float]]:
    return {
        name: (group["rule"], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }


def test_the_first_pattern_that_meets_a_parameter_has_it() -> None:
    found = moves(descend.create_optimizer_v2(Model(), rules=RULES, lr=1e-3, weight_decay=0.05))
    assert found["blocks.0.mlp.weight"] == ("muon", 0.02, 0.1)
    assert found["head.bias"] == ("sgd", 0.1, 0.0)
    assert found["blocks.1.norm.bias"] == ("sgd", 0.1, 0.0)
    assert found["blocks.1.norm.weight"] == ("lion", 1e-3, 0.0)
    assert found["embed.weight"] == ("adamw", 1e-3, 0.05)
    assert len(found) == len(dict(Model().named_parameters()))


def test_it_trains_and_the_table_says_who_has_what() -> None:
    model = Model()
    optimizer = descend.create_optimizer_v2(model, rules=RULES, lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters())
    rules = {row.name: row.rule for row in descend.param_groups_table(optimizer)}
    assert rules["blocks.1.mlp.weight"] == "Muon"
    assert rules["blocks.1.mlp.bias"] == "SGD"
    assert rules["head.weight"] == "AdamW"


def test_layer_decay_scales_each_rules_own_rate() -> None:
    found = moves(descend.create_optimizer_v2(Model(), rules=RULES, lr=1e-3, layer_decay=0.5, layers="auto"))
    assert found["blocks.1.mlp.weight"][1] == 2 * found["blocks.0.mlp.weight"][1]
    assert found["head.bias"][1] == 0.1
    assert found["head.weight"][1] == 1e-3


def test_names_and_parameters_do_without_a_model() -> None:
    found = moves(
        descend.create_optimizer_v2(list(Model().named_parameters()), rules=RULES, lr=1e-3, weight_decay=0.05)
    )
    assert found["blocks.0.norm.weight"] == ("lion", 1e-3, 0.05)


def test_options_of_all_rules() -> None:
    optimizer = descend.create_optimizer_v2(Model(), rules=RULES, lr=1e-3, state_dtype="int8", caution=True)
    assert {group["state_dtype"] for group in optimizer.param_groups} == {"int8"}


@pytest.mark.parametrize(
    ("rules", "message"),
    (
        (RULES[:-1], r"no pattern meets .*'embed.weight'.*; end the list with a rule for all others"),
        ([("*.attn.*", "muon"), *RULES], r"pattern '\*.attn.\*' meets no parameter"),
        ([("*", "adamww")], "there is no optimizer 'adamww'; did you mean 'adamw'"),
    ),
)
def test_bad_patterns_are_refused_by_name(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descend.create_optimizer_v2(Model(), rules=rules, lr=1e-3)


def test_a_pattern_may_be_empty_where_that_is_meant() -> None:
    descend.create_optimizer_v2(Model(), rules=[("*.attn.*", "muon"), *RULES], lr=1e-3, allow_empty=True)


def test_a_name_and_patterns_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="rules and opt, or param_group_fn, exclude each other"):
        descend.create_optimizer_v2(Model(), "adamw", rules=RULES)
    with pytest.raises(ValueError, match="rules go by names"):
        descend.create_optimizer_v2(Model().parameters(), rules=RULES)
