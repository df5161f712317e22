"""The race: the same weights and the same batches for every optimizer, and an equal search for its learning rate."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from descend.lab.search import Plan, plan
from descend.lab.tasks import Data, Task


class MakeOptimizer(Protocol):
    """How a race makes an optimizer; `descend.create_optimizer_v2` is one."""

    def __call__(self, model: nn.Module, /, *, opt: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Make the optimizer `opt` over the parameters of `model`."""


@dataclass(frozen=True)
class Contender:
    """One optimizer of a race and the range of learning rates that its search starts with."""

    name: str
    low: float = 1e-4
    high: float = 1.0
    second_order: bool = False


@dataclass(frozen=True)
class Settings:
    """What is the same for every contender."""

    task: str
    steps: int
    search_steps: int
    batch: int
    target: float
    trials: int = 12
    seeds: int = 3
    seed: int = 0
    warmup: float = 0.1
    weight_decay: float = 1e-3
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Point:
    """One look at the validation examples; `seconds` counts training only."""

    step: int
    seconds: float
    train_loss: float | None
    loss: float
    metric: float


@dataclass(frozen=True)
class Run:
    """One training from start to end, or to where it diverged."""

    lr: float
    seed: int
    curve: list[Point]
    diverged: bool
    step_ms: float
    optimizer_ms: float
    state_bytes: int

    @property
    def score(self) -> float:
        """What the search minimises: the validation loss at the end."""
        return math.inf if self.diverged else self.curve[-1].loss


@dataclass
class Entry:
    """All that one contender has done so far."""

    contender: Contender
    trials: list[Run] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    error: str | None = None

    @property
    def tried(self) -> list[tuple[float, float]]:
        """Learning rate and score of every trial, in order."""
        return [(run.lr, run.score) for run in self.trials]

    def plan(self, settings: Settings) -> Plan:
        """Where the learning-rate search stands."""
        return plan(self.tried, self.contender.low, self.contender.high, settings.trials)

    @property
    def best_lr(self) -> float:
        """The learning rate of the final runs."""
        return min(self.trials, key=lambda run: run.score).lr


@dataclass
class Race:
    """A race, finished or not; everything that is saved."""

    settings: Settings
    entries: dict[str, Entry] = field(default_factory=dict)
    untrained: Point | None = None
    parameters: int = 0
    data_note: str = ""
    data_hash: str = ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """Where a race is, for whoever watches it."""

    name: str
    phase: str
    number: int
    planned: int
    lr: float
    step: int
    steps: int
    done: int
    total: int
    metric: float


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """The learning rate's factor in step 0, 1, ..., steps - 1."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor in the optimizer's state."""

    def count(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        if isinstance(value, dict):
            return sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, (list, tuple)) else 0

    return count(optimizer.state_dict()["state"])


def train(
    task: Task,
    data: Data,
    settings: Settings,
    contender: Contender,
    make_optimizer: MakeOptimizer,
    lr: float,
    seed: int,
    steps: int,
    watch: Callable[[Point], None],
) -> Run:
    """Train once; the initial weights and the batches depend on `seed` and on nothing else."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        # A second-order optimizer needs the graph; zero_grad() below breaks the cycle that torch warns about.
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        torch.manual_seed(seed)
        model = task.model().to(settings.device)
        optimizer = make_optimizer(model, opt=contender.name, lr=lr, weight_decay=settings.weight_decay)
        bases = [group["lr"] for group in optimizer.param_groups]
        order = data.order(seed, steps, settings.batch).to(settings.device)
        every = max(1, steps // 25)
        curve = [Point(0, 0.0, None, *task.judge(model, data))]
        seconds, losses = 0.0, []
        step_times, optimizer_times = [], []
        diverged = False

        for step in range(steps):
            switch(optimizer, "train")
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * warmup_cosine(step, steps, settings.warmup)
            begin = clock(settings.device)
            loss = task.loss(model, data.inputs[order[step]], data.targets[order[step]])
            torch.autograd.backward(loss, create_graph=contender.second_order)
            ready = clock(settings.device)
            optimizer.step()
            stepped = clock(settings.device)
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds += stepped - begin
            step_times.append(stepped - begin)
            optimizer_times.append(stepped - ready)
            diverged = not math.isfinite(losses[-1])
            if not diverged and (step + 1) % every and step + 1 < steps:
                continue
            if not diverged:
                switch(optimizer, "eval")
                point = Point(step + 1, seconds, statistics.fmean(losses), *task.judge(model, data))
                diverged = not math.isfinite(point.loss)
                losses = []
            if diverged:
                break
            curve.append(point)
            watch(point)

        return Run(
            lr,
            seed,
            curve,
            diverged,
            1e3 * statistics.median(step_times),
            1e3 * statistics.median(optimizer_times),
            state_bytes(optimizer),
        )


def switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Put an optimizer that keeps two sets of weights (schedule-free) into `train` or `eval`."""
    change = getattr(optimizer, mode, None)
    if callable(change):
        change()


