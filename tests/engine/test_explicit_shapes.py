"""State of a shape that a rule names itself: with every stage, in the executors that take it; and bytes of state by group."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.engine.slots import Slot
from oracles import stages

SHAPES = ((), (0,), (1,), (7,), (6, 4), (1, 5), (4, 3, 2, 2))
EXECUTORS = {"loop": {"foreach": False}, "foreach": {"foreach": True}}  # slices have no kernel
STAGES: tuple[dict[str, Any], ...] = (
    {"centralize_grad": True}, {"adaptive_grad_clip": 0.02}, {"centralize_grad": True, "adaptive_grad_clip": 0.02},
    {"caution": True, "update_clip": 0.3},
)  # fmt: skip


class RowMomentum(descend.Optimizer):
    """A momentum of every row's mean square, in a state of as many numbers as there are rows."""

    reach: ClassVar[Any] = "rows"

    def __init__(self, params: Any, lr: float = 0.1, **common: Any) -> None:
        super().__init__(params, {"lr": lr}, **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"of_rows": Slot(shape=(p.shape[0],))}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: Any, k: Any) -> Tensor:
        means = k.means_over((g * g, tuple(range(1, g.dim()))))[0]
        s.of_rows.mul_(0.9).add_(means.reshape(s.of_rows.shape))
        return s.of_rows.reshape(means.shape).expand_as(g)


KINDS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (descend.Prodigy, {"d0": 1e-2, "slice_p": 2}),
    (descend.Prodigy, {"d0": 1e-2, "slice_p": 11}),
    (descend.AdamMini, {"block": "head", "n_heads": 1}),
    (RowMomentum, {}),
)


def prepared(g: Tensor, p: Tensor, options: dict[str, Any]) -> Tensor:
    """The gradient as the stages before the rule leave it."""
    found, value = g.numpy(), p.detach().numpy()
    if "adaptive_grad_clip" in options and found.size:
        found = stages.adaptive_gradient_clip(value, found, options["adaptive_grad_clip"])
    if "centralize_grad" in options:
        found = stages.centralise(found)
    return torch.as_tensor(found).reshape(g.shape)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("options", STAGES, ids=lambda options: "+".join(options))
@pytest.mark.parametrize(("kind", "own"), KINDS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_stages_stand_around_state_of_a_shape_of_its_own(
    kind: Any, own: dict[str, Any], options: dict[str, Any], executor: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES if kind is not RowMomentum else SHAPES[4:]
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    ours, theirs = ([nn.Parameter(x.clone()) for x in start] for _ in range(2))
    before = {name: value for name, value in options.items() if name in ("centralize_grad", "adaptive_grad_clip")}
    after = {name: value for name, value in options.items() if name not in before}
    optimizer = kind(ours, lr=0.1, **own, **options, **EXECUTORS[executor])
    plain = kind(theirs, lr=0.1, **own, **after, foreach=False)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad, q.grad = g, prepared(g, q, before)
        optimizer.step()
        plain.step()
    for p, q, x in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
        assert not p.numel() or not torch.equal(p, x)


def test_a_complex_parameter_has_slices_of_its_reals() -> None:
    p = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j, 0.5j], dtype=torch.complex128))
    q = nn.Parameter(torch.view_as_real(p.detach()).clone())
    for x in (p, q):
        optimizer = descend.Prodigy([x], d0=1e-2, slice_p=4)
        for _ in range(3):
            x.grad = x.detach() * 0.5 + 1
            if x is q:
                x.grad[:, 1] -= 1
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(p.detach()), q.detach(), rtol=1e-12, atol=0)


def test_bytes_of_a_parameter_are_those_that_its_own_group_asks_for() -> None:
    a, b, c = (nn.Parameter(torch.zeros(16, 16)) for _ in range(3))
    optimizer = descend.AdamW([{"params": [a]}, {"params": [b, c], "state_dtype": torch.bfloat16}])
    for p in (a, b, c):
        p.grad = torch.ones_like(p)
    said = [optimizer.state_bytes(p) for p in (a, b, c)]
    optimizer.step()
    assert said == [sum(t.nbytes for t in optimizer.state[p].values()) for p in (a, b, c)]
    assert said[0] > said[1] == said[2]
    assert optimizer.state_bytes(a, optimizer.param_groups[1]) == said[1]
    with pytest.raises(ValueError, match=r"shape \(3,\) is in none of the groups"):
        optimizer.state_bytes(nn.Parameter(torch.zeros(3)))


@pytest.mark.parametrize("wrapped", (False, True))
def test_bytes_of_a_parameter_of_a_mixture(wrapped: bool) -> None:
    a, b = (nn.Parameter(torch.zeros(16, 16)) for _ in range(2))
    optimizer: Any = descend.Mixed([{"params": [a], "rule": "sgd", "momentum": 0.9}, {"params": [b], "rule": "adamw"}])
    slow = 0
    if wrapped:
        optimizer, slow = descend.Lookahead(optimizer), 16 * 16 * 4 + 4
    assert [optimizer.state_bytes(p) - slow for p in (a, b)] == [4 + 1024, 4 + 2048]
