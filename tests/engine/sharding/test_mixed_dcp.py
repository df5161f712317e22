"""A mixture goes through torch.distributed.checkpoint as one optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

import descend
from helpers import small

RULES = [("*.weight", "muon", {"lr": 0.02, "fallback": "lion"}), ("*", "adafactorbv", {"lr": 1e-2})]


def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.LayerNorm(4))
    return model, descend.create_optimizer_v2(model, rules=RULES, state_dtype="int8")


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    model(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("flat", (False, True), ids=("nested", "flat"))
def test_a_mixture_resumes_exactly(flat: bool, tmp_path: Path) -> None:
    form = StateDictOptions(flatten_optimizer_state_dict=flat)
    model, optimizer = made(0)
    for seed in range(3):
        step(model, optimizer, seed)
    saved = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=form)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)

    other, loader = made(1)
    there = {"model": other.state_dict(), "optimizer": get_optimizer_state_dict(other, loader, options=form)}
    dcp.load(there, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(there["model"])
    set_optimizer_state_dict(other, loader, there["optimizer"], options=form)
    assert [group["rule"] for group in loader.param_groups] == [group["rule"] for group in optimizer.param_groups]
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(other, loader, seed)
    assert small.same(list(other.parameters()), list(model.parameters()))
    assert small.same_states(small.states(loader), small.states(optimizer))
