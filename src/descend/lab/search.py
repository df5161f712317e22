"""Which learning rate to try next: a pure function of what has been tried, so a search resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

GRID = 6  # the first trials, evenly spaced and with both edges, so that everyone sees the whole range
EXTENSIONS = 3  # of a decade each

Tried = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plan:
    """Where a search stands: the range and the number of trials so far known to be needed."""

    low: float
    high: float
    trials: int
    extensions: int
    begin: int
    first: tuple[float, ...]

    def next_lr(self, tried: Tried, seed: int = 0) -> float | None:
        """The learning rate to try after `tried`; None when the search is over."""
        if len(tried) >= self.trials:
            return None
        number = len(tried) - self.begin
        if number < len(self.first):
            return self.first[number]
        return propose(tried, self.low, self.high, seed + len(tried))


def around(suggested: tuple[float, float] | None) -> tuple[float, float]:
    """The range to search first: three decades or more with the suggested one in the middle."""
    if suggested is None:
        return 1e-4, 1.0
    low, high = suggested
    wider = max(1.0, math.sqrt(1e3 * low / high))
    return low / wider, high * wider


def plan(tried: Tried, low: float, high: float, budget: int) -> Plan:
    """Where a search between `low` and `high` stands, given the `(lr, loss)` pairs tried so far in order.

    It is over after `budget` trials, unless the best learning rate is the lowest or the highest that was tried:
    then the range grows by a decade on that side with `more(budget)` trials, at most `EXTENSIONS` times.
    """
    state = Plan(low, high, budget, 0, 0, spaced(low, high, min(GRID, budget)))
    while len(tried) >= state.trials and state.extensions < EXTENSIONS:
        side = open_side(tried[: state.trials])
        if side is None:
            break
        if side == "low":
            low /= 10
            first = (low * math.sqrt(10), low)
        else:
            high *= 10
            first = (high / math.sqrt(10), high)
        state = Plan(low, high, state.trials + more(budget), state.extensions + 1, state.trials, first)
    return state


def more(budget: int) -> int:
    """How many trials an extension of the range brings."""
    return max(3, budget // 4)


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` values from `low` to `high`, evenly spaced in the logarithm."""
    if count == 1:
        return (math.sqrt(low * high),)
    inner = (low * (high / low) ** (i / (count - 1)) for i in range(1, count - 1))
    return (low, *inner, high)


def open_side(tried: Tried) -> str | None:
    """The side of the best learning rate on which nothing was tried: `low`, `high`, or None.

    Fewer than three trials have no inside, so they say nothing about the sides unless all of them diverged.
    """
    best, loss = min(tried, key=lambda pair: pair[1])
    rates = {lr for lr, _ in tried}
    if not math.isfinite(loss):
        return "low"
    if len(rates) < 3:
        return None
    return "low" if best == min(rates) else "high" if best == max(rates) else None


def propose(tried: Tried, low: float, high: float, seed: int) -> float:
    """Optuna's next learning rate: a Gaussian process over log(loss), in which a diverged run counts as the worst."""
    import optuna

    rates = optuna.distributions.FloatDistribution(low, high, log=True)
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=seed, n_startup_trials=0))
    worst = max((loss for _, loss in tried if math.isfinite(loss)), default=1.0)
    for lr, loss in tried:
        value = math.log(max(min(loss, worst), 1e-12))
        study.add_trial(optuna.trial.create_trial(params={"lr": lr}, distributions={"lr": rates}, value=value))
    return float(study.ask({"lr": rates}).params["lr"])
