"""SOAP where gradients lack rank: what the paper leaves to rounding is the same wherever it is computed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.linear import eigenbasis, power_step, rounding

STEPS = 20


def gradients(shape: tuple[int, int], rank: int | None, fixed: bool) -> Iterator[Tensor]:
    """Normal numbers; of low rank, always from one column space or from new ones."""
    generator = torch.Generator().manual_seed(5)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    left = normal(shape[0], rank or 1)
    for _ in range(STEPS):
        if rank is None:
            yield normal(*shape)
        else:
            yield (left if fixed else normal(shape[0], rank)) @ normal(rank, shape[1])


def updates(name: str, shape: tuple[int, int], rank: int | None, fixed: bool, noise: float) -> list[Tensor]:
    """The steps that a parameter takes when its gradients carry this relative noise."""
    generator = torch.Generator().manual_seed(9)
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = getattr(descend, name)([p], lr=0.01)
    taken = []
    for g in gradients(shape, rank, fixed):
        before = p.detach().clone()
        p.grad = g * (1 + noise * torch.randn(shape, generator=generator, dtype=torch.float64))
        optimizer.step()
        taken.append(p.detach() - before)
    return taken


@pytest.mark.parametrize("name", ("SOAP", "KLSOAP"))
@pytest.mark.parametrize(
    "shape, rank, fixed",
    (
        ((64, 16), None, False), ((16, 64), None, False), ((64, 64), 3, False), ((64, 64), 3, True),
        ((64, 16), 3, True), ((64, 64), None, False),
    ),
)  # fmt: skip
def test_rounding_of_the_gradients_stays_rounding(
    name: str, shape: tuple[int, int], rank: int | None, fixed: bool
) -> None:
    clean, noisy = (updates(name, shape, rank, fixed, noise) for noise in (0.0, 1e-15))
    for a, b in zip(clean[1:], noisy[1:], strict=True):
        assert (a - b).abs().max() < 1e-9 * a.abs().max()


def turned(basis: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The same eigenspaces of these sizes, each with other vectors."""
    turns = [torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in sizes]
    return basis @ torch.block_diag(*turns)


@pytest.mark.parametrize(
    "values", ((3.0, 3.0, 1.0, 0.0, 0.0, 0.0), (1.0,) * 6, (5.0, 4.0, 3.0, 2.0, 1.0, 0.5), (1.0, *(0.0,) * 5))
)
def test_an_eigenbasis_depends_on_the_eigenspaces_alone(values: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    start = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    sizes = tuple(values.count(value) for value in dict.fromkeys(values))
    bases = []
    for vectors in (start, turned(start, sizes)):
        matrix = vectors * torch.tensor(values, dtype=torch.float64) @ vectors.T
        basis = eigenbasis((matrix + matrix.T) / 2)
        torch.testing.assert_close(basis.T @ basis, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-13)
        torch.testing.assert_close(
            basis.T @ matrix @ basis, torch.diag(torch.tensor(values, dtype=torch.float64)), rtol=0, atol=1e-13
        )
        bases.append(basis)
    torch.testing.assert_close(*bases, rtol=0, atol=1e-12)


def test_axes_stay_axes_where_nothing_has_been_seen() -> None:
    assert torch.equal(eigenbasis(torch.zeros(5, 5)), torch.eye(5))


def test_a_direction_without_a_gradient_keeps_its_vector() -> None:
    torch.manual_seed(0)
    old = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    seen = old[:, :2] @ torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)) @ old[:, :2].T
    torch.testing.assert_close(power_step(old, seen @ old, torch.float64), old, rtol=0, atol=1e-12)


def test_a_power_step_of_full_rank_is_a_qr_decomposition() -> None:
    torch.manual_seed(0)
    old = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    root = torch.randn(6, 6, dtype=torch.float64)
    powered = root @ root.T @ old
    made = power_step(old, powered, torch.float64)
    torch.testing.assert_close(made.abs(), torch.linalg.qr(powered).Q.abs(), rtol=0, atol=1e-12)
    assert ((made * powered).sum(0) > 0).all()


def test_digits_that_count_as_rounding_are_few() -> None:
    assert rounding(4096, torch.float32) < 2e-5
    assert rounding(4096, torch.float64) < 2e-12
