"""The race: the same weights and the same batches for every optimizer, and an equal search for each.

A run follows from the runs of its own contender that must be done before it, and from nothing else. Whoever carries it
out, and in whatever order, gets the same numbers.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from torch import nn

from descend.lab.contender import Contender
from descend.lab.search import Choice, Tried, first, quiet, suggest
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

    def __post_init__(self) -> None:
        for name in ("steps", "search_steps", "batch", "trials", "seeds", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a whole number >= 1")
        for name in ("seed", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number >= 0")


def check_device(device: str) -> None:
    """Raise ValueError for a device that is not there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {device!r}, which cannot be used: {str(error).splitlines()[0]}") from error


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
    """One training from start to end, or to where it diverged or was given up.

    Attributes:
        number: its place among the trials or the final runs of its contender, from 0.
    """

    choice: Choice
    seed: int
    curve: list[Point]
    diverged: bool
    pruned: bool
    steps: int
    step_ms: float
    optimizer_ms: float
    state_bytes: int
    number: int = 0

    @property
    def lr(self) -> float:
        """Its peak learning rate."""
        return self.choice.lr

    @property
    def score(self) -> float:
        """What the search minimises: the validation loss at the end."""
        return math.inf if self.diverged or self.pruned else self.curve[-1].loss


@dataclass(frozen=True)
class Job:
    """A run that may begin: all that it follows from is done."""

    contender: Contender
    phase: Literal["search", "final"]
    number: int


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

    def at_once(self, settings: Settings) -> int:
        """How many trials come first, which follow from nothing; each later one follows from all before it."""
        return len(first(self.contender.space(settings.weight_decay), settings.trials))

    def jobs(self, settings: Settings) -> list[Job]:
        """The runs that may begin now, each of them whether or not the others have; none when all is done.

        The search has a budget of steps: one that is given up early leaves its steps to another.
        """
        if self.error:
            return []
        done = {run.number for run in self.trials}
        room = self.spent + settings.search_steps <= settings.trials * settings.search_steps
        if open_trials := set(range(self.at_once(settings))) - done:
            return [Job(self.contender, "search", number) for number in sorted(open_trials)]
        if room and len(done) < 2 * settings.trials:
            return [Job(self.contender, "search", len(done))]
        open_runs = set(range(settings.seeds)) - {run.number for run in self.runs}
        return [Job(self.contender, "final", number) for number in sorted(open_runs)]

    def add(self, job: Job, run: Run) -> None:
        """Keep a run, unless another one has carried it out too."""
        runs = self.trials if job.phase == "search" else self.runs
        if job.number not in {one.number for one in runs}:
            runs.append(replace(run, number=job.number))
            runs.sort(key=lambda one: one.number)


@dataclass
class Race:
    """A race, finished or not; everything that is saved.

    Attributes:
        storage: where several processes work on it. "": one process alone does.
        study: its name there.
    """

    settings: Settings
    entries: dict[str, Entry] = field(default_factory=dict)
    untrained: Point | None = None
    parameters: int = 0
    data_note: str = ""
    data_hash: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    study: str = ""

    def jobs(self) -> list[Job]:
        """All runs that may begin now: first those of the contenders that have done the fewest.

        So a busy machine hits all alike.
        """
        found = [
            (len(entry.trials) + len(entry.runs) + i, job)
            for entry in self.entries.values()
            for i, job in enumerate(entry.jobs(self.settings))
        ]
        return [job for _, job in sorted(found, key=lambda pair: pair[0])]


class Board(Protocol):
    """Where the runs of a race are kept, and who carries out which."""

    def look(self) -> Race:
        """The race as far as it has come."""

    def take(self, job: Job) -> bool:
        """Begin a job. False: another worker has it."""

    def keep(self, job: Job, run: Run) -> None:
        """Add the run that came of a job that was taken."""

    def fail(self, job: Job, message: str) -> None:
        """Take the contender out of the race."""

    def give_back(self, job: Job) -> None:
        """Leave a job that was taken to another worker."""

    def wait(self) -> None:
        """Wait a moment, for all jobs are others'."""


