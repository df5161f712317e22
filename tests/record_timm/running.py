"""A run of timm's, with what it draws at random handed in or noted."""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from record_timm.problem import DTYPE_OPTIONS, HALVE_LR_BEFORE, KRON_SEED, NOISE, STEPS, TIMM, Options, Workload


def load_timm() -> types.ModuleType:
    """timm.optim alone: importing its parents would ask for torchvision."""
    if version("timm") != TIMM:
        raise SystemExit(f"timm {version('timm')} is installed, the recordings are of timm {TIMM}")
    spec = importlib.util.find_spec("timm")
    root = Path(str(spec and spec.origin)).parent
    for name, folder in (("timm", root), ("timm.models", root / "models")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
    # Layer decay asks the models for this, and nothing recorded here uses layer decay.
    sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]
    optim = importlib.import_module("timm.optim")
    # Kron compiles its helpers: minutes a shape, for the same numbers.
    sys.modules["timm.optim.kron"].has_dynamo = False  # type: ignore[attr-defined]
    return optim


def optimizer_class(optim: types.ModuleType, name: str) -> Any:
    return importlib.import_module("timm.optim.kron").Kron if name == "Kron" else getattr(optim, name)


@contextmanager
def float64_inside() -> Iterator[None]:
    """Lift the places where timm rounds to a lower precision, so that the same mathematics can be compared exactly."""
    kron, muon = (importlib.import_module(f"timm.optim.{name}") for name in ("kron", "muon"))

    def solve(x: Tensor, a: Tensor) -> Tensor:
        rows: Tensor = torch.linalg.solve_triangular(a, x.reshape(-1, x.size(-1)), upper=True, left=False)
        return rows.reshape_as(x)

    newton_schulz = partial(muon.zeropower_via_newtonschulz, dtype=torch.float64)
    with (
        patch.object(kron, "_solve_triangular_right", solve),
        patch.object(muon, "zeropower_via_newtonschulz", newton_schulz),
        patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield


class LoggedRandom(random.Random):
    """Remembers what it drew: Kron takes its random weight decay from it."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.drawn: list[float] = []

    # Named again because Python draws integers in another way in a class that overrides `random` alone.
    getrandbits = random.Random.getrandbits

    def random(self) -> float:
        self.drawn.append(super().random())
        return self.drawn[-1]


class KronProbes:
    """Hands Kron known probes in place of its random ones and notes when it updates and balances."""

    def __init__(self, optimizer: Any, params: Sequence[Tensor], workload: Workload, probes: np.ndarray) -> None:
        self.optimizer, self.params, self.workload, self.probes = optimizer, params, workload, probes
        self.step = 0
        self.log = {key: np.zeros((STEPS, len(params)), bool) for key in ("updated", "balanced")}
        optimizer.rng = LoggedRandom(KRON_SEED)
        optimizer._calc_A_and_conjB = partial(self.update, optimizer._calc_A_and_conjB)
        optimizer._balance_Q = partial(self.balance, optimizer._balance_Q)

    def owner(self, factors: Any) -> int:
        state = self.optimizer.state
        return next(i for i, p in enumerate(self.params) if state.get(p, {}).get("Q") is factors)

    def update(self, original: Any, expression: str, gradient: Tensor, factors: Any, probe: Tensor) -> Any:
        index = self.owner(factors)
        self.log["updated"][self.step, index] = True
        known = torch.from_numpy(self.probes[self.step, self.workload.spans[index]] / 16)
        return original(expression, gradient, factors, known.to(probe.dtype).reshape(probe.shape))

    def balance(self, original: Any, factors: Any) -> Any:
        self.log["balanced"][self.step, self.owner(factors)] = True
        return original(factors)

    def arrays(self, workload: Workload, stochastic: bool) -> dict[str, np.ndarray]:
        arrays = dict(self.log)
        if stochastic:
            draws = np.full((STEPS, len(self.params)), np.nan)
            present = [
                (t, i) for t in range(STEPS) for i in range(len(self.params)) if workload.missing.get(t + 1) != i
            ]
            for (t, i), value in zip(present, self.optimizer.rng.drawn[1::2], strict=True):
                draws[t, i] = value
            arrays["decay_draws"] = draws
        return arrays


class HessianLog:
    """Notes Adahessian's estimate before any averaging, and the gradients it goes with."""

    def __init__(self, optimizer: Any, params: Sequence[Tensor], workload: Workload) -> None:
        self.params, self.step = params, 0
        self.workload = workload
        self.arrays = {key: np.zeros_like(workload.gradients, dtype=np.float64) for key in ("gradients", "hessian")}
        self.original = optimizer.set_hessian
        optimizer.set_hessian = self.set_hessian

    def set_hessian(self) -> None:
        self.original()
        for p, span in zip(self.params, self.workload.spans, strict=True):
            if p.grad is not None:
                self.arrays["gradients"][self.step, span] = p.grad.detach().reshape(-1).numpy()
                self.arrays["hessian"][self.step, span] = p.hess.reshape(-1).numpy()  # type: ignore[attr-defined]


def set_gradients(workload: Workload, params: Sequence[Tensor], step: int) -> None:
    given = workload.split(workload.gradients[step - 1])
    present = [i for i in range(len(params)) if workload.missing.get(step) != i]
    for p in params:
        p.grad = None
    if workload.curvature is None:
        for i in present:
            params[i].grad = given[i]
        return
    square, fourth = (workload.split(workload.curvature[key]) for key in ("square", "fourth"))
    losses = []
    for i in present:
        p, coupling = params[i], float(workload.curvature["coupling"][i])
        loss = (square[i] * p**2 + fourth[i] * p**4 + given[i] * p).sum() + coupling * p.sum() ** 2
        losses.append(loss * (0.0 if (step, i) == (3, len(params) - 1) else NOISE[step - 1]))
    gradients = torch.autograd.grad(sum(losses), [params[i] for i in present], create_graph=True)  # type: ignore[arg-type]
    for i, gradient in zip(present, gradients, strict=True):
        params[i].grad = gradient


def flatten(params: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([p.detach().reshape(-1) for p in params]).numpy().copy()


def constructor_options(options: Options) -> dict[str, Any]:
    return {k: getattr(torch, v) if k in DTYPE_OPTIONS and v else v for k, v in options.items()}


@dataclass
class Run:
    """A run in progress: its parameters, its optimizer, and what was kept on the way."""

    workload: Workload
    params: list[Tensor]
    optimizer: Any
    log: Any = None
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    step: int = 0

    def apply_update(self, until: int, scheduled: bool = True) -> None:
        for step in range(self.step + 1, until + 1):
            if scheduled and step == HALVE_LR_BEFORE and self.optimizer.param_groups[0]["lr"] is not None:
                self.optimizer.param_groups[0]["lr"] *= 0.5
            set_gradients(self.workload, self.params, step)
            if self.log is not None:
                self.log.step = step - 1
            self.optimizer.step()
            self.kept[step] = flatten(self.params)
            self.step = step

    @property
    def displacement(self) -> float:
        """How far the parameter that moved least has moved, relative to its largest element."""
        return displacement(self.workload, self.kept[self.step][self.workload.sample])


def displacement(workload: Workload, sampled: np.ndarray) -> float:
    start, ratios = workload.start.astype(np.float64), []
    moved = np.abs(sampled - start[workload.sample])
    for span in workload.spans:
        mine = (workload.sample >= span.start) & (workload.sample < span.stop)
        ratios.append(moved[mine].max() / np.abs(start[span]).max())
    return float(min(ratios))
