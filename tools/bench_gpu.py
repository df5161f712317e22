"""On a machine with CUDA: the CUDA tests, and times beside torch and the others that are installed.

Usage: python tools/bench_gpu.py FOLDER

Writes FOLDER/gpu-tests.txt, FOLDER/gpu-bench.json and FOLDER/gpu-bench.html, and prints the card's name. The environment
is the caller's: its torch with CUDA, pytest, descend with its extra `lab`, and whatever other libraries it has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(folder: str) -> int:
    """Tests, then times; the exit status is that of the tests."""
    import torch

    if not torch.cuda.is_available():
        print("torch finds no CUDA device: make test-gpu counts what one would be asked for", file=sys.stderr)
        return 1
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "cuda", "-rs", "tests"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    (out / "gpu-tests.txt").write_text(tested.stdout + tested.stderr)
    print(tested.stdout[-2000:], flush=True)
    written = ["--json", str(out / "gpu-bench.json"), "--html", str(out / "gpu-bench.html")]
    bench = [sys.executable, "-m", "descend.lab.cli", "bench", "--device", "cuda", *written]
    timed = subprocess.run(bench, cwd=ROOT, env=env, check=False)
    return tested.returncode or timed.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
