"""Small tensors move together, and pieces are as long as the caches bear: neither changes a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import descend
from descend.engine.executors import foreach
from descend.engine.executors.profile import profile
from descend.engine.plan import trial_jobs
from descend.engine.tensorlist import Numbers, TensorList
from descend.terms import cube_root, running_max

SHAPES = ((7,), (5, 3), (2, 3, 2, 2), (), (33,), (foreach.FEW + 1,))


def ended(name: str, **options: Any) -> list[torch.Tensor]:
    """The parameters after four steps; one of them lacks its gradient at the second."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = getattr(descend, name)(params, lr=1e-2, **options)
    for step in range(4):
        for i, p in enumerate(params):
            p.grad = None if step == i == 1 else torch.randn(p.shape, generator=generator)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("name", ("AdamW", "Adam", "SGD", "Lion", "Adan", "MADGRAD", "Adopt", "RMSpropTF", "Adamax"))
def test_elementwise_rules_keep_their_bits_together(name: str) -> None:
    alone, together = ended(name, foreach=False), ended(name)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", ("Lamb", "Lars", "NvNovoGrad", "AdamP", "Adafactor", "Prodigy"))
def test_rules_with_sums_stay_near_together(name: str) -> None:
    options = {"weight_decay": 0.1} if name in ("Lamb", "Lars") else {}
    for a, b in zip(ended(name, foreach=False, **options), ended(name, **options), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_tensors_move_together_where_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    plain = foreach._joined
    monkeypatch.setattr(foreach, "_joined", lambda tensors: joined.append(len(tensors)) or plain(tensors))
    ended("AdamW")
    assert set(joined) == {len(SHAPES) - 1, len(SHAPES) - 2}  # all but the large one, and one without a gradient
    joined.clear()
    ended("AdamW", foreach=False)
    assert not joined


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_the_cube_root_is_near_and_has_the_same_bits_anywhere(dtype: torch.dtype) -> None:
    x = torch.logspace(-35, 35, 20_011, dtype=dtype)
    exact = x.double() ** (1 / 3)
    worst = float(((cube_root(x, 0.0).double() - exact) / exact).abs().max())
    assert worst < (5e-7 if dtype is torch.float32 else 1e-14)
    for start in (1, 3, 17):
        assert torch.equal(cube_root(x[start:].clone(), 1e-6), cube_root(x, 1e-6)[start:])
    largest = torch.finfo(dtype).max
    ends = cube_root(torch.tensor([0.0, largest, math.inf, math.nan], dtype=dtype), 0.0)
    assert float(ends[0]) == 0
    assert math.isclose(float(ends[1]), largest ** (1 / 3), rel_tol=1e-6)
    assert float(ends[2]) == math.inf
    assert math.isnan(float(ends[3]))


def test_a_text_with_more_in_hand_has_shorter_pieces() -> None:
    def held(name: str) -> int:
        optimizer = getattr(descend, name)([nn.Parameter(torch.ones(8))], lr=1e-2)
        (job,) = trial_jobs(optimizer)
        return profile(job.rule, job).held

    assert held("Lion") == 4  # parameter, gradient, momentum, direction
    assert held("AdamW") == 5  # and the root of another average for the direction
    assert held("Lion") < held("AdamW") < held("Adan") < held("MADGRAD")


def test_numbers_are_one_for_each_tensor_of_a_list() -> None:
    tensors = TensorList([torch.ones(3), torch.full((5,), 2.0)])
    norms = torch.linalg.vector_norm(tensors)  # type: ignore[call-overload]
    assert isinstance(norms, Numbers)
    torch.testing.assert_close(norms.stacked, torch.tensor([3**0.5, 20**0.5]))
    ratio = torch.where(norms > 2.0, norms / (3.0, 5.0), 1.0)  # type: ignore[call-overload]
    assert isinstance(ratio, Numbers)
    for scaled in (tensors * ratio, ratio * tensors):
        torch.testing.assert_close(scaled.tensors[1], torch.full((5,), 2 * 20**0.5 / 5))
    torch.testing.assert_close((tensors / norms).tensors[0], torch.ones(3) / 3**0.5)
    largest = running_max(norms, ratio)  # type: ignore[arg-type]
    assert isinstance(largest, Numbers)
    torch.testing.assert_close(largest.stacked, norms.stacked)
