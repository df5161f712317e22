"""Adahessian's estimate: of the diagonal, from random signs that hang on seed, step, parameter and element only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.randomness import rademacher


def test_probes_are_balanced_signs() -> None:
    probes = torch.stack(rademacher([torch.empty(64, 64)] * 16, [(1, step) for step in range(16)]))
    assert torch.equal(probes.abs(), torch.ones_like(probes))
    assert probes.mean().abs() < 0.02
    assert probes.flatten(1).corrcoef().fill_diagonal_(0).abs().max() < 0.1
    for dim in (1, 2):
        assert probes.mean(dim).abs().max() < 0.75


def test_probes_depend_on_every_key() -> None:
    like = torch.empty(1000)
    keys = ((1, 1, 0, 0), (2, 1, 0, 0), (1, 2, 0, 0), (1, 1, 1, 0), (1, 1, 0, 1), (1 << 40, 1, 0, 0))
    probes = rademacher([like] * len(keys), keys)
    assert all(torch.equal(z, rademacher([like], [key])[0]) for z, key in zip(probes, keys, strict=True))
    shares = [(x * y).mean().abs() for i, x in enumerate(probes) for y in probes[:i]]
    assert max(shares) < 0.2


def estimates(n_samples: int, seed: int = 1, split: bool = False, **options: Any) -> tuple[Tensor, Tensor]:
    """The estimate on ½pᵀAp with a dense A, and A's diagonal."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    matrix = half @ half.T
    params = [nn.Parameter(x) for x in torch.ones(12, dtype=torch.float64).split(6 if split else 12)]
    optimizer = descend.Adahessian(params, lr=0.0, n_samples=n_samples, seed=seed, **options)
    p = torch.cat(list(params))
    grads = torch.autograd.grad(p @ matrix @ p / 2, params, create_graph=True)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    return torch.cat([optimizer.state[param]["hessian"] for param in params]), matrix.diagonal()


@pytest.mark.parametrize("split", (False, True), ids=("one parameter", "two"))
def test_the_estimate_is_the_diagonal_on_average(split: bool) -> None:
    found, diagonal = estimates(800, split=split)
    assert (found - diagonal).abs().max() < 0.1 * diagonal.max()
    one, _ = estimates(1, split=split)
    assert (one - diagonal).abs().max() > 0.5 * diagonal.max()


def test_the_seed_decides() -> None:
    assert torch.equal(estimates(1, seed=3)[0], estimates(1, seed=3)[0])
    assert not torch.equal(estimates(1, seed=3)[0], estimates(1, seed=4)[0])


def test_a_diagonal_hessian_is_found_exactly() -> None:
    param = nn.Parameter(torch.linspace(0.5, 2, 8, dtype=torch.float64))
    optimizer = descend.Adahessian([param], lr=0.0)
    (param.grad,) = torch.autograd.grad((param**4).sum(), [param], create_graph=True)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["hessian"], 12 * param.detach() ** 2)


def test_estimates_are_kept_between_their_steps() -> None:
    param = nn.Parameter(torch.linspace(0.5, 2, 8, dtype=torch.float64))
    optimizer = descend.Adahessian([param], lr=0.1, update_each=3)
    seen = []
    for _ in range(6):
        (param.grad,) = torch.autograd.grad((param**4).sum(), [param], create_graph=True)
        optimizer.step()
        seen.append(optimizer.state[param]["hessian"].clone())
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[3])
    assert torch.equal(seen[3], seen[5])


@pytest.mark.parametrize("shape", ((4, 3, 3, 3), (4, 3, 3)))
def test_convolutions_average_over_their_kernel(shape: tuple[int, ...]) -> None:
    param = nn.Parameter(
        torch.linspace(-2, 2, 4 * 3 * 9 if len(shape) == 4 else 36, dtype=torch.float64).reshape(shape)
    )
    optimizer = descend.Adahessian([param], lr=0.0, avg_conv_kernel=True)
    (param.grad,) = torch.autograd.grad((param**3).sum(), [param], create_graph=True)
    optimizer.step()
    exact = 6 * param.detach()
    expected = exact.abs().mean((2, 3), keepdim=True).expand(shape) if len(shape) == 4 else exact
    torch.testing.assert_close(optimizer.state[param]["hessian"], expected)
