"""What `descend tune` answers: a race as long as a budget allows, and the choice that it leads to, with its uncertainty."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from descend.lab import own
from descend.lab.contender import Contender, parse
from descend.lab.facts import Catalogue
from descend.lab.racing import Entry, MakeOptimizer, Race, Settings, same, threads, train
from descend.lab.running import Order, entered, run, started
from descend.lab.search import Choice
from descend.lab.summary import metrics, show_lr, show_metric, ties
from descend.lab.table import Table, plural
from descend.lab.task import Task, check

USUAL = ("adamw", "muon", "soap", "sgd", "lion", "nadamw")  # in the order in which a short budget leaves them out
LEAST = (6, 3)  # trials and seeds that a contender is worth entering for
MOST = (30, 10)
PROBE = 5  # steps by which a training is estimated
LOOKS = 26  # times that a training is judged
PROPOSAL = 0.3  # seconds to propose a trial
SPARE = 0.15  # of the time, for what the estimate misses
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """How long all may take: seconds, or steps of training."""

    seconds: float | None = None
    steps: int | None = None


def budget(words: str) -> Budget:
    """The budget that words such as "90s", "10m", "2h" or "5000 steps" say.

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|m|h|steps?)?\s*", words.lower())
    amount = float(found[1]) if found else 0.0
    if not found or not amount:
        raise ValueError(f"--budget is {words!r}, expected a time such as 90s, 10m or 2h, or steps such as 5000")
    if found[2] in UNITS:
        return Budget(seconds=amount * UNITS[found[2]])
    return Budget(steps=int(amount))


@dataclass(frozen=True)
class Plan:
    """Who races within a budget, and how long."""

    contenders: list[Contender]
    trials: int
    seeds: int


def plan(contenders: Sequence[Contender], costs: Sequence[tuple[float, float]], room: float, unit: str) -> Plan:
    """As many contenders as can have enough trials and seeds, then as many of these as there is room for.

    Args:
        contenders: in the order in which they are wanted.
        costs: of a trial and of a final run, for each contender.
        room: what all of it may cost.
        unit: of the costs, for the message.

    Raises:
        ValueError: if not even one trial and one final run have room.
    """
    trials, seeds = LEAST
    for count in range(len(contenders), 0, -1):
        search, final = (sum(pair[i] for pair in costs[:count]) for i in (0, 1))
        if trials * search + seeds * final <= room:
            most = (room - trials * search) / final if final else math.inf
            seeds = int(min(MOST[1], most, max(seeds, room / 3 / final if final else math.inf)))
            trials = int(min(MOST[0], (room - seeds * final) / search if search else math.inf))
            return Plan(list(contenders[:count]), trials, seeds)
    search, final = costs[0]
    if search + final > room:
        raise ValueError(
            f"the budget is too small: a trial and a final run of {contenders[0].name} alone take about "
            f"{search + final:.3g} {unit}, and {room:.3g} are left for them; give more, or --steps that are fewer"
        )
    seeds = max(1, min(seeds, int(room / 3 / final)))
    return Plan([contenders[0]], min(trials, max(1, int((room - seeds * final) / search))), seeds)


def costs(
    task: Task, settings: Settings, contenders: Sequence[Contender], make_optimizer: MakeOptimizer
) -> list[tuple[float, float]]:
    """About how many seconds a trial and a final run of each take on this machine; infinity for one that fails."""
    data = same(task, Race(settings))
    check(task, data, settings.batch)
    data = data.to(settings.device)
    found = []
    with threads(settings.threads):
        model = task.model().to(settings.device)
        looks = [elapsed(lambda: task.judge(model, data)) for _ in range(2)]
        for contender in contenders:
            choice = contender.space(settings.weight_decay).usual(contender.low, settings.weight_decay)
            try:
                short = train(task, data, settings, contender, make_optimizer, choice, 0, PROBE, lambda point: False)
            except Exception:  # the race says what it is
                found.append((0.0, 0.0))
                continue
            step, judged = 1e-3 * short.step_ms, LOOKS * looks[-1]
            found.append((settings.search_steps * step + judged + PROPOSAL, settings.steps * step + judged))
    return found


