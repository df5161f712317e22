"""Rules of matrices leave what is no matrix to the rule that `fallback` names, and keep it where none is named."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend

SHAPES = ((6, 4), (5,), (3, 2, 2, 2))
SCALE, LR = 0.25, 0.01
#: Where each rule says that a parameter is no matrix, beyond vectors.
RULES: dict[str, dict[str, Any]] = {
    "SOAP": {}, "KLSOAP": {}, "Shampoo": {}, "Kron": {}, "Scion": {}, "Muon": {}, "NorMuon": {}, "Dion": {},
}  # fmt: skip
EXECUTORS = {"loop": {"foreach": False}, "foreach": {"foreach": True}}


def trained(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype) if p.requires_grad else None
        optimizer.step()
    return [p.detach().clone() for p in params]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", RULES)
def test_a_vector_is_the_named_rules(name: str, executor: str) -> None:
    """It moves as that rule's own optimizer moves it, and the matrix as without a fallback."""
    kind = getattr(descend, name)
    decay = {} if name == "Scion" else {"weight_decay": 0.1}
    common: dict[str, Any] = {"lr": LR, **decay, **EXECUTORS[executor]}
    own = {"fallback": "lion", "fallback_options": {"betas": (0.5, 0.9)}, "fallback_lr_scale": SCALE}
    params = parameters()
    found = trained(optimizer := kind(params, **common, **own), params)
    assert optimizer.rule_name(params[1], optimizer.param_groups[0]) == "Lion"
    alone = parameters()
    lion = descend.Lion(alone, **{**common, "lr": LR * SCALE}, betas=(0.5, 0.9))
    torch.testing.assert_close(found[1], trained(lion, alone)[1], rtol=0, atol=0)
    alone = parameters()
    torch.testing.assert_close(found[0], trained(kind(alone, **common), alone)[0], rtol=0, atol=0)
    assert set(optimizer.state[params[1]]) == {"step", "exp_avg"}


@pytest.mark.parametrize("name", ("SOAP", "Shampoo", "Kron", "Scion"))
def test_options_of_a_fallback_that_there_is_not_raise(name: str) -> None:
    kind = getattr(descend, name)
    for option in ({"fallback_options": {"betas": (0.5, 0.9)}}, {"fallback_lr_scale": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}=.*with fallback=None"):
            kind(parameters(), **option)
    with pytest.raises(ValueError, match="there is no rule 'loin'; did you mean 'lion'"):
        kind(parameters(), fallback="loin")
    with pytest.raises(TypeError, match="Lion has no option 'momentum'"):
        kind(parameters(), fallback="lion", fallback_options={"momentum": 0.5})


def test_a_fallback_without_weight_decay_is_given_none() -> None:
    params = parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = descend.SOAP(params, fallback="rprop", weight_decay=0.1)
    assert all(torch.isfinite(p).all() for p in trained(optimizer, params))


def test_the_corrected_decay_refers_to_the_fallbacks_own_lr() -> None:
    """At the lr that the optimizer was made with, corrected decay is plain decay, whatever gives the fallback its lr."""
    for options in ({"lr": 0.002}, {}):
        ends = []
        for corrected in (False, True):
            params = parameters()
            own = {"fallback": "lion", "fallback_options": options, "fallback_lr_scale": SCALE}
            ends.append(
                trained(descend.Muon(params, lr=LR, weight_decay=0.5, corrected_weight_decay=corrected, **own), params)
            )
        torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=0)
