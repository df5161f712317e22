"""Tasks that train in a second: multilayer perceptrons, tables, and problems whose difficulty is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from descend.lab.task import Data, Task, accuracy


def tasks(digits: Callable[[], Data]) -> Iterator[Task]:
    """Every small task; `digits` reads the handwritten digits."""

    def pictures() -> Data:
        data = digits()
        flat, val = data.inputs.flatten(1), data.val_inputs.flatten(1)
        return Data(flat, flat, val, val, data.note)

    mlp, autoencoder = "a perceptron of three layers on handwritten digits", "an autoencoder of handwritten digits"
    yield Task(
        "digits-mlp", perceptron, digits, mlp,
        metric=accuracy, metric_name="accuracy", higher_is_better=True, target=0.95, steps=100, batch=64,
    )  # fmt: skip
    yield Task("digits-autoencoder", Autoencoder, pictures, autoencoder, target=0.1, steps=200, batch=64)
    yield Task(
        "tabular", tabular_model, table, "a perceptron on measurements of tumours",
        metric=accuracy, metric_name="accuracy", higher_is_better=True, target=0.96, steps=100, batch=32,
    )  # fmt: skip
    yield Task(
        "matrix", Factors, ratings, "the factors of a matrix of which a part is seen", target=0.05, steps=300, batch=128
    )
    yield Task(
        "least-squares",
        line,
        ill_conditioned,
        "least squares of condition number 10,000",
        target=0.02,
        steps=300,
        batch=64,
    )
    yield Task("noisy", noisy_model, noisy, "a regression under heavy-tailed noise", target=0.5, steps=200, batch=16)
    yield Task("physics", Law, swings, "the law of a damped pendulum from its motion", target=0.01, steps=150, batch=32)


def perceptron() -> nn.Module:
    """Two hidden layers for 8x8 images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))


class Autoencoder(nn.Sequential):
    """64 pixels through 8 numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8), nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64))


def table() -> Data:
    """scikit-learn's breast cancer table, 30 measurements, standardised; a third for validation."""
    from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped]

    bunch = load_breast_cancer()
    inputs = torch.tensor(bunch.data, dtype=torch.float64)
    targets = torch.tensor(bunch.target, dtype=torch.long)
    shuffled = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    val, train = shuffled[:190], shuffled[190:]
    inputs = ((inputs - inputs[train].mean(0)) / inputs[train].std(0)).float()
    note = f"scikit-learn's breast cancer table: {len(train)} rows to train on, {len(val)} for validation."
    return Data(inputs[train], targets[train], inputs[val], targets[val], note)


def tabular_model() -> nn.Module:
    """Two hidden layers with layer norm."""
    return nn.Sequential(
        nn.Linear(30, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 2)
    )


def made(inputs: Tensor, targets: Tensor, note: str) -> Data:
    """Made examples, the last fifth of them for validation."""
    cut = len(inputs) * 4 // 5
    note = f"{note} {cut:,} examples to train on, {len(inputs) - cut:,} for validation."
    return Data(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:], note)


class Factors(nn.Module):
    """Two tables of vectors; an entry of the matrix is the product of a row's and a column's."""

    def __init__(self, rows: int = 120, columns: int = 80, rank: int = 8) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(rows, rank), nn.Embedding(columns, rank)
        nn.init.normal_(self.rows.weight, std=0.1)
        nn.init.normal_(self.columns.weight, std=0.1)

    def forward(self, places: Tensor) -> Tensor:
        """The entries at places `[n, 2]`."""
        return (self.rows(places[:, 0]) * self.columns(places[:, 1])).sum(-1)


def ratings() -> Data:
    """Half of the entries of a matrix of rank 4, with a little noise."""
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(120, 4, generator=generator) @ torch.randn(4, 80, generator=generator) / 2
    seen = torch.randperm(full.numel(), generator=generator)[:4800]
    places = torch.stack([seen // 80, seen % 80], 1)
    values = full.flatten()[seen] + 0.1 * torch.randn(len(seen), generator=generator)
    return made(places, values, "Half of the entries of a matrix of rank 4.")


def line() -> nn.Module:
    """A linear map without bias, from zero."""
    model = nn.Linear(50, 8, bias=False)
    nn.init.zeros_(model.weight)
    return model


def ill_conditioned() -> Data:
    """A linear problem whose inputs have variances from 1 to 1e-4 along directions that are not the axes."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(50, 50, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0, -2, 50, dtype=torch.float64)
    inputs = torch.randn(1500, 50, generator=generator, dtype=torch.float64) * scales @ turn
    # Every direction has the same share in the targets, the flat ones too.
    signs = torch.randn(50, 8, generator=generator, dtype=torch.float64)
    targets = inputs @ (turn.T @ (signs / scales[:, None])) / 50**0.5
    return made(inputs.float(), targets.float(), "A linear problem, made.")


def noisy_model() -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 1))


def noisy() -> Data:
    """A smooth function whose training targets have noise of Student's t with 2 degrees; validation has none."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4000, 10, generator=generator)
    clean = (inputs[:, :3].sin().sum(1) + 0.5 * inputs[:, 3] * inputs[:, 4])[:, None]
    normal, pair = (torch.randn(4000, n, generator=generator) for n in (1, 2))
    heavy = normal / (pair.square().sum(1, keepdim=True) / 2).sqrt()
    data = made(inputs, clean + heavy, "A smooth function under heavy-tailed noise, made; validation is free of it.")
    return replace(data, val_targets=clean[len(data.inputs) :])


class Law(nn.Module):
    """An unknown acceleration, integrated by Runge and Kutta's fourth-order rule."""

    def __init__(self, steps: int = 10, step: float = 0.2) -> None:
        super().__init__()
        self.steps, self.step = steps, step
        self.force = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))

    def slope(self, state: Tensor) -> Tensor:
        """How angle and velocity change."""
        return torch.cat([state[:, 1:], self.force(state)], 1)

    def forward(self, start: Tensor) -> Tensor:
        """Angle and velocity after each step, `[n, steps, 2]`."""
        return torch.stack(list(motion(self.slope, start, self.steps, self.step)), 1)


def motion(slope: Callable[[Tensor], Tensor], state: Tensor, steps: int, step: float) -> Iterator[Tensor]:
    """The states that follow a start."""
    for _ in range(steps):
        a = slope(state)
        b = slope(state + step / 2 * a)
        c = slope(state + step / 2 * b)
        d = slope(state + step * c)
        state = state + step / 6 * (a + 2 * b + 2 * c + d)
        yield state


def swings() -> Data:
    """Motions of a damped pendulum from many starts."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(800, 2, generator=generator)

    def slope(state: Tensor) -> Tensor:
        return torch.stack([state[:, 1], -state[:, 0].sin() - 0.2 * state[:, 1]], 1)

    return made(start, torch.stack(list(motion(slope, start, 10, 0.2)), 1), "A damped pendulum, computed.")
