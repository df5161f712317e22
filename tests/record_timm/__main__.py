"""Record what timm 1.0.31 does, as a second witness for the tests: registry, trajectories, checkpoints.

    cd tests && python -m record_timm            records everything into tests/data/timm
    cd tests && python -m record_timm --check    reads it back with numpy alone and verifies it

Recording needs torch 2.13, numpy and timm 1.0.31; torchvision is not needed. tests/data/timm/README.md explains the
files.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from record_timm.problem import (
    CHECKPOINT_PARAMS,
    CURVED_SHAPES,
    DATA,
    FACTORY_STEPS,
    HALVE_LR_BEFORE,
    KEPT_STEPS,
    MIN_DISPLACEMENT,
    NOISE,
    SHAPES,
    TIMM,
    WEIGHT_DECAY,
    Options,
    Workload,
    make_probes,
    make_workloads,
)
from record_timm.recorder import Recorder
from record_timm.running import displacement


def describe(workload: Workload, sources: Options) -> dict[str, Any]:
    zero = [3, len(workload.shapes) - 1] if len(workload.shapes) in (len(SHAPES), len(CURVED_SHAPES)) else None
    return {
        **sources,
        "shapes": workload.shapes,
        "groups": workload.groups,
        "missing": [[step, i] for step, i in workload.missing.items()],
        "zero": zero,
        "state_params": workload.state_params,
    }


def write_json(path: Path, tables: Mapping[str, Any]) -> None:
    """One line an entry: small, and a change shows as one line."""
    lines = []
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            rows = [f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items()]
            lines.append(f"{json.dumps(key)}: {{\n" + ",\n".join(rows) + "\n}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    DATA.mkdir(parents=True, exist_ok=True)
    recorder = Recorder()
    write_json(DATA / "registry.json", recorder.registry())
    cases, arrays = recorder.cases()
    factory, factory_arrays = recorder.factory()
    checkpoints, finals = recorder.checkpoints()
    main, curved, tangent = (recorder.workloads[name] for name in ("main", "curved", "tangent"))
    shared = {"start": main.start, "main": main.gradients, "tangent": tangent.gradients, "sample": main.sample}
    shared |= {"curved_start": curved.start, "curved_noise": curved.gradients, "curved_sample": curved.sample}
    shared |= {f"curved_{key}": value for key, value in (curved.curvature or {}).items()}
    shared |= {"probes": recorder.probes}
    files = {**arrays, "factory": factory_arrays, "checkpoints": finals, "workloads": shared}
    for name, content in files.items():
        np.savez_compressed(DATA / f"{name}.npz", allow_pickle=False, **content)
    flat = {"start": "start", "gradients": "main", "sample": "sample"}
    taken = {"start": "start", "gradients": "main", "params": CHECKPOINT_PARAMS}
    sources: dict[str, Options] = {
        "main": flat,
        "dense": flat,
        "tangent": {**flat, "gradients": "tangent"},
        "curved": {"start": "curved_start", "noise": "curved_noise", "sample": "curved_sample", "scales": NOISE},
        "checkpoint": taken,
        "dense checkpoint": taken,
    }
    tables = {
        "versions": {"timm": TIMM, "torch": torch.__version__.split("+")[0], "numpy": np.__version__},
        "steps": KEPT_STEPS,
        "factory_steps": FACTORY_STEPS,
        "halve_group_0_lr_before_step": HALVE_LR_BEFORE,
        "weight_decay": [WEIGHT_DECAY, WEIGHT_DECAY / 2],
        "workloads": {name: describe(recorder.workloads[name], source) for name, source in sources.items()},
        "cases": cases,
        "factory": factory,
        "checkpoints": checkpoints,
        "refused": recorder.refused,
    }
    write_json(DATA / "index.json", tables)


def check() -> None:
    """Read everything back and hold it against its own index."""
    index = json.loads((DATA / "index.json").read_text())
    registry = json.loads((DATA / "registry.json").read_text())
    if len(registry["names"]) != 101:
        raise ValueError(f"{len(registry['names'])} registry names, timm {TIMM} has 101")
    workloads = make_workloads()
    workloads["dense checkpoint"] = replace(workloads["checkpoint"], missing={})
    stored = np.load(DATA / "workloads.npz")
    made = {"start": workloads["main"].start, "main": workloads["main"].gradients, "probes": make_probes()}
    for key, array in made.items():
        np.testing.assert_array_equal(stored[key], array)
    short = []
    for label, case in index["cases"].items():
        file, name = np.load(DATA / f"{case['class']}.npz"), label.split("/", 1)[1]
        workload = workloads[case["workload"]]
        rows = file[name]
        if rows.shape != (len(KEPT_STEPS), len(workload.sample)) or not np.isfinite(rows).all():
            raise ValueError(f"{label}: recorded {rows.shape}, finite {np.isfinite(rows).all()}")
        if file[f"{name}|state"].size != sum(sum(slots.values()) for slots in case["slots"].values()):
            raise ValueError(f"{label}: the state does not fill its slots")
        if f"{name}|full" in file:
            np.testing.assert_array_equal(file[f"{name}|full"][workload.sample], rows[-1])
        if displacement(workload, rows[-1]) < MIN_DISPLACEMENT:
            short.append(f"{label}: {case['displacement']}")
    moved = np.load(DATA / "factory.npz")
    for name, case in index["factory"].items():
        if displacement(workloads[case["workload"]], moved[name]) < MIN_DISPLACEMENT:
            short.append(f"factory {name}: {case['displacement']}")
    for name, case in index["checkpoints"].items():
        loaded = torch.load(DATA / f"{name}.pt", weights_only=True)
        shapes = [tuple(p.shape) for p in loaded["params"]]
        if shapes != list(workloads[case["workload"]].shapes):
            raise ValueError(f"checkpoint {name}: parameters {shapes}")
    size = sum(path.stat().st_size for path in DATA.iterdir())
    inert = [label for label, case in index["cases"].items() if case.get("inert")]
    print(
        f"{len(index['cases'])} cases, {len(index['factory'])} factory names, {len(index['checkpoints'])} checkpoints"
    )
    print(f"{size / 2**20:.2f} MiB")
    print("moved less than a tenth:", *short, sep="\n  ")
    print("options without effect:", *inert, sep="\n  ")
    print("refused by timm on the CPU:", index["refused"])


if __name__ == "__main__":
    check() if "--check" in sys.argv[1:] else record()
