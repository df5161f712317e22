"""Many tasks, one ranking: performance profiles, as AlgoPerf ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from descend.lab.result import Result
from descend.lab.table import Table, plural

WITHIN = 4.0  # a target that takes this many times the fewest steps counts as not reached


def ratios(steps: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """For each optimizer and task its steps to the target over the fewest that any took; infinity for never.

    Args:
        steps: steps to the target, by task and optimizer. A task whose target none reached tells nothing and is left out.
    """
    names = list(dict.fromkeys(name for found in steps.values() for name in found))
    found: dict[str, list[float]] = {name: [] for name in names}
    for of_task in steps.values():
        fewest = min(of_task.values(), default=math.inf)
        if math.isfinite(fewest):
            for name in names:
                found[name].append(of_task.get(name, math.inf) / max(fewest, 1))
    return found


def profile(ratios: Sequence[float], within: float) -> float:
    """The share of tasks that take at most `within` times the fewest steps."""
    return sum(ratio <= within for ratio in ratios) / len(ratios) if ratios else 0.0


def score(ratios: Sequence[float], within: float = WITHIN) -> float:
    """The mean of the profile from 1 to `within`: 1 for the one that needs the fewest steps on every task."""
    if not ratios:
        return 0.0
    return sum(max(0.0, within - ratio) for ratio in ratios if ratio <= within) / (len(ratios) * (within - 1))


def table(results: Sequence[Result]) -> Table:
    """The ranking over all tasks, the best first."""
    steps = {result.task.name: {row.name: row.steps_to_target for row in result.rows} for result in results}
    first: dict[str, int] = {}
    for result in results:
        for row in result.rows:
            first[row.name] = first.get(row.name, 0) + row.ties
    found = ratios(steps)
    told = max(map(len, found.values()), default=0)
    rows = [
        [
            name,
            f"{score(mine):.2f}",
            f"{100 * profile(mine, 1.5):.0f}%",
            f"{sum(map(math.isfinite, mine))}/{told}",
            f"{first.get(name, 0)}/{len(results)}",
        ]
        for name, mine in sorted(found.items(), key=lambda item: (-score(item[1]), item[0]))
    ]
    notes = [
        f"score: mean share of tasks within 1 to {WITHIN:g} times the fewest steps",
        "first: tasks on which no other is better beyond what seeds differ",
    ]
    title = f"{told} of {plural(len(results), 'task')}, by steps to their targets"
    return Table(title, ["optimizer", "score", "within 1.5x", "reached", "first"], rows, notes)
