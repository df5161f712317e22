"""Parity with timm 1.0.31: recorded trajectories, factory names, checkpoints; see data/timm/README.md."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import descend
from descend.catalogue import create_optimizer_v2
from descend.engine.context import Known
from descend.engine.job import Job
from descend.optimizers import adahessian, kron
from helpers import DATA

TIMM = DATA / "timm"
INDEX = json.loads((TIMM / "index.json").read_text())
REGISTRY = json.loads((TIMM / "registry.json").read_text())
# timm rounds to these inside a step; the same cases with these places lifted to float64 are held to the strict bound.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-2, "bfloat16": 0.15}
# What timm keeps beside the algorithm's own state, or derives.
NOT_STATE = {"RMS", "hessian step", "exp_avg_lr_2", "update_counter", "use_muon"}
WITHOUT_STEPS = {"Lars", "SGDP"}
WITHOUT_EFFECT = {"differentiable", "verbose"}


@functools.cache
def arrays(name: str) -> Any:
    return dict(np.load(TIMM / f"{name}.npz"))


class Workload:
    """A recorded problem: where parameters start, and the gradients that they are given."""

    def __init__(self, name: str) -> None:
        self.about = about = INDEX["workloads"][name]
        stored = arrays("workloads")
        self.shapes = [tuple(shape) for shape in about["shapes"]]
        self.missing = {tuple(pair) for pair in about["missing"]}
        start = stored[about["start"]].astype(np.float64)
        gradients = None if name == "curved" else stored[about["gradients"]].astype(np.float64)
        if "params" in about:
            whole = INDEX["workloads"]["main"]["shapes"]
            ends = np.cumsum([int(np.prod(shape)) for shape in whole])
            taken = np.concatenate([np.arange(ends[i] - int(np.prod(whole[i])), ends[i]) for i in about["params"]])
            start, gradients = start[taken], None if gradients is None else gradients[:, taken]
        self.start, self.gradients = start, gradients
        self.sample = stored[about["sample"]] if "sample" in about else np.arange(start.size)

    def split(self, flat: np.ndarray) -> list[Tensor]:
        sizes = [int(np.prod(shape)) for shape in self.shapes]
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return [torch.from_numpy(part.copy()).reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        return [nn.Parameter(value) for value in self.split(self.start)]

    def groups(self, params: Sequence[nn.Parameter], lr: float | None, decay: float, extra: Sequence[Any]) -> list[Any]:
        """Two groups, the second with half the learning rate and decay."""
        half = {} if lr is None else {"lr": lr / 2}
        first, second = ([params[i] for i in group] for group in self.about["groups"])
        return [
            {"params": first, "weight_decay": decay, **extra[0]},
            {"params": second, "weight_decay": decay / 2, **half, **extra[1]},
        ]


@functools.cache
def workload(name: str) -> Workload:
    return Workload(name)


class Injected:
    """What timm drew at random, in place of our own draws."""

    def __init__(self, params: Sequence[Tensor], load: Workload, recorded: dict[str, np.ndarray]) -> None:
        self.load, self.recorded, self.step = load, recorded, 0
        self.places = {p: i for i, p in enumerate(params)}


class Estimates(Injected):
    """Adahessian's recorded estimates; its recorded gradients stand for a loss."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *given: Any) -> None:
        super().__init__(*given)
        monkeypatch.setattr(adahessian, "_estimates", self.estimate)

    def estimate(self, jobs: Sequence[Job], places: Sequence[int]) -> list[Tensor]:
        hessian = self.load.split(self.recorded["hessian"][self.step - 1])
        return [hessian[self.places[job.local_param]] for job in jobs]


