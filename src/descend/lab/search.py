"""What to try next: a function of what has been tried alone, so a search resumes exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

GRID = 5  # the first trials vary the learning rate alone, evenly spaced and with both edges
EXTENSIONS = 3  # decades that a range may grow on the side of the best
DECAY = (0.2, 1.0)  # the share of the steps after warm-up in which the learning rate goes down
BETA = (0.5, 0.99)
WEIGHT_DECAY = (1e-5, 1e-1)
# A trial is given up in its second half, and only where three quarters of those before were better at that step:
# orders change while the learning rate decays.
WORSE_THAN, PRUNE_AFTER = 75.0, 4


@dataclass(frozen=True)
class Choice:
    """What the search decides; `beta` is the momentum, or the first of several betas."""

    lr: float
    weight_decay: float
    beta: float | None
    decay: float = 1.0


@dataclass(frozen=True)
class Space:
    """Where to search: a range of learning rates, and the usual values of the rest. None: it is not searched."""

    low: float
    high: float
    weight_decay: float | None
    beta: float | None

    def usual(self, lr: float, weight_decay: float) -> Choice:
        """The usual values at a learning rate."""
        return Choice(lr, weight_decay if self.weight_decay is not None else 0.0, self.beta)


@dataclass(frozen=True)
class Tried:
    """A trial that is over; its losses by step. Infinity stands for one that diverged or was given up."""

    choice: Choice
    score: float
    losses: Mapping[int, float]


Prune = Callable[[int, float], bool]


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing but errors, for a while."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def around(suggested: tuple[float, float] | None) -> tuple[float, float]:
    """The range to search first: three decades or more with the suggested one in the middle."""
    if suggested is None:
        return 1e-4, 1.0
    low, high = suggested
    wider = max(1.0, math.sqrt(1e3 * low / high))
    return low / wider, high * wider


def spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` values from `low` to `high`, evenly spaced in the logarithm."""
    if count == 1 or low == high:
        return (math.sqrt(low * high),)
    inner = (low * (high / low) ** (i / (count - 1)) for i in range(1, count - 1))
    return (low, *inner, high)


def open_side(tried: Sequence[tuple[float, float]]) -> str | None:
    """The side of the best learning rate on which nothing was tried: `low`, `high`, or None.

    Fewer than three rates have no inside, so they say nothing about the sides unless all of them diverged.
    """
    best, loss = min(tried, key=lambda pair: pair[1])
    rates = {lr for lr, _ in tried}
    if not math.isfinite(loss):
        return "low"
    if len(rates) < 3:
        return None
    return "low" if best == min(rates) else "high" if best == max(rates) else None


def bounds(space: Space, tried: Sequence[Tried]) -> tuple[float, float]:
    """The range of learning rates, grown by what was tried outside it."""
    rates = [one.choice.lr for one in tried]
    return min([space.low, *rates]), max([space.high, *rates])


def first(space: Space, trials: int) -> tuple[float, ...]:
    """The learning rates of the first trials, which follow from nothing; each later trial follows from all before it."""
    return spaced(space.low, space.high, min(GRID, trials))


def suggest(
    space: Space, tried: Sequence[Tried], trials: int, steps: int, seed: int, number: int | None = None
) -> tuple[Choice, Prune]:
    """A trial, and what decides at a step and its loss whether to give it up.

    Args:
        space: where to search.
        tried: the trials that it follows from.
        trials: how many there will be if none is given up.
        steps: length of a trial.
        seed: everything random follows from it.
        number: which trial, from 0. None: the one after `tried`.
    """
    choice = _next(space, tried, trials, seed, len(tried) if number is None else number)
    pruner = _study(space, tried, steps, seed)
    trial = pruner.ask()

    def prune(step: int, loss: float) -> bool:
        trial.report(loss, step)
        return bool(trial.should_prune())

    return choice, prune


def _next(space: Space, tried: Sequence[Tried], trials: int, seed: int, number: int) -> Choice:
    grid = first(space, trials)
    decay = space.weight_decay or 0.0
    if number < len(grid):
        return space.usual(grid[number], decay)
    low, high = bounds(space, tried)
    best = min(tried, key=lambda one: one.score).choice
    side = open_side([(one.choice.lr, one.score) for one in tried])
    if side == "low" and space.low < space.high and low > space.low * 10**-EXTENSIONS * 1.01:
        return replace(best, lr=low / math.sqrt(10))
    if side == "high" and space.low < space.high and high < space.high * 10**EXTENSIONS * 0.99:
        return replace(best, lr=high * math.sqrt(10))
    return _proposed(space, tried, seed + number)


def _distributions(space: Space, tried: Sequence[Tried]) -> dict[str, object]:
    from optuna.distributions import FloatDistribution

    low, high = bounds(space, tried)
    found: dict[str, object] = {"lr": FloatDistribution(low, high, log=True), "decay": FloatDistribution(*DECAY)}
    if space.weight_decay is not None:
        usual = space.weight_decay
        edges = (min(WEIGHT_DECAY[0], usual) if usual else WEIGHT_DECAY[0], max(WEIGHT_DECAY[1], usual))
        found["weight_decay"] = FloatDistribution(*edges, log=True)
    if space.beta is not None:
        # Averages over 2 to 100 steps, evenly spaced in the logarithm of how long they are.
        edges = (1 - max(BETA[1], space.beta), 1 - min(BETA[0], space.beta))
        found["rest"] = FloatDistribution(*edges, log=True)
    return found


def _params(choice: Choice, space: Space) -> dict[str, float]:
    found = {"lr": choice.lr, "decay": choice.decay}
    if space.weight_decay is not None:
        found["weight_decay"] = choice.weight_decay or WEIGHT_DECAY[0]
    if space.beta is not None and choice.beta is not None:
        found["rest"] = 1 - choice.beta
    return found


def _study(space: Space, tried: Sequence[Tried], steps: int, seed: int):  # type: ignore[no-untyped-def]
    """Optuna's view of what was tried; a trial that diverged or was given up counts as the worst."""
    import optuna

    study = optuna.create_study(
        sampler=optuna.samplers.GPSampler(seed=seed, n_startup_trials=0),
        pruner=optuna.pruners.PercentilePruner(WORSE_THAN, PRUNE_AFTER, n_warmup_steps=steps // 2),
    )
    distributions = _distributions(space, tried)
    worst = max((one.score for one in tried if math.isfinite(one.score)), default=1.0)
    for one in tried:
        value = math.log(max(min(one.score, worst), 1e-12))
        study.add_trial(
            optuna.trial.create_trial(
                params=_params(one.choice, space),
                distributions=distributions,  # type: ignore[arg-type]
                value=value,
                intermediate_values=dict(one.losses),
            )
        )
    return study


def _proposed(space: Space, tried: Sequence[Tried], seed: int) -> Choice:
    """Where a Gaussian process over the logarithm of the loss expects the most."""
    params = _study(space, tried, 0, seed).ask(_distributions(space, tried)).params
    return Choice(
        params["lr"],
        params.get("weight_decay", 0.0),
        1 - params["rest"] if "rest" in params else None,
        params["decay"],
    )