@dataclass
class Alone:
    """A race that this process alone carries out; `save` is called after every run."""

    race: Race
    save: Callable[[Race], None] = lambda race: None

    def look(self) -> Race:
        """The race as far as it has come."""
        return self.race

    def take(self, job: Job) -> bool:
        """Begin a job, which no other worker has."""
        return True

    def keep(self, job: Job, run: Run) -> None:
        """Add a run."""
        self.race.entries[job.contender.name].add(job, run)
        self.save(self.race)

    def fail(self, job: Job, message: str) -> None:
        """Take the contender out of the race."""
        self.race.entries[job.contender.name].error = message
        self.save(self.race)

    def give_back(self, job: Job) -> None:
        """Nothing: what is not kept has not been done."""

    def wait(self) -> None:
        """Nothing: no job is another's."""


class Stopped(BaseException):
    """Raised by whatever watches a race, to end it with what is done; no optimizer is at fault."""


@dataclass(frozen=True)
class Moment:
    """Where a race is, for whatever watches it."""

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
                diverged = not (math.isfinite(point.loss) and math.isfinite(point.metric))
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
    ready, data = prepared(task, done or Race(settings), contenders)
    return work(task, Alone(ready, save), make_optimizer, watch, data)


def prepared(task: Task, result: Race, contenders: Sequence[Contender]) -> tuple[Race, Examples]:
    """A race that can begin, and its examples: the task has been tried, and every contender has an entry without an error.

    Raises:
        ValueError: if it was begun on other data, or a part of the task is wrong.
    """
    data = same(task, result)
    check(task, data, result.settings.batch)
    result.data_note, result.data_hash = data.note, data.fingerprint()
    with threads(result.settings.threads):
        result.untrained, result.parameters = untrained(task, data.to(result.settings.device), result.settings)
    for contender in contenders:
        result.entries.setdefault(contender.name, Entry(contender)).error = None
    return result, data


def same(task: Task, result: Race) -> Examples:
    """The examples of a task; those that it draws with torch are the same each time.

    Raises:
        ValueError: if the race was run on others.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = task.load()
    if result.data_hash and result.data_hash != data.fingerprint():
        raise ValueError(
            f"the saved race was run on other data ({result.data_hash}, here {data.fingerprint()}): resume it with the "
            "files, the Python and the scikit-learn that it was started with, give what draws data at random a seed, or "
            "start a new one"
        )
    return data


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads of torch, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work(
    task: Task,
    board: Board,
    make_optimizer: MakeOptimizer,
    watch: Callable[[Moment], None] = lambda moment: None,
    data: Examples | None = None,
) -> Race:
    """Carry out jobs until none is left, in this process or in others that work on the same board."""
    race = board.look()
    data = (data or same(task, race)).to(race.settings.device)
    with threads(race.settings.threads), quiet():
        while jobs := (race := board.look()).jobs():
            job = next((job for job in jobs if board.take(job)), None)
            if job is None:
                board.wait()
                continue
            try:
                run = carry_out(job, task, data, race, make_optimizer, watch)
            except Exception as error:
                board.fail(job, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
            except BaseException:
                board.give_back(job)
                raise
            else:
                board.keep(job, run)
    return race


def carry_out(
    job: Job, task: Task, data: Examples, race: Race, make_optimizer: MakeOptimizer, watch: Callable[[Moment], None]
) -> Run:
    """The run of a job."""
    settings, entry, contender = race.settings, race.entries[job.contender.name], job.contender
    before, total = progress(race)
    if job.phase == "search":
        planned, seed, steps = settings.trials, settings.seed, settings.search_steps
        # Trials that may run at once know nothing of each other: which is done first must not matter.
        tried = entry.tried if job.number >= entry.at_once(settings) else []
        space = contender.space(settings.weight_decay)
        choice, prune = suggest(space, tried, settings.trials, steps, settings.seed, job.number)
    else:
        if all(run.diverged for run in entry.trials):
            raise ArithmeticError("it diverged at every learning rate that was tried")
        planned, seed, steps = settings.seeds, final_seeds(settings)[job.number], settings.steps
        choice, prune = entry.best, lambda step, loss: False

    def look(point: Point) -> bool:
        where = (contender.name, job.phase, job.number + 1, planned, choice.lr, point.step, steps)
        watch(Moment(*where, before + point.step, total, point.metric))
        return prune(point.step, point.loss)

    return train(task, data, settings, contender, make_optimizer, choice, seed, steps, look)


def progress(race: Race) -> tuple[int, int]:
    """Steps done, and steps that the race has in all as far as is known now."""
    settings, done, total = race.settings, 0, 0
    for entry in race.entries.values():
        so_far = entry.spent + len(entry.runs) * settings.steps
        done += so_far
        total += so_far if entry.error else settings.trials * settings.search_steps + settings.seeds * settings.steps
    return done, total
