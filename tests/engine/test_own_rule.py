"""What a user's own rule is told where it is written wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.slots import signed

EXECUTORS = ({"foreach": False}, {"foreach": True}, {"fused": True})
every_executor = pytest.mark.parametrize("executor", EXECUTORS, ids=("loop", "foreach", "fused"))


class Own(descend.Optimizer):
    def __init__(self, params: Any, lr: float = 0.1, **common: Any) -> None:
        super().__init__(params, dict(lr=lr), **common)


def step(kind: type[Own], executor: dict[str, Any], shape: tuple[int, ...] = (8, 4)) -> nn.Parameter:
    p = nn.Parameter(torch.ones(shape))
    p.grad = torch.ones(shape)
    kind([p], **executor).step()
    return p


BY_HAND = {
    "norm": (lambda g: g / g.norm(), r"reduce a tensor with norm\(\).*write k.norm\(x\)"),
    "vector_norm": (lambda g: g / torch.linalg.vector_norm(g), r"write k.norm\(x\)"),
    "sum": (lambda g: g / g.sum(), r"write k.sums\(x\)"),
    "torch.sum": (lambda g: g / torch.sum(g), r"write k.sums\(x\)"),
    "mean": (lambda g: g - g.mean(), r"write k.mean\(x\)"),
    "max": (lambda g: g / g.abs().max(), r"write k.sums\(\.\.\.\)"),
    "amax": (lambda g: g / torch.amax(g), r"write k.sums\(\.\.\.\)"),
    "std": (lambda g: g / g.std(), r"write k.sums\(\.\.\.\)"),
}


@pytest.mark.parametrize("executor", EXECUTORS[::2], ids=("loop", "fused"))
@pytest.mark.parametrize("way", BY_HAND)
def test_a_rule_that_sums_by_hand_is_told_what_to_write(way: str, executor: dict[str, Any]) -> None:
    by_hand, message = BY_HAND[way]

    class Wrong(Own):
        @staticmethod
        def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
            return by_hand(g)

    with pytest.raises(RuntimeError, match=f"Wrong: its lines.*{message}"):
        step(Wrong, executor)


@every_executor
def test_sums_that_are_asked_for_are_right_on_chunks_too(executor: dict[str, Any]) -> None:
    class Right(Own):
        @staticmethod
        def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
            return g / k.norm(g)

    size = (1 << 20) + 64
    p = step(Right, executor, (size,))
    torch.testing.assert_close(p.detach(), torch.full((size,), 1 - 0.1 / size**0.5))


@every_executor
def test_a_rule_of_rows_is_told_to_say_so(executor: dict[str, Any]) -> None:
    class Rows(Own):
        @staticmethod
        def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
            return g - k.means_over((g, (1,)))[0]

    with pytest.raises(RuntimeError, match='Rows: its lines use dimensions.*says reach = "rows"'):
        step(Rows, executor)


@every_executor
def test_an_int_given_as_a_scalar_is_named(executor: dict[str, Any]) -> None:
    class Whole(Own):
        @staticmethod
        def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
            return {"w": 1}

    with pytest.raises(TypeError, match=r"Whole: scalars\(\) gives w=1, an int.*write 1.0"):
        step(Whole, executor)


@every_executor
def test_state_and_scalars_that_are_not_declared_are_named(executor: dict[str, Any]) -> None:
    class State(Own):
        @staticmethod
        def slots(h: Any, p: Tensor) -> dict[str, Any]:
            return {"momentum": signed()}

        @staticmethod
        def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
            return s.momentun

    with pytest.raises(AttributeError, match=r"uses state 'momentun', which its slots\(\) does not declare"):
        step(State, executor)

    class Scalar(Own):
        @staticmethod
        def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
            return g * k.weigth

    with pytest.raises(AttributeError, match="uses 'weigth', which is neither an option nor one of its scalars"):
        step(Scalar, executor)
