"""Findings about memory as tables and as a document."""

from __future__ import annotations

import statistics

from descend.lab.memory.measure import MASTERS, STORAGES, Findings, Losses
from descend.lab.table import Table, plural
from descend.lab.table import markdown as grid


def tables(found: Findings) -> list[Table]:
    """All that was found."""
    made = []
    if found.weights:
        made.append(
            Table(
                f"State, bytes for each parameter of a {found.model}",
                ["optimizer", *STORAGES],
                [[w.optimizer, *(f"{w.bytes[storage]:.3f}" for storage in STORAGES)] for w in found.weights],
            )
        )
    if found.peaks:
        made.append(
            Table(
                "The most that a training step of AdamW holds, bytes for each parameter",
                ["weights and state", "bytes", "of float32"],
                [[way, f"{b:.2f}", f"{b / found.peaks['float32']:.0%}"] for way, b in found.peaks.items()],
                [
                    "Parameters, gradients and state together, looked at whenever a gradient has come; a byte-level GPT "
                    "of 4.9 M parameters. Activations come on top."
                ],
            )
        )
    if found.times:
        usual = found.times["float32"]
        made.append(
            Table(
                "A fused step of AdamW on a ViT-S/16",
                ["state", "ms", "times float32"],
                [[state, f"{ms:.2f}", f"{ms / usual:.2f}"] for state, ms in found.times.items()],
            )
        )
    return made + _losses(found)


def _losses(found: Findings) -> list[Table]:
    how = f"the byte-level GPT after {plural(found.steps, 'step')}, mean of {plural(found.seeds, 'seed')}"
    made = []
    for state in ("int8", "int4"):
        if rows := _blocks(found, state):
            head = ["optimizer", "float32 state", f"{state} state", "difference", f"in {state[3:]} bits"]
            made.append(Table(f"Validation loss with {state} state: {how}", head, rows))
    if rows := _masters(found):
        made.append(Table(f"Validation loss of AdamW: {how}", ["weights", "loss", "to float32"], rows))
    if made:
        made[-1].notes.append(
            "The same batches and initial weights for all; learning rates were found with float32 state; warm-up and "
            "cosine, weight decay 1e-3. After ± stands the standard error of the seeds' differences. State that is "
            "too sensitive for 4 bits has 8 there."
        )
    return made


def markdown(found: Findings) -> str:
    """A document."""
    made = [table.markdown() for table in tables(found)]
    machine = [[key, value] for key, value in found.environment.items()]
    where = ["## On what machine", grid(["", ""], machine, right=False)] if machine else []
    return "\n\n".join(["# Memory", *made, *where]) + "\n"


def of(found: Findings, optimizer: str, weights: str, state: str) -> Losses | None:
    """The losses of one way to train, if it has been trained."""
    return next((x for x in found.losses if (x.optimizer, x.weights, x.state) == (optimizer, weights, state)), None)


def _blocks(found: Findings, state: str) -> list[list[str]]:
    rows = []
    for name in dict.fromkeys(one.optimizer for one in found.losses):
        usual, blocks = (of(found, name, "float32", storage) for storage in ("float32", state))
        if usual and blocks:
            rows.append([name, each(usual), each(blocks), _apart(blocks, usual), f"{blocks.blocked:.1%}"])
    return rows


def _masters(found: Findings) -> list[list[str]]:
    exact = of(found, "adamw", "float32", "float32")
    rows = [["float32", each(exact), "–"]] if exact else []
    for master in MASTERS:
        one = of(found, "adamw", f"bfloat16, {master}", "float32")
        if one and exact:
            rows.append([f"bfloat16, {'nearest' if master == 'none' else master}", each(one), _apart(one, exact)])
    return rows if len(rows) > 1 else []


def _apart(one: Losses, other: Losses) -> str:
    """The difference of the means, and the standard error of the seeds' differences."""
    shares = [x / y - 1 for x, y in zip(one.losses, other.losses, strict=True)]
    error = f" ± {statistics.stdev(shares) / len(shares) ** 0.5:.2%}" if len(shares) > 1 else ""
    return f"{one.mean / other.mean - 1:+.2%}{error}"


def each(one: Losses) -> str:
    """The mean, and how far the seeds spread."""
    return f"{one.mean:.4f}" + (f" ± {statistics.stdev(one.losses):.3f}" if len(one.losses) > 1 else "")
