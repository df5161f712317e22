"""A race in one row an optimizer, for the table on the screen and the one in the report."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from descend.lab.race import Entry, Race, Run, Settings
from descend.lab.search import open_side
from descend.lab.tasks import Task


@dataclass(frozen=True)
class Row:
    """What one optimizer reached, over the seeds of its final runs; infinity stands for never."""

    name: str
    lr: float
    best: float
    median: float
    reached: int
    runs: int
    steps_to_target: float
    seconds_to_target: float
    step_ms: float
    optimizer_ms: float
    state_bytes: int
    trials: int
    diverged: int
    extensions: int
    at_edge: bool
    low: float
    high: float


def rows(race: Race, task: Task) -> list[Row]:
    """The contenders that have at least one final run, the best median first, then the fewest steps to the target."""
    made = [row(entry, race.settings, task) for entry in race.entries.values() if entry.runs and not entry.error]
    sign = -1 if task.higher_is_better else 1
    return sorted(made, key=lambda r: (sign * r.median, r.steps_to_target, r.name))


def row(entry: Entry, settings: Settings, task: Task) -> Row:
    """One contender's row."""
    worst = -math.inf if task.higher_is_better else math.inf
    metrics = [worst if run.diverged else run.curve[-1].metric for run in entry.runs]
    hits = [hit(run, task, settings.target) for run in entry.runs]
    plan = entry.plan(settings)
    return Row(
        name=entry.contender.name,
        lr=entry.best_lr,
        best=max(metrics) if task.higher_is_better else min(metrics),
        median=statistics.median(metrics),
        reached=sum(math.isfinite(step) for step, _ in hits),
        runs=len(entry.runs),
        steps_to_target=statistics.median_high(step for step, _ in hits),
        seconds_to_target=statistics.median_high(seconds for _, seconds in hits),
        step_ms=statistics.median(run.step_ms for run in entry.runs),
        optimizer_ms=statistics.median(run.optimizer_ms for run in entry.runs),
        state_bytes=entry.runs[-1].state_bytes,
        trials=len(entry.trials),
        diverged=sum(run.diverged for run in entry.trials),
        extensions=plan.extensions,
        at_edge=open_side(entry.tried) is not None,
        low=plan.low,
        high=plan.high,
    )


def hit(run: Run, task: Task, target: float) -> tuple[float, float]:
    """Steps and seconds of training after which a run first was at the target."""
    first = next((point for point in run.curve if task.reached(point.metric, target)), None)
    return (first.step, first.seconds) if first else (math.inf, math.inf)


def show_metric(value: float, task: Task) -> str:
    """A metric as people read it."""
    if not math.isfinite(value):
        return "diverged"
    return f"{100 * value:.1f}%" if task.metric == "accuracy" else f"{value:.3f}"


def show_lr(lr: float) -> str:
    """A learning rate in two digits."""
    if 1e-3 <= lr < 1e3:
        return f"{lr:.2g}"
    digits, power = f"{lr:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def show_ms(milliseconds: float) -> str:
    """A time to as many places as it is worth."""
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"


def show_ratio(value: float) -> str:
    """Bytes for each parameter."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
