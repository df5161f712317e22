"""What one gradient that is not finite, or whose square is not, may cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import descend
from helpers.cases import ROWS

MATRIX_RULES = tuple(
    row.name for row in ROWS if getattr(descend, row.name).reach == "matrix" and row.name not in ("AdaMuon",)
)
SWITCHES = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def optimizer_of(name: str, p: nn.Parameter, **options: Any) -> torch.optim.Optimizer:
    row = next(row for row in ROWS if row.name == name)
    often = {"precondition_frequency": 2} if name in ("SOAP", "KLSOAP", "Shampoo") else {}
    return getattr(descend, name)([p], **{"lr": row.lr or 1e-3, **often, **options})


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")))
@pytest.mark.parametrize("at", (0, 3, 4))
@pytest.mark.parametrize("name", MATRIX_RULES)
@pytest.mark.parametrize("switch", ("loop", "foreach"))
def test_a_gradient_that_is_not_finite_counts_as_zeros_for_a_rule_of_matrices(
    name: str, at: int, bad: float, switch: str
) -> None:
    ends = []
    for value in (bad, 0.0):
        p = nn.Parameter(noise(0, 8, 6))
        optimizer = optimizer_of(name, p, **SWITCHES[switch])
        for step in range(7):
            p.grad = noise(step + 1, 8, 6)
            if step == at:
                p.grad = torch.zeros(8, 6) if value == 0 else p.grad.clone()
                if value != 0:
                    p.grad[2, 3] = value
            optimizer.step()
        assert torch.isfinite(p).all()
        assert all(torch.isfinite(state).all() for state in optimizer.state[p].values())
        ends.append(p.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("size", (1e19, 1e25, 1e30))
@pytest.mark.parametrize("name", ("SOAP", "KLSOAP", "Shampoo", "Kron"))
def test_factors_outlive_a_gradient_whose_squares_overflow(name: str, size: float) -> None:
    p = nn.Parameter(noise(0, 8, 6))
    optimizer = optimizer_of(name, p)
    for step in range(9):
        p.grad = noise(step + 1, 8, 6) * (size if step in (0, 4) else 1.0)
        optimizer.step()
    assert torch.isfinite(p).all()
    factors = {k: v for k, v in optimizer.state[p].items() if k.startswith(("GG", "Q", "eigen", "factor", "root"))}
    assert factors
    assert all(torch.isfinite(state).all() for state in factors.values())


@pytest.mark.parametrize("size", (1e15, 1e19, 1e25, 1e30))
@pytest.mark.parametrize(
    "name", ("CAME", "MADGRAD", "SGDP", "AdamP", "Adafactor", "AdafactorBigVision", "TorchAdafactor", "AdamMini")
)
@pytest.mark.parametrize("shape", ((18, 17), (7,)))
@pytest.mark.parametrize("switch", SWITCHES)
def test_no_square_that_overflows_makes_a_parameter_nan(
    name: str, size: float, shape: tuple[int, ...], switch: str
) -> None:
    if switch == "fused" and size != 1e25:
        return
    p = nn.Parameter(noise(0, *shape))
    optimizer = getattr(descend, name)([p], lr=1e-3, **SWITCHES[switch])
    for step in range(4):
        p.grad = noise(step + 1, *shape) * (size if step == 1 else 1.0)
        optimizer.step()
    assert torch.isfinite(p).all()


@pytest.mark.parametrize("size", (1e19, 1e25, 1e30))
def test_came_steps_as_far_as_in_float64_where_squares_overflow(size: float) -> None:
    moved = []
    for dtype in (torch.float32, torch.float64):
        p = nn.Parameter(noise(0, 18, 17).to(dtype))
        optimizer = descend.CAME([p], lr=1e-2)
        for step in range(2):
            p.grad = (noise(step + 1, 18, 17) * (size if step == 1 else 1.0)).to(dtype)
            optimizer.step()
        moved.append(float((p.detach().double() - noise(0, 18, 17)).norm()))
    assert moved[0] == pytest.approx(moved[1], rel=0.1)


@pytest.mark.parametrize("state_dtype", ("int8", "int4"))
@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("switch", SWITCHES)
def test_one_bad_number_costs_no_other_of_its_block(state_dtype: str, bad: float, switch: str) -> None:
    def train(value: float | None) -> torch.Tensor:
        p = nn.Parameter(noise(0, 4, 256))
        optimizer = descend.AdamW([p], lr=1e-2, state_dtype=state_dtype, **SWITCHES[switch])
        for step in range(20):
            p.grad = noise(step + 1, 4, 256)
            if step == 3 and value is not None:
                p.grad[1, 5] = value
            optimizer.step()
        assert all(
            torch.isfinite(state.float()).all() for state in optimizer.state[p].values() if state.is_floating_point()
        )
        return p.detach()

    others = torch.ones(4, 256, dtype=torch.bool)
    others[1, 5] = False
    hit, clean = train(bad), train(None)
    assert torch.isfinite(hit[others]).all()
    assert (hit - clean)[others].abs().max() < 0.1
    assert not torch.isfinite(hit[1, 5])


def test_a_scale_of_zero_skips_the_step_as_any_overflow_does() -> None:
    p = nn.Parameter(torch.ones(8, 8))
    optimizer = descend.AdamW([p], fused=True)
    p.grad = torch.zeros(8, 8)
    optimizer.grad_scale, optimizer.found_inf = torch.zeros(()), torch.ones(())
    optimizer.step()
    assert torch.equal(p, torch.ones(8, 8))
    assert all(float(state["step"]) == 0 for state in optimizer.state.values())


@pytest.mark.parametrize("names", (True, False))
def test_a_factor_that_is_not_finite_is_an_error_that_names_the_parameter_and_changes_nothing(names: bool) -> None:
    p = nn.Parameter(noise(0, 8, 6))
    optimizer = descend.Shampoo([("body.weight", p)] if names else [p], lr=1e-2, precondition_frequency=2)
    p.grad = noise(1, 8, 6)
    optimizer.step()
    optimizer.state[p]["factor_0_1"][0, 0] = float("nan")
    before = {name: value.clone() for name, value in optimizer.state[p].items()}
    at = p.detach().clone()
    shown = "'body.weight'" if names else "0 of its group"
    with pytest.raises(RuntimeError, match=rf"Shampoo: parameter {shown} of shape \(8, 6\): .*not finite"):
        optimizer.step()
    assert torch.equal(p, at)
    for name, value in optimizer.state[p].items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
