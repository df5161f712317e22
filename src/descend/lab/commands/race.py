"""`descend race`: start a race or go on with one, and leave its JSON and its report in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from descend.lab.commands.common import Book, fail, flag

if TYPE_CHECKING:
    from descend.lab.facts import Catalogue
    from descend.lab.racing import Race
    from descend.lab.result import Result
    from descend.lab.task import Task


# What races when nobody is named: the first eight of these that are registered.
FAVOURITES = (
    "adamw",
    "sgd",
    "lamb",
    "adabelief",
    "adamp",
    "madgrad",
    "lion",
    "adan",
    "nadam",
    "radam",
    "novograd",
    "adafactor",
)


def add(cli: typer.Typer, book: Book) -> None:
    """Add the command."""

    @cli.command("race")
    def race_(
        own_task: Annotated[
            str | None,
            typer.Argument(metavar="[TASK]", help="Your mytask.py or pkg.module:task, or a task of the lab."),
        ] = None,
        task: Annotated[str | None, typer.Option(help="The same as an option. [digits-conv]")] = None,
        optimizers: Annotated[
            str | None, typer.Option(help="Names with options: adamw,adamw:caution=true,mine.py,pkg.module:Class.")
        ] = None,
        sources: Annotated[
            list[str] | None, typer.Option("--import", help="A file or module with optimizers of your own. Repeatable.")
        ] = None,
        trials: Annotated[int | None, typer.Option(min=1, help="Trials that each may pay for. [10]")] = None,
        seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of each. [5]")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Length of a final run. [the task's]")] = None,
        search_steps: Annotated[int | None, typer.Option(min=1, help="Length of a trial. [same as --steps]")] = None,
        batch_size: Annotated[int | None, typer.Option(min=1, help="Examples in a step. [the task's]")] = None,
        weight_decay: Annotated[float | None, typer.Option(min=0, help="Where its search begins. [0.001]")] = None,
        target: Annotated[float | None, typer.Option(help="Metric to reach. [the task's]")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it. [0]")] = None,
        device: Annotated[str | None, typer.Option(help="Where to train. [cpu]")] = None,
        threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [the task's]")] = None,
        out: Annotated[Path | None, typer.Option(help="Folder for race.json and report.html. [runs/TASK]")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the race stopped.")] = False,
        suite: Annotated[
            bool, typer.Option("--suite", help="Race on every task of the lab, and rank over all.")
        ] = False,
        example: Annotated[bool, typer.Option("--example", help="Print a task that runs, to begin with.")] = False,
    ) -> None:
        """Race optimizers on your task or the lab's: an equal search for each, then several seeds."""
        if example:
            from descend.lab.example import EXAMPLE

            print(EXAMPLE, end="")
            return
        if own_task and task and own_task != task:
            fail(f"--task is {task}, but the argument is {own_task}: leave one out")
        given = {
            "task": own_task or task,
            "trials": trials,
            "seeds": seeds,
            "steps": steps,
            "search_steps": search_steps,
            "batch": batch_size,
            "weight_decay": weight_decay,
            "target": target,
            "seed": seed,
            "device": device,
            "threads": threads,
        }
        chosen = {key: value for key, value in given.items() if value is not None}
        if suite:
            for option in ("task", "target", "batch"):
                if option in chosen:
                    fail(f"--{flag(option)} is one task's, but --suite races on all: leave one out")
            run_suite(book(), optimizers, sources or [], chosen, out or Path("runs/suite"))
            return
        result, stopped = run_race(book(), optimizers, sources or [], chosen, out, resume)
        if stopped:
            raise typer.Exit(130)
        if any(entry.error for entry in result.race.entries.values()):
            raise typer.Exit(1)


