"""The FSDP2 example as people run it: trained, killed, and resumed on another number of processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import ROOT

LENGTH = ("--steps", "24", "--save-every", "6", "--batch-size", "12", "--dim", "32")


def command(ranks: int, folder: Path, *options: str) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launch, str(ROOT / "examples" / "train_fsdp2.py"), "--folder", str(folder), *LENGTH, *options]


def start(*words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def children(parent: int) -> list[int]:
    if Path("/proc/self/stat").exists():
        stats = (path.read_text() for path in Path("/proc").glob("[0-9]*/stat"))
        pairs = [(int(stat.split(" ", 1)[0]), int(stat.rsplit(")", 1)[1].split()[1])) for stat in stats]
    else:
        told = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [(int(pid), int(ppid)) for pid, ppid in map(str.split, told.splitlines())]
    return [pid for pid, ppid in pairs if ppid == parent]


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    return out


def loss(out: str) -> float:
    found = re.search(r"validation loss ([0-9.]+)", out)
    assert found, out
    return float(found[1])


@pytest.mark.parametrize("opt", ("lamb", pytest.param("muon", marks=pytest.mark.slow)))
def test_a_killed_run_goes_on_with_other_processes(opt: str, tmp_path: Path) -> None:
    whole = loss(finished(start(*command(2, tmp_path / "whole", "--opt", opt))))
    killed = start(*command(2, tmp_path / "killed", "--opt", opt))
    deadline = time.monotonic() + 90
    while not (tmp_path / "killed" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in [killed.pid, *children(killed.pid)]:  # torchrun puts its workers into sessions of their own
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    step = int((tmp_path / "killed" / "latest").read_text())
    assert 0 < step < 24
    out = finished(start(*command(3, tmp_path / "killed", "--opt", opt)))
    assert f"on 3 processes, from step {step} to 24" in out
    assert abs(loss(out) - whole) < 1e-3
