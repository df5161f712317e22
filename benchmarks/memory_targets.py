"""This project's own targets for memory, and the page that shows them with what was found."""

from __future__ import annotations

from descend.lab.memory.document import markdown, of
from descend.lab.memory.measure import RATES, Findings, Losses
from descend.lab.table import Table

BYTES = (("adamw", 2.1), ("lion", 1.1), ("muon", 1.1))


def page(found: Findings) -> str:
    """docs/memory.md: what is asked first, all that was found, and what this project asked of itself."""
    title, rest = markdown(found).split("\n\n", 1)
    answers = "\n".join(f"- {answer}" for answer in said(found))
    return f"{title}\n\n{answers}\n\n{rest}\n{table(found).markdown()}\n"


def said(found: Findings) -> list[str]:
    """What storages save and cost, in sentences."""
    held = next(w.bytes for w in found.weights if w.optimizer == "adamw")
    answers = [
        f"AdamW keeps {held['float32']:.3g} bytes of state for each parameter, {held['int8']:.3g} with "
        f'`state_dtype="int8"` and {held["int4"]:.3g} with `"int4"`.'
    ]
    if found.peaks:
        whole, least = found.peaks["float32"], found.peaks["bfloat16 + Kahan, int8, in backward"]
        answers.append(
            f"Weights, gradients and state together take {whole:.3g} bytes for each parameter, and {least:.3g} with "
            "bfloat16 weights, 8-bit state and steps in backward."
        )
    if found.times:
        slower = found.times["int8"] / found.times["float32"]
        answers.append(f"A compiled step takes {slower:.2g} times as long with 8-bit state, on a CPU.")
    pairs = ((of(found, name, "float32", "float32"), of(found, name, "float32", "int8")) for name in RATES)
    changes = [100 * (blocks.mean / usual.mean - 1) for usual, blocks in pairs if usual and blocks]
    if changes:
        answers.append(
            f"The loss of a small GPT changes by {min(changes):+.2f} % to {max(changes):+.2f} % with 8-bit state."
        )
    return answers


def table(found: Findings) -> Table:
    """What was asked, and what was reached."""
    counted = {w.optimizer: w.bytes["int8"] for w in found.weights}
    exact = _of(found, "adamw", "float32", "float32").mean
    rows = [_row(f"{name}, int8 state, bytes", limit, counted[name]) for name, limit in BYTES if name in counted]
    if found.times:
        rows.append(_row("fused int8 AdamW, times float32", 1.5, found.times["int8"] / found.times["float32"]))
    for master in ("kahan", "split"):
        there = _of(found, "adamw", f"bfloat16, {master}", "float32").mean
        rows.append(_row(f"bfloat16 + {master}, loss to float32 in %", 0.5, 100 * abs(there / exact - 1)))
    for name in RATES:
        usual, blocks = of(found, name, "float32", "float32"), of(found, name, "float32", "int8")
        if usual and blocks:
            rows.append(_row(f"int8 state of {name}, loss to float32 in %", 1.0, 100 * (blocks.mean / usual.mean - 1)))
    least = min((one for one in found.losses if one.state == "int8"), key=lambda one: one.blocked)
    share = 100 * least.blocked
    rows.append(
        ["elements in 8 bits, %", "≥ 90", f"{share:.1f} ({least.optimizer})", "pass" if share >= 90 else "miss"]
    )
    if found.peaks:
        peak = found.peaks["bfloat16 + Kahan, int8, in backward"] / found.peaks["float32"]
        rows.append(_row("peak in backward, bfloat16 and int8, % of float32", 45, 100 * peak))
    return Table("Targets of this project", ["", "asked", "reached", ""], rows)


def _of(found: Findings, *way: str) -> Losses:
    one = of(found, *way)
    if one is None:
        raise ValueError(f"the recording has no training of {', '.join(way)}")
    return one


def _row(what: str, limit: float, reached: float) -> list[str]:
    return [what, f"≤ {limit:g}", f"{reached:.2f}", "pass" if reached <= limit else "miss"]
