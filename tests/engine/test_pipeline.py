"""A step is a pipeline: direction, stages, weight decay, rescale, step; few rules leave it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.rule import Decay, Rule
from descend.engine.slots import signed
from descend.engine.update import shape_direction
from helpers.cases import ROWS

EXECUTORS = ({"foreach": False}, {"foreach": True}, {"fused": True})
#: Rules that change the parameter by their own lines; each says why where it does so.
DOORS = {"ScheduleFreeAdamW", "ScheduleFreeRAdam", "ScheduleFreeSGD", "MADGRAD", "ASGD"}


def test_few_rules_leave_the_pipeline() -> None:
    kinds = {row.name: getattr(descend, row.name) for row in ROWS}
    assert {name for name, kind in kinds.items() if kind.move.__func__ is not Rule.move.__func__} == DOORS


class Own(descend.Optimizer):
    """A rule whose direction is the gradient, with a rescale of 1/‖u‖ and decay wherever `where` says."""

    def __init__(self, params: Any, where: str = "decoupled", lr: float = 0.1, **common: Any) -> None:
        super().__init__(params, dict(where=where, lr=lr, weight_decay=0.5), **common)

    @staticmethod
    def decay(h: Any) -> Decay:
        kind: Decay = h.where
        return kind

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
        return g * 1.0

    @staticmethod
    def rescale(p: Tensor, u: Tensor, k: Any) -> Any:
        return 1 / k.norm(u)


def stepped(kind: type[descend.Optimizer], executor: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    p = nn.Parameter(torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(3, 4))
    g, before = torch.cos(3 * p.detach()), p.detach().clone()
    p.grad = g.clone()
    kind([p], **executor, **options).step()
    return before, g, p.detach()


@pytest.mark.parametrize("executor", EXECUTORS, ids=("loop", "foreach", "fused"))
def test_decay_enters_where_the_rule_says(executor: dict[str, Any]) -> None:
    expected = {
        "none": lambda p, g: p - 0.1 * g / g.norm(),
        "coupled": lambda p, g: p - 0.1 * (g + 0.5 * p) / (g + 0.5 * p).norm(),
        "direction": lambda p, g: p - 0.1 * (g + 0.5 * p) / (g + 0.5 * p).norm(),
        "decoupled": lambda p, g: 0.95 * p - 0.1 * g / g.norm(),
        "fixed": lambda p, g: 0.5 * p - 0.1 * g / g.norm(),
        "after": lambda p, g: 0.95 * (p - 0.1 * g / g.norm()),
    }
    for where, value in expected.items() if "fused" not in executor else [*expected.items()][2:3]:
        p, g, after = stepped(Own, executor, where=where)
        torch.testing.assert_close(after, value(p, g), msg=where)
    # Stages see the direction before decay has entered it.
    p, g, after = stepped(Own, {"foreach": False}, where="direction", grams=True)
    torch.testing.assert_close(after, expected["direction"](p, g))


class Halves(descend.Optimizer):
    """A rule that shapes its momentum itself, and decays each tensor by a share of its own."""

    own_stages = True

    def __init__(self, params: Any, lr: float = 0.1, **common: Any) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=0.5), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Any]:
        return {"momentum_buffer": signed()}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> tuple[Tensor, Any]:
        m = s.momentum_buffer.add_(g)
        return shape_direction(m, g, k) / 4, k.norm(p) * k.decay_amount


@pytest.mark.parametrize("executor", EXECUTORS[:2], ids=("loop", "foreach"))
def test_stages_inside_and_a_decay_of_each_tensor(executor: dict[str, Any]) -> None:
    p, g, after = stepped(Halves, executor, update_clip=0.1)
    clipped = g / max(1.0, float(g.square().mean().sqrt()) / 0.1)
    torch.testing.assert_close(after, p * (1 - 0.05 * p.norm()) - 0.1 * clipped / 4)


def test_a_gradient_of_a_matrix_rule_that_is_not_finite_counts_as_zero() -> None:
    class OfMatrices(Halves):
        reach = "matrix"

    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.tensor([[1.0, float("nan")], [2.0, 3.0]])
    OfMatrices([p], caution=True).step()
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 0.9))
