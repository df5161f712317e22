"""Findings about memory as a page of the documentation."""

from __future__ import annotations

import statistics

from descend.lab.grid import grid
from descend.lab.memory.measure import IN_BLOCKS, MASTERS, STORAGES, Findings, Losses

TITLE = "# Memory"


def markdown(found: Findings) -> str:
    """The whole page."""
    parts = [
        TITLE,
        "Generated from a recording by `descend memory --render FILE.json`; `descend memory --json FILE.json` makes one.",
        "## Numbers",
        grid(["", "asked", "reached", ""], numbers(found)),
        "## State, bytes for each element of a ViT-S/16",
        "As the optimizer says before there is any (`state_bytes`), and as counted after a step.",
        grid(
            ["optimizer", *(f"{storage} {how}" for storage in STORAGES for how in ("predicted", "counted"))],
            [
                [w.optimizer, *(f"{kind[s]:.3f}" for s in STORAGES for kind in (w.predicted, w.measured))]
                for w in found.weights
            ],
        ),
        "## The most that a training step of AdamW holds, bytes for each parameter",
        "Parameters, gradients and state together, looked at whenever a gradient has come; a byte-level GPT of 4.9 M "
        "parameters. Activations come on top, and depend on the batch.",
        grid(
            ["weights and state", "bytes", "of float32"],
            [[way, f"{b:.2f}", f"{b / found.peaks['float32']:.0%}"] for way, b in found.peaks.items()],
        ),
        "## A fused step of AdamW on a ViT-S/16",
        grid(
            ["state", "ms", "times float32"],
            [[s, f"{ms:.2f}", f"{ms / found.times['float32']:.2f}"] for s, ms in found.times.items()],
        ),
        f"## Validation loss of the byte-level GPT after {found.steps} steps, mean of {found.seeds} seeds",
        "Every optimizer at the best of four learning rates, found with float32 state; warm-up and cosine, weight decay 1e-3, the same "
        "batches and the same initial weights. After ± stands the standard error of the seeds' differences.",
        grid(["optimizer", "float32 state", "int8 state", "difference", "elements in 8 bits"], _blocks(found, "int8")),
        "Half of the bytes again; state that does not bear 4 bits has 8 there.",
        grid(["optimizer", "float32 state", "int4 state", "difference", "elements in 4 bits"], _blocks(found, "int4")),
        grid(["weights of AdamW", "loss", "to float32"], _masters(found)),
        "## On what machine",
        grid(["", ""], [[k, v] for k, v in found.environment.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def numbers(found: Findings) -> list[list[str]]:
    """What was asked, and what was reached."""
    counted = {w.optimizer: w.measured["int8"] for w in found.weights}
    exact = _of(found, "adamw", "float32", "float32").mean
    rows = [_row(f"{name}, int8 state, bytes", limit, counted[name]) for name, limit in _LIMITS if name in counted]
    rows.append(_row("fused int8 AdamW, times float32", 2.0, found.times["int8"] / found.times["float32"]))
    for master in ("kahan", "split"):
        there = _of(found, "adamw", f"bfloat16, {master}", "float32").mean
        rows.append(_row(f"bfloat16 + {master}, loss to float32 in %", 0.5, 100 * abs(there / exact - 1)))
    for name in IN_BLOCKS:
        usual, blocks = _of(found, name, "float32", "float32"), _of(found, name, "float32", "int8")
        rows.append(_row(f"int8 state of {name}, loss to float32 in %", 1.0, 100 * (blocks.mean / usual.mean - 1)))
    least = min((one for one in found.losses if one.state == "int8"), key=lambda one: one.blocked)
    share = 100 * least.blocked
    rows.append(
        ["elements in 8 bits, %", "≥ 90", f"{share:.1f} ({least.optimizer})", "pass" if share >= 90 else "miss"]
    )
    peak = found.peaks["bfloat16 + Kahan, int8, in backward"] / found.peaks["float32"]
    rows.append(_row("peak in backward, bfloat16 and int8, % of float32", 45, 100 * peak))
    return rows


_LIMITS = (("adamw", 2.1), ("lion", 1.1), ("muon", 1.1))


def _row(what: str, limit: float, reached: float) -> list[str]:
    return [what, f"≤ {limit:g}", f"{reached:.2f}", "pass" if reached <= limit else "miss"]


def _of(found: Findings, optimizer: str, weights: str, state: str) -> Losses:
    return next(x for x in found.losses if (x.optimizer, x.weights, x.state) == (optimizer, weights, state))


def _blocks(found: Findings, state: str) -> list[list[str]]:
    rows = []
    for name in IN_BLOCKS:
        usual, blocks = (_of(found, name, "float32", each) for each in ("float32", state))
        rows.append([name, _each(usual), _each(blocks), _apart(blocks, usual), f"{blocks.blocked:.1%}"])
    return rows


def _masters(found: Findings) -> list[list[str]]:
    exact = _of(found, "adamw", "float32", "float32")
    rows = [["float32", _each(exact), "–"]]
    for master in MASTERS:
        one = _of(found, "adamw", f"bfloat16, {master}", "float32")
        rows.append(
            [
                f"bfloat16, master={None if master == 'none' else master!r}",
                _each(one),
                _apart(one, exact),
            ]
        )
    return rows


def _apart(one: Losses, other: Losses) -> str:
    """The difference of the means, and the standard error of the seeds' differences."""
    shares = [x / y - 1 for x, y in zip(one.losses, other.losses, strict=True)]
    error = f" ± {statistics.stdev(shares) / len(shares) ** 0.5:.2%}" if len(shares) > 1 else ""
    return f"{one.mean / other.mean - 1:+.2%}{error}"


def _each(one: Losses) -> str:
    return f"{one.mean:.4f} ({', '.join(f'{loss:.3f}' for loss in one.losses)})"
