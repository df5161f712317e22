"""`muon+lion` is an optimizer to every command that takes a list of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import descend
from descend.lab.commands import app
from descend.lab.names import chosen, created


def test_a_second_name_is_the_fallback() -> None:
    assert chosen("muon+lion,adamw") == ["muon+lion", "adamw"]
    params = [nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(4))]
    optimizer = created("muon+lion", params, 1e-3)
    rules = [optimizer.rule_name(p, optimizer.param_groups[0]) for p in params]
    assert isinstance(optimizer, descend.Muon)
    assert rules == ["Muon", "Lion"]


@pytest.mark.parametrize(
    "words, message",
    (
        ("adamw+lion", "'adamw' moves every parameter itself"),
        ("muon+lionn", "there is no optimizer 'lionn'; did you mean lion"),
        ("muoon+lion", "there is no optimizer 'muoon'"),
    ),
)
def test_what_is_no_mixture_is_named(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(words)


def test_show_has_both_rules() -> None:
    shown = CliRunner().invoke(app(), ["show", "muon+lion"]).output
    assert "muon for matrices; lion for all other parameters" in shown.replace("\n", " ")
    assert "descend.optimizers.Muon" in shown or "Muon" in shown
    assert "Lion" in shown
    refused = CliRunner().invoke(app(), ["show", "adamw+lion"])
    assert refused.exit_code == 2
    assert "moves every parameter itself" in refused.output