class Draws(Injected):
    """Kron's recorded probes, when it balanced, and its random weight decay. What is left is no matter of chance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *given: Any) -> None:
        super().__init__(*given)
        monkeypatch.setattr(descend.Kron, "before_step", lambda jobs, groups: self.draw(jobs))
        monkeypatch.setattr(kron, "probe", self.probe)

    def draw(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            at = self.step - 1, self.places[job.local_param]
            assert job.known["fits"] == self.recorded["updated"][at]
            drawn = {"place": at[1], "balances": bool(self.recorded["balanced"][at])}
            if "decay_draws" in self.recorded:
                drawn["decay_share"] = 2 * float(self.recorded["decay_draws"][at])
            job.known = {**job.known, **drawn}

    def probe(self, like: Tensor, k: Known) -> Tensor:
        probes = arrays("workloads")["probes"][self.step - 1, : self.load.start.size] / 16
        return self.load.split(probes)[k.place].reshape(like.shape)


def inject(
    monkeypatch: pytest.MonkeyPatch, optimizer: Any, params: Sequence[Tensor], load: Workload, file: str, name: str
) -> Injected | None:
    """Give an optimizer what timm drew in this recording."""
    recorded = {
        key.removeprefix(f"{name}|"): value for key, value in arrays(file).items() if key.startswith(f"{name}|")
    }
    if isinstance(optimizer, descend.Adahessian):
        return Estimates(monkeypatch, params, load, recorded)
    if isinstance(optimizer, descend.Kron):
        return Draws(monkeypatch, params, load, recorded)
    return None


def run(
    optimizer: Any,
    params: Sequence[nn.Parameter],
    load: Workload,
    steps: range,
    halve_before: int = 0,
    injected: Injected | None = None,
    missing: bool = True,
) -> dict[int, np.ndarray]:
    """Take these steps; all parameters after each, flat."""
    after = {}
    for step in steps:
        if step == halve_before and optimizer.param_groups[0]["lr"] is not None:
            optimizer.param_groups[0]["lr"] *= 0.5
        flat = load.gradients if load.gradients is not None else injected.recorded["gradients"]
        for i, (p, g) in enumerate(zip(params, load.split(flat[step - 1]), strict=True)):
            p.grad = None if missing and (step, i) in load.missing else g
        if injected:
            injected.step = step
        optimizer.step()
        after[step] = torch.cat([p.detach().reshape(-1) for p in params]).numpy()
    return after


def worst(load: Workload, found: np.ndarray, expected: np.ndarray, sample: np.ndarray) -> float:
    """Largest difference of any parameter over how far it has moved."""
    start, errors = load.start, []
    ends = np.cumsum([int(np.prod(shape)) for shape in load.shapes])
    owner = np.searchsorted(ends, sample, side="right")
    for i in range(len(load.shapes)):
        mine = owner == i
        at = start[sample[mine]]
        # A step of a millionth of the parameter (a warm-up's first) leaves float64 ten digits, not sixteen.
        moved = max(np.abs(expected[mine] - at).max(), 1e-3 * np.abs(at).max())
        errors.append(np.abs(found[sample[mine]] - expected[mine]).max() / moved)
    return float(max(errors))


def options_of(case: dict[str, Any], key: str) -> dict[str, Any]:
    dtypes = {"mu_dtype", "precond_dtype", "momentum_dtype"}
    kwargs = {name: value for name, value in case.get(key, {}).items() if name not in {"foreach", *WITHOUT_EFFECT}}
    kwargs = {name: getattr(torch, value) if name in dtypes and value else value for name, value in kwargs.items()}
    return {name: _tuples(value) for name, value in kwargs.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def make(case: dict[str, Any], load: Workload, params: Sequence[nn.Parameter], **executor: Any) -> Any:
    """Our optimizer for a recorded case."""
    name = case.get("base", case["class"])
    options = options_of(case, "base_kwargs" if "base" in case else "kwargs")
    decay = options.pop("weight_decay", INDEX["weight_decay"][0])
    extra = [options_of({"group": group}, "group") for group in case.get("group_kwargs", [{}, {}])]
    groups = load.groups(params, case["lr"], decay, extra)
    optimizer = getattr(descend, name)(groups, lr=case["lr"], weight_decay=decay, **options, **executor)
    return descend.Lookahead(optimizer, **options_of(case, "kwargs")) if "base" in case else optimizer


def tolerance(case: dict[str, Any]) -> float:
    return TOLERANCE["float64" if case.get("lifted") else case["precision"]]


def same_as_timm(name: str) -> Any:
    return pytest.mark.capability("timm", optimizer=getattr(descend, name).__name__)


# -------------------------------------------------------------------------------- trajectories

CASES = [pytest.param(label, id=label, marks=same_as_timm(case["class"])) for label, case in INDEX["cases"].items()]


@pytest.mark.parametrize("label", CASES)
def test_trajectories(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, name = INDEX["cases"][label], label.split("/", 1)[1]
    load, file = workload(case["workload"]), arrays(case["class"])
    for foreach in (False, True):
        params = load.parameters()
        optimizer = make(case, load, params, foreach=foreach)
        injected = inject(monkeypatch, optimizer, params, load, case["class"], name)
        halve = INDEX["halve_group_0_lr_before_step"]
        after = run(optimizer, params, load, range(1, 13), halve, injected)
        for row, step in zip(file[name], INDEX["steps"], strict=True):
            assert worst(load, after[step], row, load.sample) < tolerance(case), f"step {step}"
        if f"{name}|full" in file:
            assert worst(load, after[12], file[f"{name}|full"], np.arange(load.start.size)) < tolerance(case)
        compare_state(case, optimizer, params, file[f"{name}|state"])


def compare_state(case: dict[str, Any], optimizer: Any, params: Sequence[Tensor], recorded: np.ndarray) -> None:
    names = getattr(optimizer, "base_optimizer", optimizer).foreign_names
    at = 0
    for i, slots in case["slots"].items():
        for key, size in slots.items():
            expected, at = recorded[at : at + size], at + size
            if key not in NOT_STATE:
                ours = optimizer.state[params[int(i)]][names.get(key, key).replace("Q.", "Q_")]
                found = torch.as_tensor(ours, dtype=torch.float64).numpy().reshape(-1)
                scale = np.abs(expected).max()
                assert np.abs(found - expected).max() <= tolerance(case) * (scale or 1.0), f"parameter {i}, {key}"
    assert at == recorded.size


# -------------------------------------------------------------------------------- factory names


@pytest.mark.parametrize("name", INDEX["factory"])
def test_factory_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = INDEX["factory"][name]
    load = workload(case["workload"])
    params = load.parameters()
    optimizer = create_optimizer_v2(params, opt=name, lr=case["lr"], weight_decay=0.01, **case["kwargs"])
    injected = inject(monkeypatch, optimizer, params, load, "factory", name)
    steps = INDEX["factory_steps"]
    after = run(optimizer, params, load, range(1, steps + 1), injected=injected, missing=False)
    assert worst(load, after[steps], arrays("factory")[name], load.sample) < tolerance(case)
    ours = optimizer.param_groups[0]
    for key, value in case["group"].items():
        if key in ours and key not in ("foreach", "step"):
            own = str(ours[key]).removeprefix("torch.") if isinstance(ours[key], torch.dtype) else ours[key]
            assert own == _tuples(value), key


# -------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("name", INDEX["checkpoints"])
@pytest.mark.parametrize("foreach", (False, True), ids=("loop", "foreach"))
def test_a_run_of_timms_goes_on(name: str, foreach: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = INDEX["checkpoints"][name]
    load = workload(case["workload"])
    saved = torch.load(TIMM / f"{name}.pt", weights_only=True)
    params = [nn.Parameter(value.clone()) for value in saved["params"]]
    optimizer = make(case, load, params, foreach=foreach)
    optimizer.load_state_dict(saved["optimizer"])
    assert [group["lr"] for group in optimizer.param_groups] == [case["lr"], case["lr"] / 2]
    injected = inject(monkeypatch, optimizer, params, load, "checkpoints", name)
    halve = INDEX["halve_group_0_lr_before_step"]
    after = run(optimizer, params, load, range(saved["step"] + 1, 13), halve, injected)
    assert worst(load, after[12], arrays("checkpoints")[name], np.arange(load.start.size)) < tolerance(case)
    if name not in WITHOUT_STEPS:
        assert all(optimizer.state[p]["step"] in (10, 12) for p in params)


# -------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", sorted({*REGISTRY["exported"], *REGISTRY["classes"]}))
def test_every_public_name_of_timm_is_here(name: str) -> None:
    assert name in descend.__all__
    assert getattr(descend, name) is not None
