"""What compiling and importing cost, each measured in processes of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from descend.lab.bench.machine import scrubbed
from descend.lab.bench.recording import Compile, Importing

PATIENCE = 300  # seconds for one process

_IMPORT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import descend
ms = 1e3 * (time.perf_counter() - start)
heavy = ("torch._dynamo", "torch._inductor")
print(json.dumps([ms, [name for name in heavy if name in sys.modules and name not in before]]))
"""


def importing(repeats: int) -> Importing:
    """Import the package in fresh processes; one more goes first, so that all find bytecode on disk."""
    with tempfile.TemporaryDirectory(prefix="descend-bench-") as folder:
        bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        found = [_child("-c", _IMPORT, **bytecode) for _ in range(repeats + 1)][1:]
    return Importing(statistics.median(ms for ms, _ in found), sorted({name for _, names in found for name in names}))


def compiling(rule: str, model: str, dtype: str, device: str, cache: Path, sources: Sequence[str] = ()) -> Compile:
    """Compile what one rule needs for a model, in two processes one after the other; `cache` is empty before."""
    environment = {
        "DESCEND_CACHE_DIR": str(cache / "descend"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    result = Compile(rule, model)
    try:
        cold, warm = (_child("-m", __name__, rule, model, dtype, device, *sources, **environment) for _ in range(2))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        result.error = scrubbed(error)
        return result
    result.kernels = cold["kernels"]
    result.cold_s, result.warm_s = cold["seconds"], warm["seconds"]
    return result


def _child(*arguments: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["a process ended without a word"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def main(rule: str, model: str, dtype: str, device: str, *sources: str) -> None:
    """The child: compile, and print how long it took."""
    import torch

    from descend import warm_up
    from descend.lab.bench.contenders import ours
    from descend.lab.models import model_of
    from descend.lab.own import register

    for source in sources:
        register(source)
    params = [
        torch.nn.Parameter(torch.zeros(shape, dtype=getattr(torch, dtype), device=device))
        for shape in model_of(model).shapes
    ]
    optimizer = ours(rule, params, "fused")
    start = time.perf_counter()
    kernels = len(warm_up(optimizer).kernels)
    print(json.dumps({"kernels": kernels, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:])
