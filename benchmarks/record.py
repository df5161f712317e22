"""Measure all that this project's targets are about, and write the pages of docs/ from recordings.

Usage:
    python benchmarks/record.py measure runs/bench.json
    python benchmarks/record.py train runs/memory.json
    python benchmarks/record.py performance runs/bench.json docs/performance.md
    python benchmarks/record.py memory runs/memory.json docs/memory.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from memory_targets import page as memory_page
from rich.console import Console
from targets import everything
from targets import page as performance_page

from descend.lab.bench import screen
from descend.lab.bench.peers import chosen as peers
from descend.lab.bench.recording import load, save
from descend.lab.bench.run import new_recording, run
from descend.lab.memory import measure as memory
from descend.lab.names import plain_names
from descend.lab.outcome import write


def measure(path: Path) -> int:
    """Carry out every heat; Ctrl-C keeps those that are done."""
    bench = everything(peers("installed"), plain_names())
    found = new_recording(bench)
    with screen.Bar(len(bench), Console()) as bar:
        run(bench, found, bar.watch, lambda recording: save(recording, path))
    save(found, path)
    return 130 if found.stopped else 0


def train(path: Path) -> int:
    """Train with state in every storage, six seeds each; Ctrl-C keeps those that are done."""
    found = memory.load(path)
    found.seeds = 6
    memory.measure(("losses",), found, list(memory.RATES), print, lambda now: memory.save(now, path))
    return 130 if found.stopped else 0


def main(what: str, recording: str, page: str = "") -> int:
    """One of the usages above."""
    if what == "measure":
        return measure(Path(recording))
    if what == "train":
        return train(Path(recording))
    if what == "performance":
        write(Path(page), performance_page(load(Path(recording))))
    else:
        write(Path(page), memory_page(memory.load(Path(recording))))
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("measure", "train", "performance", "memory"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
