"""Runs timm and gathers what is written out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from record_timm.cases import CHECKPOINTS, FACTORY_OPTIONS, REFUSED_ON_CPU, Case, all_cases
from record_timm.problem import (
    CHECKPOINT_STEP,
    DATA,
    FACTORY_STEPS,
    GROUP_STEP,
    KEPT_STEPS,
    MIN_DISPLACEMENT,
    STATE_UP_TO,
    STEPS,
    WEIGHT_DECAY,
    Workload,
    make_probes,
    make_workloads,
)
from record_timm.running import (
    HessianLog,
    KronProbes,
    Run,
    constructor_options,
    float64_inside,
    load_timm,
    optimizer_class,
)


class Recorder:
    """Runs timm and gathers what is written out."""

    def __init__(self) -> None:
        self.optim = load_timm()
        self.workloads = make_workloads()
        self.probes = make_probes()
        self.refused: dict[str, str] = {}

    def start(self, case: Case, lr: float | None) -> Run:
        workload = self.workloads[case.workload]
        params = [p.requires_grad_() for p in workload.split(workload.start)]
        options = constructor_options({**case.base_options} if case.base else case.options)
        decay = options.pop("weight_decay", WEIGHT_DECAY)
        options.pop("lr", None)
        groups = []
        for i, indices in enumerate(workload.groups):
            group: dict[str, Any] = {"params": [params[j] for j in indices], "weight_decay": decay * 0.5**i}
            if lr is not None and i:
                group["lr"] = lr * 0.5
            groups.append({**group, **case.group_options[i]})
        optimizer = optimizer_class(self.optim, case.base or case.optimizer)(
            groups, lr=lr, weight_decay=decay, **options
        )
        if case.base:
            optimizer = self.optim.Lookahead(optimizer, **case.options)
        return Run(workload, params, optimizer, self.log_for(case.optimizer, optimizer, params, workload))

    def log_for(self, name: str, optimizer: Any, params: list[Tensor], workload: Workload) -> Any:
        if name == "Kron":
            return KronProbes(optimizer, params, workload, self.probes)
        return HessianLog(optimizer, params, workload) if name == "Adahessian" else None

    def run(self, case: Case, lr: float | None, until: int = STEPS) -> Run:
        run = self.start(case, lr)
        if case.lifted:
            with float64_inside():
                run.advance(until)
        else:
            run.advance(until)
        return run

    def settle(self, case: Case) -> tuple[float | None, Run]:
        """Double the learning rate until every parameter has moved far enough for its errors to show."""
        if "lr" in case.options:
            return None, self.run(case, None)
        lr = 0.01
        while True:
            run = self.run(case, lr)
            end = run.kept[STEPS]
            if not np.isfinite(end).all() or np.abs(end).max() > 1e3 or lr > 1e3:
                raise ArithmeticError(f"{case.optimizer} {case.name}: no learning rate moves it enough, last {lr}")
            if run.displacement >= MIN_DISPLACEMENT:
                return lr, run
            lr *= 2

    def is_inert(self, case: Case, lr: float | None, run: Run) -> bool:
        """Whether the options change nothing here, compared with none of them at the same learning rate."""
        kept = {k: v for k, v in case.options.items() if k in ("lr", "weight_decay")}
        if kept == case.options and not any(case.group_options):
            return False
        plain = self.run(replace(case, options=kept, group_options=({}, {})), lr).kept[STEPS]
        return bool(np.abs(plain - run.kept[STEPS]).max() < 1e-12)

    def cases(self) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
        index: dict[str, Any] = {}
        arrays: dict[str, dict[str, np.ndarray]] = {}
        for case in all_cases():
            lr, run = self.settle(case)
            label = f"{case.optimizer}/{case.name}"
            if label in index:
                raise ValueError(f"two cases are called {label}")
            state, slots, values = summarize_state(run)
            entry: dict[str, Any] = {
                "class": case.optimizer,
                "kwargs": {k: v for k, v in case.options.items() if k != "lr"},
            }
            if case.base:
                entry |= {"base": case.base, "base_kwargs": case.base_options}
            if any(case.group_options):
                entry["group_kwargs"] = case.group_options
            sample = run.workload.sample
            entry |= {"lr": lr, "workload": case.workload, "precision": case.precision}
            if case.lifted:
                entry["lifted"] = True
            if self.is_inert(case, lr, run):
                entry["inert"] = True
            entry |= {"displacement": float(f"{run.displacement:.3g}"), "state": state, "slots": slots}
            if extra := group_state(run.optimizer):
                entry["group_state"] = extra
            file = arrays.setdefault(case.optimizer, {})
            file[case.name] = np.stack([run.kept[step][sample] for step in KEPT_STEPS])
            file[f"{case.name}|state"] = values
            if lr is None:
                entry["lr_after"] = [jsonable(group["lr"]) for group in run.optimizer.param_groups]
            if case.name.endswith("default"):
                entry["group_keys"] = sorted(run.optimizer.param_groups[0])
                file[f"{case.name}|full"] = run.kept[STEPS]
            if isinstance(run.log, HessianLog):
                file |= {f"{case.name}|{key}": value for key, value in run.log.arrays.items()}
            if isinstance(run.log, KronProbes):
                logs = run.log.arrays(run.workload, bool(case.options.get("stochastic_weight_decay")))
                file |= {f"{case.name}|{key}": value for key, value in logs.items()}
            index[label] = entry
        for case in REFUSED_ON_CPU:
            try:
                self.run(case, 0.01, 2)
            except (AssertionError, RuntimeError) as error:
                self.refused[f"{case.optimizer}/{case.name}"] = type(error).__name__
        return index, arrays

    def factory(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        index: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        for name in self.optim.list_optimizers():
            info = self.optim.get_optimizer_info(name)
            if isinstance(info.opt_class, str):
                continue
            workload = self.workloads["curved" if info.second_order else "dense"]
            workload = replace(workload, missing={})
            extra = FACTORY_OPTIONS.get(name, {})
            lr = 0.01
            while True:
                params = [p.requires_grad_() for p in workload.split(workload.start)]
                optimizer = self.optim.create_optimizer_v2(params, opt=name, lr=lr, weight_decay=0.01, **extra)
                log = self.log_for(info.opt_class.__name__, optimizer, params, workload)
                run = Run(workload, params, optimizer, log)
                run.advance(FACTORY_STEPS, scheduled=False)
                if run.displacement >= MIN_DISPLACEMENT:
                    break
                if lr > 1e3:
                    raise ArithmeticError(f"factory {name}: no learning rate moves it enough, last {lr}")
                lr *= 2
            group = optimizer.param_groups[0]
            index[name] = {
                "class": info.opt_class.__name__,
                "kwargs": extra,
                "lr": lr,
                "workload": "curved" if info.second_order else "dense",
                "precision": Case(info.opt_class.__name__).precision,
                "displacement": float(f"{run.displacement:.3g}"),
                "group": {k: jsonable(v) for k, v in group.items() if k != "params"},
            }
            arrays[name] = run.kept[FACTORY_STEPS][workload.sample]
            if isinstance(log, HessianLog):
                arrays |= {f"{name}|{key}": value[:FACTORY_STEPS] for key, value in log.arrays.items()}
            if isinstance(log, KronProbes):
                arrays |= {f"{name}|{key}": value[:FACTORY_STEPS] for key, value in log.log.items()}
        return index, arrays

    def checkpoints(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """With torch's usual default dtype, so that step counters look as they do in people's files."""
        index: dict[str, Any] = {}
        finals: dict[str, np.ndarray] = {}
        for optimizer, options in CHECKPOINTS.items():
            base = "AdamWLegacy" if optimizer == "Lookahead" else None
            case = Case(optimizer, options, "checkpoint", base=base)
            if optimizer in GROUP_STEP:
                self.workloads["dense checkpoint"] = replace(self.workloads["checkpoint"], missing={})
                case = replace(case, workload="dense checkpoint")
            lr, _ = self.settle(case)
            torch.set_default_dtype(torch.float32)
            run = self.start(case, lr)
            run.advance(CHECKPOINT_STEP)
            params = [p.detach() for p in run.params]
            saved = {"optimizer": run.optimizer.state_dict(), "params": params, "step": CHECKPOINT_STEP}
            torch.save(saved, DATA / f"{optimizer}.pt")
            run.advance(STEPS)
            torch.set_default_dtype(torch.float64)
            index[optimizer] = {
                "class": optimizer,
                "kwargs": options,
                "lr": lr,
                "workload": case.workload,
                "step": CHECKPOINT_STEP,
                "precision": "float32" if optimizer == "NvNovoGrad" else case.precision,
                "displacement": float(f"{run.displacement:.3g}"),
            }
            if base:
                index[optimizer] |= {"base": base, "base_kwargs": {}}
            finals[optimizer] = run.kept[STEPS]
            if isinstance(run.log, KronProbes):
                finals |= {f"{optimizer}|{key}": value for key, value in run.log.log.items()}
        return index, finals

    def registry(self) -> dict[str, Any]:
        names = {}
        for name in self.optim.list_optimizers():
            info = self.optim.get_optimizer_info(name)
            path = info.opt_class if isinstance(info.opt_class, str) else _public_path(info.opt_class)
            names[name] = {
                "class": path,
                "defaults": jsonable(info.defaults or {}),
                "has_eps": info.has_eps,
                "has_momentum": info.has_momentum,
                "has_betas": info.has_betas,
                "num_betas": info.num_betas,
                "second_order": info.second_order,
            }
            if info.name != name:
                names[name]["alias_of"] = info.name
        found = {
            k: v for k, v in vars(self.optim).items() if inspect.isclass(v) and issubclass(v, torch.optim.Optimizer)
        }
        classes = {}
        for name, cls in sorted({**found, "Kron": optimizer_class(self.optim, "Kron")}.items()):
            classes[name] = {"path": _public_path(cls), "exported": name in found, "signature": signature(cls)}
        exported = sorted(k for k, v in vars(self.optim).items() if not k.startswith("_") and not inspect.ismodule(v))
        functions = {k: signature(v) for k, v in vars(self.optim).items() if inspect.isfunction(v)}
        return {"names": names, "classes": classes, "functions": functions, "exported": exported}


def _public_path(cls: type) -> str:
    return f"{'torch.optim' if cls.__module__.startswith('torch.') else 'timm.optim'}.{cls.__name__}"


def signature(function: Any) -> list[dict[str, Any]]:
    rows = []
    for parameter in inspect.signature(function).parameters.values():
        row: dict[str, Any] = {"name": parameter.name, "kind": parameter.kind.name.lower()}
        if parameter.default is not inspect.Parameter.empty:
            row["default"] = jsonable(parameter.default)
        rows.append(row)
    return rows


def jsonable(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return "required" if "required" in repr(value) else repr(value)


def group_state(optimizer: Any) -> list[dict[str, Any]]:
    """What timm keeps in the groups beside the options."""
    extra = [
        {k: jsonable(v) for k, v in group.items() if k != "params" and k not in optimizer.defaults}
        for group in optimizer.param_groups
    ]
    return extra if any(extra) else []


def summarize_state(run: Run) -> tuple[dict[str, Any], dict[str, dict[str, int]], np.ndarray]:
    """Names, dtypes and shapes of every parameter's state, and the small ones of a few parameters by value."""
    optimizer = getattr(run.optimizer, "_base_optimizer", run.optimizer)
    states = []
    for p in run.params:
        flat: dict[str, Any] = {}
        for key, value in optimizer.state.get(p, {}).items():
            flat |= {f"{key}.{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
        states.append(flat)
    summary: dict[str, Any] = {}
    for key in sorted({key for state in states for key in state}):
        found = [state.get(key) for state in states]
        kinds = {jsonable(v.dtype) if isinstance(v, Tensor) else type(v).__name__ for v in found if v is not None}
        shapes = [list(v.shape) if isinstance(v, Tensor) else None if v is None else [] for v in found]
        short: Any = shapes
        if shapes == [list(shape) for shape in run.workload.shapes]:
            short = "param"
        elif all(shape == [] for shape in shapes):
            short = "scalar"
        summary[key] = ["|".join(sorted(kinds)) or "NoneType", short]
    slots: dict[str, dict[str, int]] = {}
    values: list[np.ndarray] = []
    for i in run.workload.state_params:
        for key in sorted(states[i]):
            value = states[i][key]
            if value is None or (isinstance(value, Tensor) and value.numel() > STATE_UP_TO):
                continue
            values.append(torch.as_tensor(value, dtype=torch.float64).detach().reshape(-1).numpy())
            slots.setdefault(str(i), {})[key] = values[-1].size
    return summary, slots, np.concatenate(values) if values else np.empty(0)