def run_race(
    book: Catalogue, optimizers: str | None, sources: list[str], given: dict[str, Any], out: Path | None, resume: bool
) -> tuple[Result, bool]:
    """Start a race or go on with one, and leave its JSON and its report in a folder, whatever happens.

    Returns:
        What it has shown, and whether it was stopped.
    """
    import optuna
    from rich.console import Console

    from descend.lab import own, report, screen, store  # noqa: F401 - a missing extra is told first
    from descend.lab.contender import parse
    from descend.lab.racing import Entry, race
    from descend.lab.result import Result

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        mine = [name for source in sources for name in own.register(source)]
        contenders = parse(optimizers, book)
        result, task, folder = resumed(given, out) if resume else started(given, out)
        if not contenders and not result.entries:
            usual = [name for name in FAVOURITES if name in book.list_optimizers()]
            contenders = parse(",".join(usual[:8]), book)
        before = parse(",".join(result.entries), book)
        contenders = list({one.name: one for one in [*before, *parse(",".join(mine), book), *contenders]}.values())
        writable(folder)
    except (ValueError, OSError) as error:
        fail(str(error))
    for contender in contenders:
        result.entries.setdefault(contender.name, Entry(contender))
    result.environment = store.changed(result.environment)

    console, stopped = Console(), False
    with screen.RaceScreen(task, result.settings, console) as live:

        def keep(race: Race) -> None:
            store.save(race, folder)
            live.ran(race)

        try:
            race(task, result.settings, contenders, book.create_optimizer_v2, done=result, save=keep, watch=live.watch)
        except KeyboardInterrupt:
            stopped = True
        except (OSError, ValueError, RuntimeError) as error:
            if not any(entry.trials for entry in result.entries.values()):
                discard(folder)
            fail(str(error))
    shown = Result(result, task)
    page = shown.save(folder)
    console.print(screen.race_table(result, task))
    console.print(f"report {page}\ndata   {folder / store.FILE}", highlight=False, soft_wrap=True)
    if stopped:
        again = f"descend race --resume --out {folder}"
        console.print(f"Stopped; every finished run is saved. To go on: {again}", highlight=False, soft_wrap=True)
    return shown, stopped


def run_suite(book: Catalogue, optimizers: str | None, sources: list[str], given: dict[str, Any], out: Path) -> None:
    """Race on every task; one that has begun in the folder goes on, so a suite may be stopped at any time."""
    from rich.console import Console

    from descend.lab import store, suite
    from descend.lab.tasks import tasks

    results, stopped = [], False
    for name in tasks():
        begun = (out / name / store.FILE).exists()
        result, stopped = run_race(book, optimizers, sources, {**given, "task": name}, out / name, begun)
        results.append(result)
        if stopped:
            break
    Console().print(suite.table(results))
    if stopped:
        raise typer.Exit(130)


def started(given: dict[str, Any], out: Path | None) -> tuple[Race, Task, Path]:
    """A new race, its task, and the folder for it."""
    import torch

    from descend.lab import store
    from descend.lab.racing import Race, Settings
    from descend.lab.tasks import find

    name = given.get("task", "digits-conv")
    task = find(name)
    target = given.get("target", task.target)
    if task.percent and target is not None and not 0 < target <= 1:
        fail(f"--target is {target:g}, but the accuracy to reach lies between 0 and 1, such as {task.target or 0.9}")
    try:
        torch.empty(1, device=given.get("device", "cpu"))
    except (RuntimeError, AssertionError) as error:
        fail(f"--device is {given['device']!r}, which cannot be used: {str(error).splitlines()[0]}")
    folder = out or fresh(Path("runs") / task.name)
    if (folder / store.FILE).exists():
        fail(f"{folder} holds a race already: add --resume to go on with it, or choose another --out")
    steps = given.get("steps", task.steps)
    usual = {"task": name, "steps": steps, "search_steps": steps, "batch": task.batch, "target": target}
    return Race(Settings(**{**usual, "threads": task.threads, **given})), task, folder


def resumed(given: dict[str, Any], out: Path | None) -> tuple[Race, Task, Path]:
    """The race in a folder, the latest one unless told otherwise; its settings stay as they are."""
    from descend.lab import store
    from descend.lab.tasks import find

    folder = out or newest(given.get("task"))
    if folder is None or not (folder / store.FILE).exists():
        fail(f"there is no race to resume in {out or 'runs'}; start one without --resume")
    result = store.load(folder)
    for key, value in given.items():
        if (before := getattr(result.settings, key)) != value:
            fail(
                f"--{flag(key)} is {value}, but the race in {folder} has {before}: "
                "leave it out, or start a new race in another --out"
            )
    return result, find(result.settings.task), folder


def writable(folder: Path) -> None:
    """Make the folder.

    Raises:
        OSError: if nothing can be written there; the message names it.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"--out is {folder}, where nothing can be written: {error.strerror}") from error


def discard(folder: Path) -> None:
    """Remove the folder if nothing is in it."""
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def fresh(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that is not there."""
    number = 2
    path = folder
    while path.exists():
        path, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return path


def newest(task: str | None) -> Path | None:
    """The folder under runs/ whose race was saved last."""
    name = Path(task.partition(":")[2] or task).stem if task else ""
    saved = sorted(Path("runs").glob(f"{name}*/race.json"), key=lambda path: path.stat().st_mtime)
    return saved[-1].parent if saved else None
