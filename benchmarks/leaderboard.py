"""Record the leaderboard part by part, and write its page.

A part is one optimizer on one task. It is saved at once, and within it every run: what was interrupted goes on. A part
that was recorded with other settings is recorded again.

Usage:
    python benchmarks/leaderboard.py record docs/leaderboard.json [--tasks A,B] [--optimizers A,B] [--trials N]
                                     [--seeds N] [--steps N] [--threads N] [--minutes M]
    python benchmarks/leaderboard.py page docs/leaderboard.json docs/leaderboard.md
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import optuna

import descend
from descend.lab import store, suite
from descend.lab.contender import parse
from descend.lab.outcome import write
from descend.lab.racing import Moment, Race, Settings, Stopped, race
from descend.lab.summary import hit, metrics, show_lr, show_metric, ties
from descend.lab.table import markdown, plural
from descend.lab.task import Task
from descend.lab.tasks import tasks

OPTIMIZERS = (
    "adamw,adamw:caution=true,sgd,nadamw,radam,adabelief,adan,lion,lamb,lars,adopt,ademamix,mars,laprop,rmsprop,madgrad,"
    "adafactor,prodigy,schedulefreeadamw,muon,muon:momentum=0.0,normuon,soap,shampoo,kron"
)
FOLDER = Path("runs/leaderboard")
ENOUGH = 20  # optimizers that a ranking is worth making for

# What the literature found, the best first, and where; whether it is expected at this size.
ORDERS = (
    ("gpt", ("soap", "muon", "adamw", "sgd"), "SOAP and Muon before AdamW before SGD on a transformer",
     "modded-nanogpt track 3; arXiv 2509.02046"),
    ("gpt", ("muon", "muon:momentum=0.0"), "Muon far behind without its momentum", "–"),
    ("gpt", ("adamw", "schedulefreeadamw"), "schedule-free AdamW about as good as AdamW with a schedule",
     "AlgoPerf self-tuning, arXiv 2405.15682"),
    ("gpt", ("adamw", "lion"), "Lion behind AdamW at a small batch", "arXiv 2509.01440"),
    ("gpt", ("adamw:caution=true", "adamw"), "caution ahead of plain AdamW", "LightBench; arXiv 2411.16085"),
)  # fmt: skip
CANNOT = (
    "Whether differences of 1 to 4 % between Muon's variants, with and without momentum among them, hold with another "
    "search or another length: that was not tried.",
    "What a longer search finds. The first five trials vary the learning rate alone, on a grid whose neighbours are a factor of "
    "five or more apart; only those that follow move weight decay, beta and the decay's share.",
    "Lion and Signum recover at large batches; no task here has one.",
    "Leads of matrix methods over AdamW shrink from 1.4 times at 0.1 billion parameters to 1.1 times at 1.2 billion "
    "(arXiv 2509.02046): a lead here says nothing about their size there.",
    "Trainings of some hundred steps reward a quick start; memory, time of a step and stability over long runs are not "
    "in the ranking.",
)


@dataclass(frozen=True)
class Part:
    """One optimizer on one task."""

    task: str
    optimizer: str
    settings: dict[str, Any]
    metrics: list[float]
    steps_to_target: list[float | None]
    lr: float
    weight_decay: float
    beta: float | None
    decay: float
    trials: int
    error: str | None
    environment: dict[str, str]

    @property
    def median(self) -> float:
        """Over the seeds."""
        return statistics.median(self.metrics)

    @property
    def to_target(self) -> float:
        """Median steps to the target; infinity where fewer than half of the seeds reach it."""
        return statistics.median_high(math.inf if steps is None else steps for steps in self.steps_to_target)


def read(path: Path) -> list[Part]:
    """The parts of a recording."""
    return [Part(**part) for part in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []


def save(parts: Sequence[Part], path: Path) -> None:
    """A part on each line."""
    lines = ",\n".join(json.dumps(asdict(part), allow_nan=False) for part in parts)
    write(path, f"[\n{lines}\n]\n")


def part_of(found: Race, task: Task, name: str) -> Part:
    """What is kept of a race of one optimizer."""
    entry = found.entries[name]
    failed = entry.error or ("it diverged on every seed" if all(run.diverged for run in entry.runs) else None)
    if any(run.diverged for run in entry.runs) and not failed:
        failed = f"it diverged on {sum(run.diverged for run in entry.runs)} of {len(entry.runs)} seeds"
    hits = [hit(run, task, found.settings.target)[0] for run in entry.runs]
    kept = [] if failed else metrics(entry, task)
    best = entry.best if entry.trials else None
    return Part(
        task.name, name, asdict(found.settings), kept, [h if math.isfinite(h) else None for h in hits],
        best.lr if best else 0.0, best.weight_decay if best else 0.0, best.beta if best else None,
        best.decay if best else 0.0, len(entry.trials), failed, store.environment(),
    )  # fmt: skip


def record(path: Path, wanted: Sequence[str], optimizers: str, given: Mapping[str, int], minutes: float | None) -> int:
    """Record what is missing; the part at which the time is over goes on the next time."""
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def watch(moment: Moment) -> None:
        if time.monotonic() > end:
            raise Stopped

    for name in wanted:
        task = tasks()[name]
        steps = given.get("steps") or task.steps
        settings = Settings(
            name, steps, steps, task.batch, task.target, given["trials"], given["seeds"],
            threads=given.get("threads") or task.threads,
        )  # fmt: skip
        for contender in parse(optimizers, descend):  # type: ignore[arg-type]
            parts = {(part.task, part.optimizer): part for part in read(path)}
            before = parts.get((name, contender.name))
            if before and before.settings == asdict(settings):
                continue
            folder = FOLDER / name / contender.name.replace(":", "+")
            done = store.load(folder) if (folder / store.FILE).exists() else None
            if done and done.settings != settings:
                done = None
            try:
                found = race(
                    task, settings, [contender], descend.create_optimizer_v2,  # type: ignore[arg-type]
                    done=done, save=lambda now, folder=folder: store.save(now, folder), watch=watch,
                )  # fmt: skip
            except (Stopped, KeyboardInterrupt) as stop:
                print(f"stopped in {name}, {contender.name}; the same command goes on")
                return 130 if isinstance(stop, KeyboardInterrupt) else 0
            parts[name, contender.name] = part = part_of(found, task, contender.name)
            save(list(parts.values()), path)
            print(f"{name:18} {contender.name:22} {part.error or show_metric(part.median, task)}", flush=True)
    return 0


# ------------------------------------------------------------------------------------------------------------ the page


def page(parts: Sequence[Part]) -> str:
    """The document; it says what was recorded, and of the rest that it was not."""
    by_task: dict[str, list[Part]] = {}
    for part in parts:
        by_task.setdefault(part.task, []).append(part)
    sections = [
        "# Leaderboard",
        "Made by `benchmarks/leaderboard.py` from `docs/leaderboard.json`. Every optimizer has the same budget of steps to "
        "search learning rate, weight decay, first beta and the decay's share, with warm-up and cosine for all, "
        "schedule-free ones too; then come seeds that the search has not seen. A tie is what a paired t-test over the seeds "
        "at 5 %, corrected for all pairs of a task, cannot tell from the first.",
        recorded(by_task),
    ]
    most = max(map(len, by_task.values()), default=0)
    whole = {name: found for name, found in by_task.items() if len(found) == most}
    if most >= ENOUGH:
        sections.append(overall(whole))
    sections.append(literature(by_task))
    sections.append("## What this size cannot tell\n\n" + "\n".join(f"- {line}" for line in CANNOT))
    sections += [section(tasks()[name], found) for name, found in by_task.items()]
    sections += [machine(parts)] if parts else []
    return "\n\n".join(sections) + "\n"


def recorded(by_task: Mapping[str, Sequence[Part]]) -> str:
    """Which tasks, and how long."""
    rows = []
    for name, found in by_task.items():
        task, settings = tasks()[name], found[0].settings
        same = all(part.settings == settings for part in found)
        usual = settings["steps"] == task.steps
        rows.append([
            f"`{name}`", str(len(found)), str(settings["seeds"]), str(settings["trials"]),
            f"{settings['steps']}" + ("" if usual else f" of {task.steps}") + ("" if same else ", mixed"),
            "–" if settings["target"] is None else show_metric(settings["target"], task),
        ])  # fmt: skip
    missing = [f"`{name}`" for name in tasks() if name not in by_task]
    text = "## What was recorded\n\n"
    text += markdown(["task", "optimizers", "seeds", "trials", "steps", "target"], rows) if rows else "Nothing yet."
    text += (
        "\n\nTrials are those that an optimizer can pay for. Steps stand beside those of the task where they are fewer."
    )
    if missing:
        text += f" Not recorded: {', '.join(missing)}."
    return text + (
        " `make leaderboard` records all tasks with 25 optimizers, 5 seeds, 10 trials and the tasks' own steps, and "
        "replaces what was recorded with less. It may be stopped at any time and goes on where it was."
    )


def overall(by_task: Mapping[str, Sequence[Part]]) -> str:
    """The ranking over the tasks with the most optimizers."""
    everyone = {part.optimizer for found in by_task.values() for part in found}
    on_all = {name for name in everyone if all(name in {p.optimizer for p in found} for found in by_task.values())}
    steps = {
        task: {p.optimizer: math.inf if p.error else p.to_target for p in found if p.optimizer in on_all}
        for task, found in by_task.items()
    }
    first = {name: alike(tasks()[name], found) for name, found in by_task.items()}
    shares = suite.ratios(steps)
    told = max(map(len, shares.values()), default=0)
    rows = [
        [
            f"`{name}`",
            f"{suite.score(mine):.2f}",
            f"{100 * suite.profile(mine, 1.5):.0f} %",
            f"{sum(map(math.isfinite, mine))} of {told}",
            f"{sum(name in names for names in first.values())} of {len(by_task)}",
        ]
        for name, mine in sorted(shares.items(), key=lambda item: (-suite.score(item[1]), item[0]))
    ]
    text = "## Ranking\n\n" + markdown(["optimizer", "score", "within 1.5 ×", "reached", "first"], rows)
    return text + (
        f"\n\nOn {plural(len(by_task), 'task')}, those with the most optimizers: {', '.join(f'`{name}`' for name in by_task)}. Score: the mean share of tasks "
        f"within 1 to {suite.WITHIN:g} times the fewest steps to the target. First: tasks on which no other is better "
        "beyond what the seeds differ."
        + (
            f" Not ranked, for not recorded on all: {', '.join(f'`{n}`' for n in sorted(everyone - on_all))}."
            if everyone > on_all
            else ""
        )
    )


def alike(task: Task, found: Sequence[Part]) -> set[str]:
    """The first of a task, and who cannot be told from it."""
    fine = ranked(task, found)
    return ties({part.optimizer: part.metrics for part in fine}, fine[0].optimizer) if fine else set()


def ranked(task: Task, found: Sequence[Part]) -> list[Part]:
    """Those that trained, the best first."""
    sign = -1 if task.higher_is_better else 1
    return sorted((part for part in found if not part.error), key=lambda p: (sign * p.median, p.to_target, p.optimizer))


def literature(by_task: Mapping[str, Sequence[Part]]) -> str:
    """What others found, beside what was recorded here."""
    rows = []
    for name, order, claim, source in ORDERS:
        found = {part.optimizer: part for part in by_task.get(name, ()) if not part.error}
        if missing := [optimizer for optimizer in order if optimizer not in found]:
            rows.append([claim, source, f"not recorded: {', '.join(f'`{one}`' for one in missing)}"])
            continue
        task = tasks()[name]
        here = ranked(task, [found[optimizer] for optimizer in order])
        words = f"`{here[0].optimizer}` {show_metric(here[0].median, task)}"
        for better, worse in pairwise(here):
            pair = {one.optimizer: one.metrics for one in (better, worse)}
            sign = "≈" if worse.optimizer in ties(pair, better.optimizer) else "before"
            words += f" {sign} `{worse.optimizer}` {show_metric(worse.median, task)}"
        rows.append([claim, source, f"{words} (`{name}`, {found[order[0]].settings['steps']} steps)"])
    head = ["the literature", "source", "here; ≈ is what the seeds cannot tell apart"]
    return "## The literature's order\n\n" + markdown(head, rows, right=False)


def section(task: Task, found: Sequence[Part]) -> str:
    """One task."""
    same = alike(task, found)
    rows = []
    for part in ranked(task, found):
        spread = statistics.stdev(part.metrics) if len(part.metrics) > 1 else 0.0
        rows.append([
            f"`{part.optimizer}`" + " =" * (part.optimizer in same),
            show_metric(part.median, task), show_metric(spread, task) if spread else "–",
            f"{part.to_target:.0f}" if math.isfinite(part.to_target) else "–",
            show_lr(part.lr), show_lr(part.weight_decay), "–" if part.beta is None else f"{part.beta:.3g}",
            f"{100 * part.decay:.0f} %",
        ])  # fmt: skip
    head = ["optimizer", f"median {task.metric_name}", "deviation", "steps to target", "lr", "weight decay", "beta",
            "lr decays over"]  # fmt: skip
    text = f"## {task.name}: {task.title}\n\n{markdown(head, rows)}"
    failed = [f"- `{part.optimizer}`: {part.error}" for part in found if part.error]
    notes = ["= is the first, or cannot be told from it.", "\n".join(failed)]
    return "\n\n".join([text, *filter(None, notes)])


def machine(parts: Sequence[Part]) -> str:
    """The versions and machines of all parts."""
    seen: dict[str, list[str]] = {}
    for part in parts:
        for key, value in part.environment.items():
            if value not in seen.setdefault(key, []):
                seen[key].append(value)
    rows = [[key, ", ".join(values)] for key, values in seen.items()]
    return "## On what machine\n\n" + markdown(["", ""], rows, right=False)


def main(words: Sequence[str]) -> int:
    """One of the usages above."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("what", choices=("record", "page"))
    parser.add_argument("recording", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--tasks", default=",".join(tasks()))
    parser.add_argument("--optimizers", default=OPTIMIZERS)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--minutes", type=float)
    given = parser.parse_args(words)
    if given.what == "record":
        budget = {part: getattr(given, part) for part in ("trials", "seeds", "steps", "threads")}
        return record(given.recording, given.tasks.split(","), given.optimizers, budget, given.minutes)
    if given.page is None:
        parser.error("page needs the file to write")
    write(given.page, page(read(given.recording)))
    print(f"wrote {given.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
