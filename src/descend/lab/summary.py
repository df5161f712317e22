"""A race in one row an optimizer, for the table on the screen and the one in the report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from descend.lab.racing import Entry, Race, Run, Settings
from descend.lab.search import bounds, open_side
from descend.lab.table import plural
from descend.lab.task import Task


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
    pruned: int
    weight_decay: float
    beta: float | None
    decay: float
    ties: bool
    at_edge: bool
    low: float
    high: float


def rows(race: Race, task: Task) -> list[Row]:
    """The contenders that have at least one final run, the best median first, then the fewest steps to the target."""
    made = [row(entry, race.settings, task) for entry in race.entries.values() if entry.runs and not entry.error]
    sign = -1 if task.higher_is_better else 1
    ranked = sorted(made, key=lambda r: (sign * r.median, r.steps_to_target, r.name))
    if not ranked:
        return []
    alike = ties({row.name: metrics(race.entries[row.name], task) for row in ranked}, ranked[0].name)
    return [replace(row, ties=row.name in alike) for row in ranked]


def metrics(entry: Entry, task: Task) -> list[float]:
    """The metric at the end of each final run, by seed; infinitely bad for one that diverged."""
    worst = -math.inf if task.higher_is_better else math.inf
    return [worst if run.diverged else run.curve[-1].metric for run in entry.runs]


def ties(found: Mapping[str, Sequence[float]], best: str) -> set[str]:
    """Whom a paired t-test over the seeds cannot tell from the best, at 5 % after Holm's correction for all pairs."""
    p = {pair: paired(found[pair[0]], found[pair[1]]) for pair in combinations(found, 2)}
    apart, left = set[str](), len(p)
    for pair, chance in sorted(p.items(), key=lambda item: item[1]):
        if chance * left > 0.05:
            break
        left -= 1
        if best in pair:
            apart |= set(pair)
    return set(found) - (apart - {best})


def paired(a: Sequence[float], b: Sequence[float]) -> float:
    """How probable such differences between two over the same seeds are where there is none."""
    from scipy.special import stdtr  # type: ignore[import-untyped]

    pairs = list(zip(a, b, strict=False))
    differences = [x - y for x, y in pairs if x != y]
    finite = [x - y if math.isfinite(x - y) else 0.0 for x, y in pairs]
    if not differences:
        return 1.0
    if any(not math.isfinite(d) for d in differences):
        # One that diverged has no distance: the sign test, which asks only who was better.
        better = sum(d > 0 for d in differences)
        few = min(better, len(differences) - better)
        return min(1.0, 2 * sum(math.comb(len(differences), i) for i in range(few + 1)) / 2 ** len(differences))
    if len(finite) < 2:
        return 1.0
    spread = statistics.stdev(finite)
    if not spread:
        return 0.0
    t = abs(statistics.fmean(finite)) / (spread / math.sqrt(len(finite)))
    return float(2 * stdtr(len(finite) - 1, -t))


def row(entry: Entry, settings: Settings, task: Task) -> Row:
    """One contender's row."""
    found = metrics(entry, task)
    hits = [hit(run, task, settings.target) for run in entry.runs]
    space = entry.contender.space(settings.weight_decay)
    low, high = bounds(space, entry.tried)
    best = entry.best
    return Row(
        name=entry.contender.name,
        lr=best.lr,
        best=max(found) if task.higher_is_better else min(found),
        median=statistics.median(found),
        reached=sum(math.isfinite(step) for step, _ in hits),
        runs=len(entry.runs),
        steps_to_target=statistics.median_high(step for step, _ in hits),
        seconds_to_target=statistics.median_high(seconds for _, seconds in hits),
        step_ms=statistics.median(run.step_ms for run in entry.runs),
        optimizer_ms=statistics.median(run.optimizer_ms for run in entry.runs),
        state_bytes=entry.runs[-1].state_bytes,
        trials=len(entry.trials),
        diverged=sum(run.diverged for run in entry.trials),
        pruned=sum(run.pruned for run in entry.trials),
        weight_decay=best.weight_decay if entry.contender.decays else settings.weight_decay,
        beta=best.beta,
        decay=best.decay,
        ties=False,
        at_edge=space.low < space.high and open_side([(run.lr, run.score) for run in entry.trials]) is not None,
        low=low,
        high=high,
    )


def hit(run: Run, task: Task, target: float | None) -> tuple[float, float]:
    """Steps and seconds of training after which a run first was at the target."""
    first = next((point for point in run.curve if task.reached(point.metric, target)), None)
    return (first.step, first.seconds) if first else (math.inf, math.inf)


def show_metric(value: float, task: Task) -> str:
    """A metric as people read it."""
    if not math.isfinite(value):
        return "diverged"
    return f"{100 * value:.1f}%" if task.percent else f"{value:.3f}" if 0.01 <= abs(value) < 1e4 else f"{value:.3g}"


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


def verdict(ranked: Sequence[Row]) -> str:
    """Who won, or who cannot be told apart."""
    if not ranked:
        return "no optimizer has finished"
    first, *others = [row.name for row in ranked if row.ties]
    if len(ranked) == 1:
        return f"{first} raced alone"
    pairs = len(ranked) * (len(ranked) - 1) // 2
    over = f"{plural(ranked[0].runs, 'seed')} at 5 %, corrected for {plural(pairs, 'pair')}"
    test = f"paired t-test over {over}"
    if not others:
        return f"{first} won ({test})"
    return f"a tie of {first} with {', '.join(others)} ({test})"
