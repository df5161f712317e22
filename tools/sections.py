"""Sections of an optimizer's page that come from counts, recordings and other pages: cost, evidence, names, race."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import elsewhere
import torch

import descend
from descend.catalogue.info import OptimInfo
from descend.lab.planning import cost
from descend.lab.sizes import MIB

ROOT = Path(__file__).resolve().parents[1]
RACE: dict[str, Any] = json.loads((ROOT / "docs" / "race.json").read_text(encoding="utf-8"))
TIMM: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "timm" / "registry.json").read_text(encoding="utf-8"))
#: A transformer block of width 768.
BLOCK = ((2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,), (768,), (768,))
RANKS = 8
#: How prose names a class otherwise.
PROSE = {"ScheduleFreeAdamW": r"schedule-free AdamW", "AdamW": r"(?<!schedule-free )AdamW"}


def infos(kind: type) -> list[OptimInfo]:
    """The catalogue's names of a class."""
    registry = descend.default_registry()
    found = [registry.get_optimizer_info(name) for name in registry.list_optimizers()]
    return [info for info in found if str(info.opt_class).startswith("descend.") and info.load() is kind]


# ----------------------------------------------------------------------------------------------------------------- cost


def costs(kind: type) -> str:
    """State, memory traffic, collectives and bytes sent, on one process and on several."""
    names = infos(kind)
    if not names:
        return "The cost is that of the optimizer inside.\n"
    name = min(names, key=lambda info: len(info.defaults or {})).name
    try:
        alone, spread = cost(name, BLOCK, 1), cost(name, BLOCK, RANKS)
    except RuntimeError as error:
        return f"Not counted: {error}.\n"
    rows = [
        ("state, MiB", f"{alone.state / MIB:.2f}", f"{spread.state / MIB:.2f}"),
        ("memory traffic of the rule, MiB", f"{alone.moved / MIB:.2f}", f"{spread.moved / MIB:.2f}"),
        ("collectives", "0", f"{spread.collectives}"),
        ("sent, KiB", "0", f"{spread.sent / 1024:,.1f}"),
        ("sent, % of what FSDP2 itself sends", "", f"{100 * spread.sent / spread.fsdp:.1f}"),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    size = sum(torch.Size(shape).numel() for shape in BLOCK) / 1e6
    return (
        f"One step of `{name}` on a transformer block of width 768 ({size:.1f} million parameters in {len(BLOCK)} "
        "tensors, float32), counted on tensors without data. Products of matrices come on top of the memory traffic. "
        "For your model and network: `descend plan`; [how it is computed](../plan.md#how-it-is-computed).\n\n"
        f"| a step | one process | each of {RANKS}, FSDP2 |\n|---|--:|--:|\n{table}\n"
    )


# ------------------------------------------------------------------------------------------------------------- evidence


def statements() -> Iterator[tuple[str, str, str]]:
    """What docs/choosing.md says: the source, the text, and the part of it that names optimizers."""
    title, source = "", ""
    text = re.sub(r"^```.*?^```$", "", (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    for block in text.split("\n\n"):
        if heading := re.match(r"## (.*)", block.strip()):
            title = heading[1]
        elif block.startswith("|") and title in ("Where to start", "Evidence"):
            for row in block.splitlines()[2:]:
                first, *rest = (cell.strip() for cell in row.strip("|").split(" | "))
                start = title == "Where to start"
                yield (
                    f"[Where to start](../choosing.md#where-to-start), {first}" if start else f"{source}, {first}",
                    rest[1] if start else rest[0],
                    rest[0],
                )
        elif title == "Evidence" and block.startswith("**"):
            found = re.match(r"\*\*(.*?)\*\*(?: \((?:\[[^]]*\]\([^)]*\)|[^()]|\([^)]*\))*\))?", block)
            assert found, block
            link = re.search(r"\[([^]]*)\]\((http[^)]*)\)", block)
            source = f"[{found[1]}]({link[2]})" if link else found[1]
            body = " ".join(block[found.end() :].lstrip(": ").split())
            yield from ((source, each, each) for each in re.split(r"(?<=\.) (?=[A-Z])", body))


def evidence(kind: type) -> str:
    """What comparisons say of an optimizer."""
    pattern = PROSE.get(kind.__name__, re.escape(kind.__name__))
    named = re.compile(rf"(?<![\w-]){pattern}(?!\w)", re.IGNORECASE)
    said = [f"- {source}: {text}" for source, text, names in statements() if named.search(names)]
    where = "[How to choose](../choosing.md)"
    if not said:
        return f"None of the comparisons that {where} cites has it.\n"
    return f"From {where}, which has the context of these numbers.\n\n" + "\n".join(said) + "\n"


# ---------------------------------------------------------------------------------------------------------------- names


def other_names(kind: type) -> str:
    """What other projects call it."""
    name = kind.__name__
    timm = [f"`{info.name}`" for info in infos(kind) if info.name in TIMM["names"]]
    theirs = elsewhere.TORCH.get(name, name)
    transformers = [f"`{each}`" for each in elsewhere.TRANSFORMERS.get(name, ())]
    kohya = [f"`{each}`" for each in elsewhere.KOHYA.get(name, ())]
    in_place = f"`descend.{name}` in its place"
    if hasattr(kind, "averaged"):
        in_place = "–: the scripts call `eval()` for their own names only"
    elif not infos(kind):
        in_place = "–: it needs an optimizer to wrap"
    rows = [
        ("timm 1.0.31, `create_optimizer_v2`", ", ".join(timm), "[Coming from timm](../from_timm.md)"),
        (
            "torch.optim",
            f"`{theirs}`" if hasattr(torch.optim, theirs) else "",
            "[Coming from torch.optim](../from_torch.md)",
        ),
        ("transformers, `optim=`", ", ".join(transformers), "[the Trainer](../frameworks/transformers.md)"),
        ("kohya's scripts, `--optimizer_type`", ", ".join(kohya), in_place),
    ]
    lines = "\n".join(f"| {where} | {found or '–'} | {how} |" for where, found, how in rows)
    return f"| where | its name there | with descend |\n|---|---|---|\n{lines}\n"


# ----------------------------------------------------------------------------------------------------------------- race


def raced(kind: type) -> tuple[str, ...]:
    """The names under which the recorded race has a class."""
    own = {info.name for info in infos(kind)}
    return tuple(name for name in RACE["optimizers"] if name in own)


def race(names: tuple[str, ...], slug: str) -> str:
    """The curves of the recorded race."""
    rates = " and ".join(f"{RACE['optimizers'][name]['lr']:.2g}" for name in names)
    versions = ", ".join(f"{name} {version}" for name, version in RACE["versions"].items())
    return (
        f"![Validation error by step of {len(RACE['optimizers'])} optimizers](races/{slug}.svg){{.paths .clear}}\n\n"
        f"{RACE['task'][0].upper()}{RACE['task'][1:]}: `descend race`, {RACE['trials']} trials of search each, best "
        f"learning rate {rates}; {versions}. The task is easy: it shows that a rule works, not which is best.\n"
    )
