"""The default step on the CPU against timm and torch: how many times as fast, beside what is asked.

    python benchmarks/default_step.py [RULE ...] [--models vit_s,resnet50,many_tiny] [--rounds 20] [--page FILE]

The contenders step in turn in one process; a ratio is that of their shortest turns, so that what else the machine does
counts little. timm has to be installed. With --page the table goes to a page of docs/.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from targets import SEEDS
from torch import nn

from descend import create_optimizer_v2, get_optimizer_info
from descend.lab.bench import measure
from descend.lab.bench.contenders import LR, WEIGHT_DECAY, ours
from descend.lab.bench.machine import machine, versions
from descend.lab.bench.peers import PEERS
from descend.lab.models import model_of
from descend.lab.outcome import write
from descend.lab.table import Table
from descend.lab.table import markdown as grid

CPU = torch.device("cpu")
LOOKAHEAD = "lookahead_adamw"
# Our names of what timm's own code computes: its RAdam decays the parameter, torch's the gradient.
OF_TIMM = (
    *("radamlegacy" if name == "radam" else name for name in SEEDS),
    LOOKAHEAD,
    "lion",
    "adan",
    "laprop",
    "adopt",
    "nadamw",
)
OF_TORCH = ("adam", "adamw", "sgd", "rmsprop", "nadam", "radam", "adagrad", "adamax")
LARGE = ("vit_s", "resnet50")
MEAN = 1.25


HEAD = """\
# The default step on a CPU

Recorded by `python benchmarks/default_step.py --page docs/default-step.md`: how many times as fast the step is that someone
gets who sets nothing, beside that of timm or torch with nothing set. The contenders step in turn in one process; a ratio is that
of their shortest turns of {rounds} rounds, after six steps of each. `many_tiny` is 150 tensors of 16 elements. Large models
move through a compiled kernel where a C++ compiler is there ([internals](internals.md)); compiling is not
counted here, and [performance](performance.md) has its times.
"""


@dataclass(frozen=True)
class Row:
    """One comparison: our default against one library's."""

    rule: str
    model: str
    library: str
    asked: float

    def contenders(self) -> tuple[measure.Contender, measure.Contender]:
        """Ours and theirs, on parameters of their own."""
        shapes, curved = model_of(self.model).shapes, _curved(self.rule)
        if self.rule == "muon":  # torch's takes nothing but matrices
            shapes = [shape for shape in shapes if len(shape) == 2]
        made = []
        for make in (lambda params: _ours(self.rule, params), self._theirs()):
            params, grads = measure.parameters(shapes, torch.float32, CPU)
            made.append(measure.stepping(make(params), params, grads, curved))
        return made[0], made[1]

    def _theirs(self) -> Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]:
        peer = next(peer for peer in PEERS if peer.library == self.library)
        if self.rule == LOOKAHEAD:  # torch's AdamW in the middle is none of timm's own
            from descend.lab.bench.peers import _timm

            legacy = "lookahead_adamwlegacy"
            return lambda params: _timm().create_optimizer_v2(params, opt=legacy, lr=LR, weight_decay=WEIGHT_DECAY)
        options: dict[str, Any] = {"lr": LR, "weight_decay": WEIGHT_DECAY}
        if get_optimizer_info(self.rule).has_momentum:
            options |= {"momentum": 0.9, "nesterov": True}
        return next(make for _, make in peer.ways("radam" if self.rule == "radamlegacy" else self.rule, options))


def rows(models: Sequence[str], rules: Sequence[str]) -> Iterator[Row]:
    """All that this script compares."""
    for model in models:
        for library, names, asked in (("timm", OF_TIMM, 1.0), ("torch", OF_TORCH, 0.95)):
            for rule in names:
                if not rules or rule in rules:
                    yield Row(rule, model, library, 1.0 if model == "many_tiny" else asked)
        for library in ("timm", "torch"):
            if model == "vit_s" and (not rules or "muon" in rules):
                yield Row("muon", model, library, 2.0)


def ratio(row: Row, rounds: int) -> float:
    """How many times as fast as theirs our step is."""
    pair = row.contenders()
    for contender in pair:
        for _ in range(6):  # RAdam and AdaBelief divide by nothing at the first five steps
            contender.prepare()
            contender.step()
        measure.warm(contender, rounds, CPU)
    measure.interleave(pair, rounds, CPU)
    for contender in pair:
        if contender.failure:
            raise contender.failure
    mine, theirs = (min(contender.times) for contender in pair)
    return theirs / mine


def table(found: Sequence[tuple[Row, float]]) -> Table:
    """A line for each comparison, and the means against timm."""
    lines = [[r.rule, r.model, r.library, f"{r.asked:g}", f"{x:.2f}", _mark(x >= r.asked)] for r, x in found]
    large = [x for r, x in found if r.library == "timm" and r.model in LARGE and r.rule != "muon"]
    if large:
        mean = statistics.geometric_mean(large)
        lines.append(["geometric mean", "large", "timm", f"{MEAN:g}", f"{mean:.2f}", _mark(mean >= MEAN)])
    return Table("Times as fast in the default mode", ["rule", "shapes", "against", "asked", "reached", ""], lines)


def _mark(passed: bool) -> str:
    return "pass" if passed else "miss"


def _ours(rule: str, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    if rule == LOOKAHEAD:
        return create_optimizer_v2(params, opt=rule, lr=LR, weight_decay=WEIGHT_DECAY)
    return ours(rule, params)


def _curved(rule: str) -> bool:
    return rule != LOOKAHEAD and get_optimizer_info(rule).second_order


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rules", nargs="*")
    parser.add_argument("--models", default="vit_s,resnet50,many_tiny")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    found: list[tuple[Row, float]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's, about its own names
        for row in rows(given.models.split(","), given.rules):
            found.append((row, ratio(row, given.rounds)))
            print(f"{row.rule:18} {row.model:10} {row.library:6} {found[-1][1]:6.2f}", file=sys.stderr)
            gc.collect()  # optimizers are in cycles with their hooks
    where = {**machine(CPU), **versions(("descend", "torch", "timm"))}
    print(table(found).markdown())
    Console().print(where)
    if given.page:
        there = grid(["", ""], [[key, value] for key, value in where.items()], right=False)
        parts = HEAD.format(rounds=given.rounds), table(found).markdown(), "## On what machine", f"{there}\n"
        write(given.page, "\n\n".join(part.strip("\n") for part in parts) + "\n")


if __name__ == "__main__":
    main()