def clock(device: str) -> float:
    """The time, once the device has finished what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def untrained(task: Task, data: Data, settings: Settings) -> tuple[Point, int]:
    """How the models of the final runs do before any training (median), and how many parameters they have."""
    points = []
    with torch.random.fork_rng():
        for seed in final_seeds(settings):
            torch.manual_seed(seed)
            model = task.model().to(settings.device)
            points.append(task.judge(model, data))
    loss, metric = (statistics.median(values) for values in zip(*points, strict=True))
    return Point(0, 0.0, None, loss, metric), sum(p.numel() for p in model.parameters())


def final_seeds(settings: Settings) -> range:
    """The seeds of the final runs: none of them is the search's own."""
    return range(settings.seed + 1, settings.seed + 1 + settings.seeds)


def race(
    task: Task,
    settings: Settings,
    contenders: Sequence[Contender],
    make_optimizer: MakeOptimizer,
    *,
    done: Race | None = None,
    save: Callable[[Race], None] = lambda race: None,
    watch: Callable[[Moment], None] = lambda moment: None,
) -> Race:
    """Race `contenders` on `task`; what `done` holds already is not run again.

    `save` is called after every run with all that is done so far. An optimizer that raises is out of the race
    with its message kept, and the others go on.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return run_all(task, settings, contenders, make_optimizer, done, save, watch)
    finally:
        torch.set_num_threads(before)


def run_all(
    task: Task,
    settings: Settings,
    contenders: Sequence[Contender],
    make_optimizer: MakeOptimizer,
    done: Race | None,
    save: Callable[[Race], None],
    watch: Callable[[Moment], None],
) -> Race:
    """The race itself, on as many threads as are set."""
    data = task.load()
    result = done or Race(settings)
    if result.data_hash and result.data_hash != data.fingerprint():
        raise ValueError(
            f"the saved race was run on other data ({result.data_hash}, here {data.fingerprint()}): "
            "resume it with the Python and scikit-learn that it was started with, or start a new one"
        )
    result.data_note, result.data_hash = data.note, data.fingerprint()
    data = data.to(settings.device)
    result.untrained, result.parameters = untrained(task, data, settings)
    entries = [result.entries.setdefault(contender.name, Entry(contender)) for contender in contenders]
    for entry in entries:
        entry.error = None

    def go(entry: Entry, phase: str, number: int, planned: int, lr: float, seed: int, steps: int) -> Run:
        name, (before, total) = entry.contender.name, progress(entries, settings)

        def look(point: Point) -> None:
            at = before + point.step
            watch(Moment(name, phase, number, planned, lr, point.step, steps, at, total, point.metric))

        return train(task, data, settings, entry.contender, make_optimizer, lr, seed, steps, look)

    for entry in entries:
        try:
            while (lr := entry.plan(settings).next_lr(entry.tried, settings.seed)) is not None:
                number, planned = len(entry.trials) + 1, entry.plan(settings).trials
                entry.trials.append(go(entry, "search", number, planned, lr, settings.seed, settings.search_steps))
                save(result)
            if all(run.diverged for run in entry.trials):
                raise ArithmeticError("it diverged at every learning rate that was tried")
            for seed in final_seeds(settings)[len(entry.runs) :]:
                number = len(entry.runs) + 1
                entry.runs.append(go(entry, "final", number, settings.seeds, entry.best_lr, seed, settings.steps))
                save(result)
        except Exception as error:
            entry.error = f"{type(error).__name__}: {error}"
            save(result)
    return result


def progress(entries: Sequence[Entry], settings: Settings) -> tuple[int, int]:
    """Steps done, and steps that the race has in all as far as is known now."""
    done = total = 0
    for entry in entries:
        so_far = len(entry.trials) * settings.search_steps + len(entry.runs) * settings.steps
        whole = entry.plan(settings).trials * settings.search_steps + settings.seeds * settings.steps
        done += so_far
        total += so_far if entry.error else whole
    return done, total
