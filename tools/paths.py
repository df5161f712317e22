"""Paths of optimizers on two surfaces of two parameters, each with the best learning rate of a grid."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

import descend

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STEPS = 200
RATES = [10 ** (e / 2) for e in range(-8, 3)]
Surface = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Problem:
    """A surface, where paths start, and how noisy its gradients are."""

    title: str
    loss: Surface
    start: tuple[float, float]
    noise: float
    window: tuple[float, float, float, float]


PROBLEMS = (
    Problem("Rosenbrock", lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2, (-1.5, 1.5), 0.0, (-2, 2, -1, 3)),
    Problem("Quadratic 1:50 with noise", lambda x, y: 0.5 * (x**2 + 50 * y**2), (-2.5, 1.0), 1.0, (-3, 1, -1.5, 1.5)),
)


def make(kind: type, params: list[torch.nn.Parameter], lr: float) -> Any:
    """The optimizer, with its default options but for the learning rate; wrappers wrap AdamW and SGD."""
    if kind is descend.Lookahead:
        return descend.Lookahead(descend.AdamW(params, lr=lr))
    if kind is descend.SAM:
        return descend.SAM(descend.SGD(params, lr=lr))
    decays = "weight_decay" in inspect.signature(kind).parameters
    return kind(params, lr=lr, **({"weight_decay": 0.0} if decays else {}))


def path(kind: type, problem: Problem, lr: float) -> np.ndarray:
    """The points that the optimizer visits."""
    generator = torch.Generator().manual_seed(0)
    matrix = getattr(kind, "reach", None) == "matrix"
    p = torch.nn.Parameter(torch.tensor(problem.start).reshape((1, 2) if matrix else (2,)))
    optimizer = make(kind, [p], lr)
    noise = problem.noise * torch.randn(STEPS, 2, generator=generator)
    torch.manual_seed(0)
    points = [p.detach().flatten().tolist()]
    for step in range(STEPS):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            q = p.flatten()
            loss = problem.loss(q[0], q[1]) + (noise[step] * q).sum()
            loss.backward(create_graph=kind is descend.Adahessian)
            return loss

        optimizer.step(closure)
        points.append(p.detach().flatten().tolist())
        if not all(math.isfinite(x) and abs(x) < 1e3 for x in points[-1]):
            break
    return np.array(points)


def score(points: np.ndarray, problem: Problem) -> float:
    """The mean loss of the last quarter; infinite for a path that diverged."""
    if len(points) <= STEPS:
        return math.inf
    tail = points[-STEPS // 4 :]
    return float(np.mean(problem.loss(tail[:, 0], tail[:, 1])))


@functools.cache
def best(kind: type, problem: Problem) -> tuple[float, np.ndarray]:
    """The learning rate of the grid with the least loss at the end, and its path."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = [(lr, path(kind, problem, lr)) for lr in RATES]
    return min(tried, key=lambda run: score(run[1], problem))


def draw(kind: type, name: str, target: Path) -> None:
    """Write the picture of one optimizer's paths with SGD's and Adam's."""
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 8}):
        figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
        for axis, problem in zip(axes, PROBLEMS, strict=True):
            left, right, bottom, top = problem.window
            x, y = np.meshgrid(np.linspace(left, right, 80), np.linspace(bottom, top, 80))
            axis.contour(x, y, np.log10(problem.loss(x, y) + 1e-2), levels=12, colors="0.85", linewidths=0.6)
            others = [(descend.SGD, "SGD", "tab:green"), (descend.Adam, "Adam", "tab:orange")]
            for rule, label, colour in [*(o for o in others if o[0] is not kind), (kind, name, "tab:blue")]:
                lr, points = best(rule, problem)
                axis.plot(*points.T, color=colour, lw=1.0, label=f"{label}, lr {lr:.2g}")
                axis.plot(*points[-1], "o", color=colour, ms=3)
            axis.set(xlim=(left, right), ylim=(bottom, top), title=problem.title)
            axis.legend(loc="upper right", fontsize=6)
        figure.savefig(target, format="svg", metadata={"Date": None})
        plt.close(figure)
