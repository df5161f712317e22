"""What `descend memory` does with its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markdown import Markdown

from descend.lab.bench.command import among, listed, names
from descend.lab.memory import document
from descend.lab.memory.measure import PARTS, Findings, load, measure, save

DOCUMENT = Path("docs/memory.md")


@dataclass(frozen=True)
class Given:
    """The options of the command line that say what to measure."""

    optimizers: str | None
    parts: str
    seeds: int
    steps: int
    threads: int | None


def memory(given: Given, json: Path | None, render: Path | None, out: Path | None) -> None:
    """Measure, or take what was measured; show it and write the files.

    Raises:
        ValueError: for a name that there isn't, or a file that is no recording.
    """
    where = Console()
    if render:
        found, out = load(render), out or DOCUMENT
    else:
        parts = among(listed(given.parts), PARTS, "--parts")
        found = load(json) if json and json.exists() else Findings()
        found.seeds, found.steps = given.seeds, given.steps
        if given.threads:
            torch.set_num_threads(given.threads)
        measure(parts, found, names(given.optimizers), lambda what: where.print(what, style="dim", highlight=False))
        if json:
            save(found, json)
    if not (found.weights and found.peaks and found.times and found.losses):
        where.print("a part is missing still; run the others with the same --json to see the page")
        return
    text = document.markdown(found)
    where.print(Markdown(text))
    if out:
        out.write_text(text, encoding="utf-8")
        where.print(f"wrote {out}", highlight=False, soft_wrap=True)
