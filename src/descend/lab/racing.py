"""The race: the same weights and the same batches for every optimizer, and an equal search for each."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from descend.lab.contender import Contender
from descend.lab.search import Choice, Prune, Tried, suggest
from descend.lab.sizes import held_bytes
from descend.lab.task import Examples, Task, check


class MakeOptimizer(Protocol):
    """How a race makes an optimizer; `descend.create_optimizer_v2` is one."""

    def __call__(self, model: nn.Module, /, *, opt: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Make the optimizer `opt` over the parameters of `model`; options of the contender come as keywords too."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every contender."""

    task: str
    steps: int
    search_steps: int
    batch: int
    target: float | None = None
    trials: int = 10
    seeds: int = 5
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
    """One training from start to end, or to where it diverged or was given up."""

    choice: Choice
    seed: int
    curve: list[Point]
    diverged: bool
    pruned: bool
    steps: int
    step_ms: float
    optimizer_ms: float
    state_bytes: int

    @property
    def lr(self) -> float:
        """Its peak learning rate."""
        return self.choice.lr

    @property
    def score(self) -> float:
        """What the search minimises: the validation loss at the end."""
        return math.inf if self.diverged or self.pruned else self.curve[-1].loss


@dataclass
class Entry:
    """All that one contender has done so far."""

    contender: Contender
    trials: list[Run] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    error: str | None = None

    @property
    def tried(self) -> list[Tried]:
        """Every trial, in order."""
        return [Tried(run.choice, run.score, {p.step: p.loss for p in run.curve[1:]}) for run in self.trials]

    @property
    def best(self) -> Choice:
        """The choice of the final runs."""
        return min(self.trials, key=lambda run: run.score).choice

    @property
    def best_lr(self) -> float:
        """The learning rate of the final runs."""
        return self.best.lr

    @property
    def spent(self) -> int:
        """Steps of the search so far."""
        return sum(run.steps for run in self.trials)

    def phase(self, settings: Settings) -> str | None:
        """What comes next, `search` or `final`; None when all is done.

        The search has a budget of steps: one that is given up early leaves its steps to another.
        """
        if self.error:
            return None
        room = self.spent + settings.search_steps <= settings.trials * settings.search_steps
        if room and len(self.trials) < 2 * settings.trials:
            return "search"
        return "final" if len(self.runs) < settings.seeds else None


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


def warmup_cosine(step: int, steps: int, warmup: float, decay: float = 1.0) -> float:
    """The learning rate's factor in step 0, 1, ..., steps - 1: a rise, then 1, then a cosine to zero.

    `warmup` is the share of all steps in which it rises, `decay` the share of the others in which it goes down.
    """
    rise = max(1, round(steps * warmup))
    if step < rise:
        return (step + 1) / rise
    fall = max(1, round((steps - rise) * decay))
    done = max(0, step - (steps - fall) + 1)
    return 0.5 * (1 + math.cos(math.pi * done / (fall + 1)))


def train(
    task: Task,
    data: Examples,
    settings: Settings,
    contender: Contender,
    make_optimizer: MakeOptimizer,
    choice: Choice,
    seed: int,
    steps: int,
    watch: Callable[[Point], bool],
) -> Run:
    """Train once, until `watch` says to give up; weights and batches depend on `seed` and on nothing else."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        # A second-order optimizer needs the graph; zero_grad() below breaks the cycle that torch warns about.
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        torch.manual_seed(seed)
        model = task.model().to(settings.device)
        optimizer = make_optimizer(model, **contender.arguments(choice, settings.weight_decay))
        bases = [group["lr"] for group in optimizer.param_groups]
        every = max(1, steps // 25)
        curve = [Point(0, 0.0, None, *task.judge(model, data))]
        seconds, losses = 0.0, []
        step_times, optimizer_times = [], []
        diverged = pruned = False

        for step, batch in enumerate(data.batches(seed, steps, settings.batch)):
            switch(optimizer, "train")
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * warmup_cosine(step, steps, settings.warmup, choice.decay)
            begin = clock(settings.device)
            loss = task.loss(model, batch)
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
                losses.clear()
                diverged = not math.isfinite(point.loss)
            if diverged:
                break
            curve.append(point)
            if watch(point) and step + 1 < steps:
                pruned = True
                break

        return Run(
            choice,
            seed,
            curve,
            diverged,
            pruned,
            len(step_times),
            1e3 * statistics.median(step_times),
            1e3 * statistics.median(optimizer_times),
            held_bytes(optimizer),
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


def untrained(task: Task, data: Examples, settings: Settings) -> tuple[Point, int]:
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
    check(task, data, settings.batch)
    result.data_note, result.data_hash = data.note, data.fingerprint()
    data = data.to(settings.device)
    result.untrained, result.parameters = untrained(task, data, settings)
    entries = [result.entries.setdefault(contender.name, Entry(contender)) for contender in contenders]
    for entry in entries:
        entry.error = None

    def go(entry: Entry) -> None:
        contender, (before, total) = entry.contender, progress(entries, settings)
        prune: Prune | None = None
        if entry.phase(settings) == "search":
            phase, number, planned = "search", len(entry.trials) + 1, settings.trials
            seed, steps = settings.seed, settings.search_steps
            space = contender.space(settings.weight_decay)
            choice, prune = suggest(space, entry.tried, settings.trials, steps, seed)
        else:
            if all(run.diverged for run in entry.trials):
                raise ArithmeticError("it diverged at every learning rate that was tried")
            phase, number, planned = "final", len(entry.runs) + 1, settings.seeds
            seed, steps, choice = final_seeds(settings)[len(entry.runs)], settings.steps, entry.best

        def look(point: Point) -> bool:
            at = before + point.step
            watch(Moment(contender.name, phase, number, planned, choice.lr, point.step, steps, at, total, point.metric))
            return prune is not None and prune(point.step, point.loss)

        run = train(task, data, settings, contender, make_optimizer, choice, seed, steps, look)
        (entry.trials if phase == "search" else entry.runs).append(run)

    # The one that has done the fewest runs is next, so that a busy machine hits all alike.
    while waiting := [entry for entry in entries if entry.phase(settings)]:
        entry = min(waiting, key=lambda entry: len(entry.trials) + len(entry.runs))
        try:
            go(entry)
        except Exception as error:
            entry.error = f"{type(error).__name__}: {error}"
        save(result)
    return result


def progress(entries: Sequence[Entry], settings: Settings) -> tuple[int, int]:
    """Steps done, and steps that the race has in all as far as is known now."""
    done = total = 0
    for entry in entries:
        so_far = entry.spent + len(entry.runs) * settings.steps
        done += so_far
        total += so_far if entry.error else settings.trials * settings.search_steps + settings.seeds * settings.steps
    return done, total
