"""Steps on a card: the CUDA tests, and what a step costs host and card beside every library that is installed.

Usage: python tools/bench_gpu.py test FOLDER             the CUDA tests; what they print goes to FOLDER/gpu-tests.txt
       python tools/bench_gpu.py record FILE [SECONDS]   measures, and writes FILE after each optimizer
       python tools/bench_gpu.py render FILE PAGE        writes the tables between the page's marks

The environment is the caller's: its torch with CUDA, pytest, and whatever other libraries it has.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

from gpu_account import RULES, Make, shapes_of, ways, write  # noqa: E402

#: Those that are measured on every model; the others of `RULES` on the first.
FIRST = ("adamw", "lion", "lamb", "madgrad", "adan", "muon")
MODELS = {"vit_s": "ViT-S/16, 152 tensors, 22 million numbers", "gpt2": "GPT-2, 148 tensors, 124 million numbers"}
STEPS = 12


def variants() -> Iterator[tuple[str, str, list[tuple[str, Make]]]]:
    """Rows of AdamW whose numbers are kept in fewer bits: a name, the dtype of the parameters, who runs it how."""
    import descend

    def others(*names: tuple[str, str, str, dict[str, Any]]) -> list[tuple[str, Make]]:
        found: list[tuple[str, Make]] = []
        for label, module, name, options in names:
            try:
                kind = getattr(importlib.import_module(module), name)
            except Exception as error:
                print(f"{label}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            found.append((label, lambda params, kind=kind, options=options: kind(params, lr=1e-3, **options)))
        return found

    def ours(**options: Any) -> list[tuple[str, Make]]:
        return [("descend", lambda params: descend.AdamW(params, lr=1e-3, **options))]

    torchs = others(("torch fused", "torch.optim", "AdamW", {"fused": True}))
    yield "adamw, bf16 with compensation", "bfloat16", ours() + others(("optimi default", "optimi", "AdamW", {}))
    yield "adamw, bf16 as it is", "bfloat16", ours(master=None, state_dtype="bfloat16") + torchs
    yield (
        "adamw, 8-bit state",
        "float32",
        ours(state_dtype="int8")
        + others(
            ("bitsandbytes default", "bitsandbytes.optim", "AdamW8bit", {}),
            ("torchao default", "torchao.optim", "AdamW8bit", {}),
        ),
    )
    yield (
        "adamw, 4-bit state",
        "float32",
        ours(state_dtype="int4") + others(("torchao default", "torchao.optim", "AdamW4bit", {})),
    )
    yield "adamw, capturable", "float32", ours(capturable=True)


def measure(make: Make, shapes: Sequence[tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """Milliseconds of host and card, launches, and the bytes that a step allocates for itself."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    params = [torch.nn.Parameter(torch.randn(s, device="cuda").mul_(0.02).to(getattr(torch, dtype))) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p).mul_(0.01)
    start = time.perf_counter()
    optimizer = make(params)
    optimizer.step()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    hosts, walls = [], []
    for _ in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.step()
        hosts.append(time.perf_counter() - start)
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
    extra = torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CUDA]) as told:
        optimizer.step()
        torch.cuda.synchronize()
    events = [e for e in told.events() if e.device_type == torch.autograd.DeviceType.CUDA and "#" not in e.name]
    return {
        "first_s": round(first, 2),
        "host_ms": round(1e3 * statistics.median(hosts), 3),
        "wall_ms": round(1e3 * statistics.median(walls), 3),
        "device_ms": round(sum(e.time_range.elapsed_us() for e in events) / 1e3, 3),
        "launches": len(events),
        "extra_mb": round(extra / 1e6, 1),
    }


def record(path: str, seconds: str = "600") -> None:
    """Measure until the seconds are over; what is not reached is missing."""
    import torch
    import triton

    from descend.lab.bench.peers import PEERS

    limit = time.monotonic() + float(seconds)
    warnings.simplefilter("ignore")
    versions = {"torch": torch.__version__, "CUDA": str(torch.version.cuda), "Triton": triton.__version__}
    versions |= {peer.library: version for peer in PEERS if (version := peer.version()) and peer.library != "torch"}
    told: dict[str, Any] = {"card": torch.cuda.get_device_name(), "versions": versions, "copy_tb_s": _copied()}
    told["rows"] = rows = []
    ours = {"descend": {}, "descend foreach": {"foreach": True}}
    peers = [peer for peer in PEERS if not peer.slow]
    plain = {rule: (rule, "float32", [*ways(rule, ours, peers)]) for rule in (*FIRST, *RULES, "soap")}
    usual = [plain.pop(rule) for rule in FIRST]
    usual[1:1] = variants()
    cases = [(model, *case) for model in MODELS for case in usual]
    for model, label, dtype, makers in [*cases, *(("vit_s", *case) for case in plain.values())]:
        for way, make in makers:
            if time.monotonic() > limit:
                print("out of time", file=sys.stderr)
                return
            shapes = shapes_of(model)
            if label == "muon":
                shapes = [s for s in shapes if len(s) == 2]
            try:
                cell = measure(make, shapes, dtype)
            except Exception as error:
                cell = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            print(model, label, way, cell, flush=True)
            rows.append({"model": model, "rule": label, "way": way, **cell})
            Path(path).write_text(json.dumps(told, indent=1) + "\n")
            gc.collect()
            torch.cuda.empty_cache()


def _copied() -> float:
    """Terabytes a second that a copy on the card reads and writes."""
    import torch

    x = torch.ones(1 << 28, device="cuda")
    y = torch.empty_like(x)
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        y.copy_(x)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(2 * x.nbytes / statistics.median(times) / 1e9, 2)


def test(folder: str) -> int:
    """The CUDA tests; the exit status is theirs."""
    import torch

    if not torch.cuda.is_available():
        print("torch finds no CUDA device: make test-gpu counts what one would be asked for", file=sys.stderr)
        return 1
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-rs", "tests"]
    tested = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    (out / "gpu-tests.txt").write_text(tested.stdout + tested.stderr)
    print(tested.stdout[-2000:], flush=True)
    return tested.returncode


def render(told: dict[str, Any]) -> str:
    """A table for each model: milliseconds of the card, of the host, and launches."""
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    parts = [
        f"{told['card']}, {versions}; a copy on it moves {told['copy_tb_s']} TB/s. In each cell: milliseconds that the "
        "card is busy / milliseconds until `step()` returns / launches. A training is slowed by the larger of the two."
    ]
    for model, label in MODELS.items():
        mine = [row for row in told["rows"] if row["model"] == model]
        if mine:
            parts += [f"**{label}**", "\n".join(_table(mine))]
    return "\n\n".join(parts)


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(row["way"] for row in rows))
    columns.sort(key=lambda way: (not way.startswith("descend"), not way.startswith("torch "), way))
    yield "| optimizer | " + " | ".join(columns) + " |"
    yield "| --- |" + " --: |" * len(columns)
    for rule in dict.fromkeys(row["rule"] for row in rows):
        cells = {row["way"]: row for row in rows if row["rule"] == rule}
        yield f"| {rule} | " + " | ".join(_cell(cells.get(way)) for way in columns) + " |"


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "fails" if row else ""
    return f"{row['device_ms']:.2f} / {row['host_ms']:.1f} / {row['launches']}"


def main(command: str, *arguments: str) -> int:
    """Test, record, or render."""
    if command == "test":
        return test(*arguments)
    if command == "record":
        record(*arguments)
        return 0
    source, page = arguments
    write(page, "measured", render(json.loads(Path(source).read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
