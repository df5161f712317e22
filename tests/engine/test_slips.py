"""Slips in a user's own rule are named when its lines first run, and state is written where it lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_own_rule import Own, every_executor, step
from torch import Tensor

from descend.engine.slots import signed

Lines = dict[str, Any]


def plain_step(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
    return g


def writes_another_name(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
    s.momentun = g
    return g


def assigns_another_name(t: Any, h: Any, c: Any) -> dict[str, Any]:
    c.totl = c.total + 1
    return {}


FLAT = 'a flat part of the tensor in hand; .*reach = "rows".*reach = "matrix"'
SLIPS: dict[str, tuple[Lines, type[Exception], str]] = {
    "state": ({"direction": writes_another_name}, AttributeError, "state 'momentun', which its slots.. does not declare"),
    "carried": (
        {"direction": plain_step, "scalars": assigns_another_name, "carried": {"total": 0.0}},
        AttributeError,
        r"Slip: scalars\(\) assigns c.totl, which `carried` does not declare",
    ),
    "carried, read": (
        {"direction": plain_step, "scalars": lambda t, h, c: {"w": c.totl}},
        AttributeError,
        r"Slip: scalars\(\) reads c.totl, which `carried` does not declare",
    ),
    "option": (
        {"direction": plain_step, "scalars": lambda t, h, c: {"w": h.momentun}},
        AttributeError,
        r"Slip: scalars\(\) reads h.momentun, which is no option",
    ),
    "product": ({"direction": lambda p, g, s, k: torch.matmul(g, g)}, RuntimeError, rf"Slip: its lines use matmul\(\).*{FLAT}"),
    "transpose": ({"direction": lambda p, g, s, k: g.mT}, RuntimeError, f"Slip: its lines use a transpose.*{FLAT}"),
    "row": ({"direction": lambda p, g, s, k: g - g[0]}, RuntimeError, rf"Slip: its lines use __getitem__\(\).*{FLAT}"),
    "size": ({"direction": lambda p, g, s, k: g / g.size(0)}, RuntimeError, rf"Slip: its lines use size\(\).*{FLAT}"),
    "outer": (
        {"direction": lambda p, g, s, k: torch.linalg.qr(g)[0]},
        RuntimeError,
        'Slip: its lines use dimensions that a flat tensor does not have.*reach = "matrix"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("executor", ({"foreach": False}, {"foreach": True}), ids=("loop", "foreach"))
def test_a_slip_is_named(executor: dict[str, Any], slip: str) -> None:
    lines, error, message = SLIPS[slip]
    methods = {name: staticmethod(line) if callable(line) else line for name, line in lines.items()}
    with pytest.raises(error, match=message):
        step(type("Slip", (Own,), methods), executor)


class Assigning(Own):
    """A rule that assigns its state as one writes it down."""

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Any]:
        return {"momentum": signed(), "count": signed()}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
        s.momentum = s.momentum * 0.5 + g
        s.count += torch.sign(g)
        return s.momentum * s.count


@every_executor
def test_assigned_state_is_kept(executor: dict[str, Any]) -> None:
    p = torch.nn.Parameter(torch.ones(8, 4))
    optimizer = Assigning([p], **executor)
    tensors: list[Tensor] = []
    for _ in range(3):
        p.grad = torch.ones(8, 4)
        optimizer.step()
        tensors.append(optimizer.state[p]["momentum"])
    assert tensors[0] is tensors[2]
    assert optimizer.state[p].keys() == {"step", "momentum", "count"}
    torch.testing.assert_close(optimizer.state[p]["momentum"], torch.full((8, 4), 1.75))
    torch.testing.assert_close(optimizer.state[p]["count"], torch.full((8, 4), 3.0))
    torch.testing.assert_close(p.detach(), torch.full((8, 4), 1 - 0.1 * (1 + 3 + 5.25)))