def elapsed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def tune(book: Catalogue, order: Order, given: Budget) -> tuple[Race, Task, Path, str]:
    """Race as long as the budget allows.

    Returns:
        The race, its task and folder, and why it ended early: "", "Ctrl-C" or "time".

    Raises:
        ValueError: for what is wrong with the order or the task, or a budget that is too small.
    """
    begin = time.monotonic()
    contenders = entered(book, order) or parse(",".join(n for n in USUAL if n in book.list_optimizers()), book)
    race, task, folder = started(order)
    settings = race.settings
    if given.seconds is None:
        room, unit = float(given.steps or 0), "steps"
        priced = [(float(settings.search_steps), float(settings.steps))] * len(contenders)
    else:
        priced, unit = costs(task, settings, contenders, book.create_optimizer_v2), "seconds"
        room = max(0.0, given.seconds - (time.monotonic() - begin)) * (1 - SPARE) * order.procs
    made = plan(contenders, priced, room, unit)
    asked = {**order.settings, "trials": made.trials, "seeds": made.seeds}
    until = None if given.seconds is None else begin + given.seconds
    part = replace(order, optimizers=made.contenders, settings=asked, out=folder, until=until)
    result, folder, why = run(book, part)
    return result.race, task, folder, why


# ---------------------------------------------------------------------------------------------------------- the answer


@dataclass(frozen=True)
class Pick:
    """What one optimizer came to.

    Attributes:
        entry: its runs.
        choice: the settings to take.
        metric: the mean over the final runs; of the best trial where there is none.
        error: half of the 95 % interval of that mean. None: fewer than two runs.
        low: the lowest learning rate that the trials cannot tell from the best.
        high: the highest.
        ties: whether it cannot be told from the first.
    """

    entry: Entry
    choice: Choice
    metric: float
    error: float | None
    low: float
    high: float
    ties: bool

    @property
    def name(self) -> str:
        """How it is called."""
        return self.entry.contender.name


def picks(race: Race, task: Task) -> list[Pick]:
    """The optimizers, the best first; those without a final run last."""
    entries = [entry for entry in race.entries.values() if entry.trials and not entry.error]
    made = [pick(entry, task) for entry in entries]
    sign = -1 if task.higher_is_better else 1
    made.sort(key=lambda one: (not one.entry.runs, sign * one.metric, one.name))
    judged = {one.name: metrics(one.entry, task) for one in made if one.entry.runs}
    alike = ties(judged, made[0].name) if judged else set()
    return [replace(one, ties=one.name in alike) for one in made]


def pick(entry: Entry, task: Task) -> Pick:
    """One optimizer's choice."""
    found, best = metrics(entry, task), min(entry.trials, key=lambda run: run.score)
    losses = [run.score for run in entry.runs]
    noise = 2 * statistics.stdev(losses) if len(losses) > 1 and all(map(math.isfinite, losses)) else 0.0
    alike = [run.lr for run in entry.trials if run.score <= best.score + noise]
    metric = statistics.fmean(found) if found else best.curve[-1].metric
    return Pick(
        entry,
        best.choice,
        metric,
        half_interval(found),
        min(alike, default=best.lr),
        max(alike, default=best.lr),
        False,
    )


