"""Running an optimizer and its oracle side by side on parameters of every awkward shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import descend
from oracles import ORACLES

# 0-d, empty, singletons, vectors, matrices (one large enough to be factored), convolutions, one of them large too.
SHAPES = ((), (0,), (1,), (5,), (1, 1), (1, 7), (6, 4), (20, 18), (4, 3, 3, 3), (18, 17, 2, 2))
STEPS = 50
ONE_LR = {"Prodigy"}  # its distance is measured with one lr, which the paper's algorithm has for all groups
LATE = 3  # this parameter of the second group gets its first gradient late


def initial(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)) for shape in SHAPES]


def gradient(rng: np.random.Generator, p: np.ndarray, step: int) -> np.ndarray:
    """Noise around a drift that differs from element to element, of a size that changes from step to step."""
    drift = np.where(np.arange(p.size) % 3 == 1, -1.0, 1.0).reshape(p.shape)
    return np.asarray((rng.normal(size=p.shape) + drift + 0.1 * p) * 10 ** np.sin(step))


def schedule(step: int, shape_index: int, group: int) -> str:
    """What happens to a gradient: most are there, some are missing, zero, or late."""
    if group == 1 and shape_index == LATE and step < 9:
        return "none"
    if (step, shape_index) in {(4, 6), (5, 6), (7, 3)}:
        return "none"
    if (step, shape_index) in {(0, 7), (3, 2), (11, 8)}:
        return "zero"
    return "some"


@dataclass
class Run:
    """An optimizer after its steps, its parameters before, and the oracle after the same steps."""

    optimizer: torch.optim.Optimizer
    groups: list[list[Tensor]]
    before: list[list[np.ndarray]]
    oracle: Any
    still: bool
    largest: dict[tuple[int, int, str], float]

    def errors(self) -> dict[str, float]:
        """Largest difference to the oracle for each parameter and state, over how far it moved."""
        found: dict[str, float] = {}
        for i, group in enumerate(self.groups):
            for j, p in enumerate(group):
                expected = self.oracle.groups[i]["params"][j]
                if p.numel() == 0:
                    continue
                key = f"group {i} shape {tuple(p.shape)}"
                found[key] = relative(p, expected, 0.0 if self.still else self.before[i][j])
                ours, theirs = self.optimizer.state[p], self.oracle.state.get((i, j), {})
                for name, value in theirs.items():
                    if name in ours and ours[name] is not None and not isinstance(value, (str, bool)):
                        found[f"{key} {name}"] = relative(ours[name], value, 0.0, self.largest[i, j, name])
        return found

    def moved(self) -> float:
        """The middle parameter's displacement, as a share of its largest element."""
        if self.still:
            return 1.0
        shares = [
            np.abs(p.detach().double().cpu().numpy() - b).max() / np.abs(b).max()
            for group, before in zip(self.groups, self.before, strict=True)
            for p, b in zip(group, before, strict=True)
            if b.size
        ]
        return float(np.median(shares))


def relative(ours: Any, expected: Any, start: Any, least_scale: float = 0.0) -> float:
    ours = np.asarray(ours.detach().double().cpu().numpy() if isinstance(ours, Tensor) else ours, np.float64)
    expected = np.asarray(expected, np.float64).reshape(ours.shape)
    scale = max(np.abs(expected - start).max(), least_scale) if expected.size else 0.0
    return float(np.abs(ours - expected).max() / (scale if scale > 0 else 1.0))


class Fixed(dict[str, Any]):
    """Options as part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


@dataclass
class Course:
    """What an oracle does: the gradients are those at its own parameters, so that every optimizer gets the same."""

    start: list[list[np.ndarray]]
    half: dict[str, float]
    gradients: list[list[list[np.ndarray | None]]]
    oracle: Any
    largest: dict[tuple[int, int, str], float]


def halves_lr(step: int) -> bool:
    return step == 20


@functools.lru_cache(maxsize=4)
def course(name: str, options: Fixed, dtype: torch.dtype, steps: int) -> Course:
    """Two groups of every shape, the second with half the lr; lr halves for the first group on the way."""
    start = [initial(1), initial(2)]
    start = [[np.asarray(torch.tensor(p).to(dtype).double()) for p in group] for group in start]
    half = {} if options["lr"] is None or name in ONE_LR else {"lr": options["lr"] / 2}
    oracle = ORACLES[name]([{"params": start[0]}, {"params": start[1], **half}], **options)
    rng = np.random.default_rng(3)
    largest: dict[tuple[int, int, str], float] = {}
    gradients = []
    for step in range(steps):
        if halves_lr(step) and options["lr"] is not None:
            for group in range(2 if name in ONE_LR else 1):
                oracle.groups[group]["lr"] *= 0.5
        grads: list[list[np.ndarray | None]] = [[], []]
        for i in range(2):
            for j in range(len(start[i])):
                noise = gradient(rng, oracle.groups[i]["params"][j], step)
                noise = np.asarray(torch.tensor(noise).to(dtype).double())
                what = schedule(step, j, i)
                grads[i].append(None if what == "none" else noise * 0 if what == "zero" else noise)
        oracle.step(grads)
        gradients.append(grads)
        for where, state in oracle.state.items():
            for key, value in state.items():
                if not isinstance(value, (str, bool)) and np.size(value):
                    place = (*where, key)
                    largest[place] = max(largest.get(place, 0.0), float(np.abs(value).max()))
    return Course(start, half, gradients, oracle, largest)


def run(
    name: str,
    lr: float | None,
    options: dict[str, Any],
    dtype: torch.dtype = torch.float64,
    steps: int = STEPS,
    between: Callable[[torch.optim.Optimizer, int], torch.optim.Optimizer] | None = None,
    device: str = "cpu",
    **engine: Any,
) -> Run:
    """An optimizer on the course of its oracle, which all executors share."""
    options = {"lr": lr, **options}
    still = options.pop("still", False)
    known = course(name, Fixed(options), dtype, steps)
    params = [[torch.nn.Parameter(torch.tensor(p, dtype=dtype, device=device)) for p in group] for group in known.start]
    optimizer = getattr(descend, name)(
        [{"params": params[0]}, {"params": params[1], **known.half}], **options, **engine
    )
    for step in range(steps):
        if halves_lr(step) and options["lr"] is not None:
            for group in range(2 if name in ONE_LR else 1):
                optimizer.param_groups[group]["lr"] *= 0.5
        for group, grads in zip(params, known.gradients[step], strict=True):
            for p, g in zip(group, grads, strict=True):
                p.grad = None if g is None else torch.tensor(g, dtype=dtype, device=device)
        optimizer.step()
        if between is not None:
            optimizer = between(optimizer, step)
    return Run(optimizer, params, known.start, known.oracle, still, known.largest)
