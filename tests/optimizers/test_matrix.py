"""What the rows of the matrix rules cannot show: symmetries, what they are fitted to, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import descend
from descend.lab.bench.traffic import bytes_of

PRECONDITIONERS = ("SOAP", "KLSOAP", "Shampoo", "Kron")


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descend_from(start: Tensor, left: Tensor, right: Tensor, make: Any, steps: int = 12) -> Tensor:
    """Where it arrives if start and gradients are seen through these two matrices."""
    p = nn.Parameter(left @ start @ right)
    optimizer = make([p])
    for step in range(steps):
        p.grad = left @ (matrix(*start.shape, seed=step + 1) * torch.arange(1.0, 6.0)) @ right
        optimizer.step()
    return p.detach()


# Of square matrices, whose factors have full rank from the first gradient on, so that nothing is left open.
@pytest.mark.parametrize(
    "make",
    [
        lambda params: descend.SOAP(params, lr=0.01, precondition_frequency=4),
        lambda params: descend.KLSOAP(params, lr=0.01, precondition_frequency=4),
        lambda params: descend.Shampoo(params, lr=0.01, precondition_frequency=4, grafting=None, eps=1e-3),
    ],
    ids=("SOAP", "KLSOAP", "Shampoo"),
)
def test_a_step_does_not_depend_on_the_coordinates(make: Any) -> None:
    left, right = (torch.linalg.qr(matrix(5, 5, seed=seed)).Q for seed in (-1, -2))
    start = matrix(5, 5)
    here = descend_from(start, torch.eye(5).double(), torch.eye(5).double(), make)
    there = descend_from(start, left, right, make)
    assert (here - start).abs().max() > 0.05
    torch.testing.assert_close(there, left @ here @ right, rtol=1e-9, atol=1e-9)


def test_kron_fits_what_whitens_the_gradient() -> None:
    left = torch.logspace(-1, 1, 4).double()[:, None] * torch.linalg.qr(matrix(4, 4, seed=-1)).Q
    right = torch.diag(torch.tensor([1.0, 3.0, 9.0])).double()
    p = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    optimizer = descend.Kron([p], lr=0.0, momentum=0.0)
    seen, white = [], []
    for step in range(500):
        p.grad = left @ matrix(4, 3, seed=step) @ right
        optimizer.step()
        if step >= 300:
            q_left, q_right = (optimizer.state[p][name] for name in ("Q_0", "Q_1"))
            seen.append(p.grad.flatten())
            white.append((q_left.T @ q_left @ p.grad @ q_right.T @ q_right).flatten())
    before, after = (torch.linalg.eigvalsh(torch.stack(x).T.cov()) for x in (seen, white))
    assert before[-1] / before[0] > 1e5
    assert 0.2 < after[0] < after[-1] < 2


def test_kron_draws_the_same_wherever_a_parameter_stands() -> None:
    def moved(order: tuple[int, ...]) -> dict[int, Tensor]:
        params = {i: nn.Parameter(matrix(4, 3, seed=i)) for i in order}
        optimizer = descend.Kron(params.values(), lr=0.1)
        for step in range(3):
            for i, p in params.items():
                p.grad = matrix(4, 3, seed=10 * step + i)
            optimizer.step()
        return {i: p.detach() for i, p in params.items()}

    all_three, alone = moved((0, 1, 2)), moved((2,))
    assert torch.equal(all_three[2], alone[2])


def test_krons_probability_may_be_a_function_of_the_step() -> None:
    ends = []
    for probability in (0.5, lambda step: 0.5, None):
        p = nn.Parameter(matrix(4, 3))
        optimizer = descend.Kron([p], lr=0.1, preconditioner_update_probability=probability)
        for step in range(4):
            p.grad = matrix(4, 3, seed=step + 1)
            optimizer.step()
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_no_gradient_at_all_moves_nothing(name: str) -> None:
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = getattr(descend, name)([p], lr=0.1, weight_decay=0.0)
    for _ in range(60):
        p.grad = torch.zeros(4, 3)
        optimizer.step()
    assert torch.equal(p, torch.ones(4, 3))
    assert all(torch.isfinite(value).all() for value in optimizer.state[p].values())


@pytest.mark.parametrize("name", ("SOAP", "KLSOAP", "Shampoo"))
def test_only_vectors_are_refused_with_a_word_on_what_to_do(name: str) -> None:
    vectors = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))]
    with pytest.raises(ValueError, match=rf"{name}: none of the 2 parameters \(of shapes \(3,\), \(5,\)\).* AdamW"):
        getattr(descend, name)(vectors)
    getattr(descend, name)([*vectors, nn.Parameter(torch.ones(3, 5))])
    descend.Kron(vectors)


@pytest.mark.parametrize(
    "name, options",
    (
        ("SOAP", {"precondition_frequency": 0}), ("SOAP", {"max_precond_dim": 2.5}), ("SOAP", {"shampoo_beta": 1.0}),
        ("KLSOAP", {"precondition_frequency": 1.5}), ("Shampoo", {"max_preconditioner_dim": 0}),
        ("Shampoo", {"precondition_frequency": 0}), ("Shampoo", {"start_preconditioning_step": 0}),
        ("Shampoo", {"grafting": "sgd"}), ("Shampoo", {"grafting_beta2": 1.0}), ("Shampoo", {"grafting_eps": -1.0}),
        ("Kron", {"momentum": 1.0}), ("Kron", {"memory_save_mode": "two_diag"}), ("Kron", {"precond_init_scale": 0.0}),
        ("Kron", {"preconditioner_update_probability": 0.0}), ("Kron", {"preconditioner_update_probability": "often"}),
        ("Kron", {"mu_dtype": "float8"}), ("Kron", {"precond_dtype": torch.int32}), ("Kron", {"precond_lr": -0.1}),
        ("Kron", {"max_size_triangular": 10.5}), ("Kron", {"flatten_end_dim": 0.5}), ("Kron", {"seed": 1.5}),
    ),
)  # fmt: skip
def test_bad_options_are_named(name: str, options: dict[str, Any]) -> None:
    ((option, value),) = options.items()
    with pytest.raises(ValueError, match=rf"^{name}: {option}=.*expected") as caught:
        getattr(descend, name)([nn.Parameter(torch.ones(4, 4))], **options)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_a_capturable_step_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: capturable=True is not possible: .* host"):
        getattr(descend, name)([nn.Parameter(torch.ones(4, 4))], capturable=True)


@pytest.mark.parametrize(
    "name, options, expected",
    (
        ("SOAP", {}, 6), ("SOAP", {"max_precond_dim": 64}, 2), ("KLSOAP", {}, 6 + 2 / 128), ("Shampoo", {}, 6),
        ("Shampoo", {"max_preconditioner_dim": 32}, 6), ("Kron", {}, 3), ("Kron", {"memory_save_mode": "one_diag"}, 2 + 1 / 128),
        ("Kron", {"memory_save_mode": "all_diag"}, 1 + 2 / 128),
    ),
)  # fmt: skip
def test_state_of_a_square_matrix_in_its_own_sizes(name: str, options: dict[str, Any], expected: float) -> None:
    p = nn.Parameter(torch.ones(128, 128))
    assert getattr(descend, name)([p], **options).state_bytes(p) / p.nbytes == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name, expected", (("SOAP", 8 + 5), ("KLSOAP", 8 + 5), ("Shampoo", 8 + 5), ("Kron", 5 + 4)))
def test_bytes_that_an_ordinary_step_moves(name: str, expected: int) -> None:
    """Parameter, gradient and state are read; bases and roots that are seldom made again are not written."""
    p = nn.Parameter(torch.empty(256, 256, device="meta"))
    assert bytes_of(getattr(descend, name)([p])) / p.nbytes == pytest.approx(expected, abs=0.05)