def half_interval(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean, by Student's t. None: there is none."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))


def table(race: Race, task: Task, found: Sequence[Pick]) -> Table:
    """The ranking."""
    rows = []
    for one in found:
        runs, choice, settings = len(one.entry.runs), one.choice, race.settings
        decays = one.entry.contender.decays
        weight_decay = choice.weight_decay if decays else settings.weight_decay
        metric = show_metric(one.metric, task)
        if one.error is not None:
            metric += f" ± {show_metric(one.error, task).removesuffix('%')}"
        rows.append(
            [
                one.name + " =" * (one.ties and one is not found[0]),
                metric if runs else f"({metric})",
                show_lr(choice.lr),
                f"{show_lr(one.low)} to {show_lr(one.high)}" if one.low < one.high else "–",
                show_lr(weight_decay) if one.entry.contender.has_weight_decay else "–",
                f"{100 * choice.decay:.0f}%",
                f"{choice.beta:.3g}" if choice.beta is not None else "–",
                f"{len(one.entry.trials)}, {runs}",
            ]
        )
    seeds = max((len(one.entry.runs) for one in found), default=0)
    notes = [
        f"± is half of the 95 % interval of the mean over {plural(seeds, 'seed')}" if seeds > 1 else "",
        "as good: rates whose trial came within two standard deviations of the seeds' losses of the best trial",
        "=: what a paired t-test over the seeds at 5 %, corrected for all pairs, cannot tell from the first",
        "in brackets: the best trial, where no final run is done; it flatters, for it is the best of several"
        if any(not one.entry.runs for one in found)
        else "",
    ]
    notes += [f"{name} is out: {entry.error}" for name, entry in race.entries.items() if entry.error]
    head = [
        "optimizer", task.metric_name, "lr", "as good", "weight decay", "lr decays over", "beta", "trials, seeds"
    ]  # fmt: skip
    title = f"{task.title or task.name}: {task.metric_name} after {plural(race.settings.steps, 'step')}"
    return Table(title, head, rows, [note for note in notes if note])


def verdict(found: Sequence[Pick]) -> str:
    """The answer in a sentence."""
    first, *others = found
    if not first.entry.runs:
        return f"Take {first.name} for now: the search is not done, and nothing was judged on seeds of its own"
    alike = [one.name for one in others if one.ties]
    if alike:
        return f"Take {first.name}; {' and '.join(alike)} cannot be told from it"
    return f"Take {first.name}" + "; the others are worse beyond what seeds differ" * bool(others)


def lines(race: Race, one: Pick) -> str:
    """The lines to paste for a choice: the optimizer and its schedule, as they raced."""
    settings, contender = race.settings, one.entry.contender
    arguments = contender.arguments(one.choice, settings.weight_decay)
    name = str(arguments.pop("opt"))
    words = ", ".join(f"{key}={number(value)}" for key, value in arguments.items())
    if contender.source:
        kind = own.kind(name)
        imports = f"from {kind.__module__} import {kind.__name__}"
        decay = arguments.pop("weight_decay", 0.0)
        words = ", ".join(f"{key}={number(value)}" for key, value in arguments.items())
        groups = f"param_groups_weight_decay(model, {number(decay)})" if decay else "model.parameters()"
        made = f"{kind.__name__}({groups}, {words})"
        imports += "\nfrom descend import param_groups_weight_decay" * bool(decay)
    else:
        imports, made = "from descend import create_optimizer_v2", f'create_optimizer_v2(model, opt="{name}", {words})'
    if hasattr(own.kind(name), "averaged"):
        made += "  # optimizer.eval() before the model is judged or saved, optimizer.train() after"
    rise = max(1, round(settings.steps * settings.warmup))
    fall = max(1, round((settings.steps - rise) * one.choice.decay))
    return f"""\
import math

from torch.optim.lr_scheduler import LambdaLR

{imports}

optimizer = {made}
steps, rise, fall = {settings.steps}, {rise}, {fall}  # of the training, up at its start, down to 0 at its end


def factor(step):
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1, max(0, step - (steps - fall) + 1) / (fall + 1))))


scheduler = LambdaLR(optimizer, factor)  # scheduler.step() after each optimizer.step()"""


def number(value: object) -> str:
    """A value as Python has it, numbers in four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(number, value))}{',' * (len(value) == 1)})"
    return repr(value)
