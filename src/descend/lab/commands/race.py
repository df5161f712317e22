"""`descend race`: start a race or go on with one, and leave its JSON and its report in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from descend.lab import screen, store
from descend.lab.commands.common import Book, fail, flag, known
from descend.lab.facts import LOOKAHEAD, Catalogue
from descend.lab.race import Contender, Entry, Race, Settings, race
from descend.lab.search import around
from descend.lab.tasks import tasks

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
        task: Annotated[str | None, typer.Option(help="digits-conv, digits-vit or gpt. [digits-conv]")] = None,
        optimizers: Annotated[str | None, typer.Option(help="Names, separated by commas.")] = None,
        trials: Annotated[int | None, typer.Option(min=1, help="Learning rates to try for each. [12]")] = None,
        seeds: Annotated[int | None, typer.Option(min=1, help="Final runs of each. [3]")] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="Length of a final run. [the task's]")] = None,
        search_steps: Annotated[int | None, typer.Option(min=1, help="Length of a trial. [same as --steps]")] = None,
        batch_size: Annotated[int | None, typer.Option(min=2, help="Examples in a step. [the task's]")] = None,
        weight_decay: Annotated[float | None, typer.Option(min=0, help="The same for all. [0.001]")] = None,
        target: Annotated[float | None, typer.Option(help="Accuracy or loss to reach. [the task's]")] = None,
        seed: Annotated[int | None, typer.Option(min=0, help="Everything random follows from it. [0]")] = None,
        device: Annotated[str | None, typer.Option(help="Where to train. [cpu]")] = None,
        threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch. [the task's]")] = None,
        out: Annotated[Path | None, typer.Option(help="Folder for race.json and report.html. [runs/TASK]")] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on where the race stopped.")] = False,
    ) -> None:
        """Race optimizers on real data: an equal learning-rate search for each, then several seeds."""
        names = list(dict.fromkeys(name.strip().lower() for name in (optimizers or "").split(",") if name.strip()))
        given = {
            "task": task,
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
        run_race(book(), names, {key: value for key, value in given.items() if value is not None}, out, resume)


def run_race(book: Catalogue, names: list[str], given: dict[str, Any], out: Path | None, resume: bool) -> None:
    """Start a race or go on with one, and leave its JSON and its report in a folder, whatever happens."""
    import optuna

    from descend.lab import report  # first of all, so that a missing extra is told before the training

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known(book, names)
    result, folder = resumed(given, out) if resume else started(given, out)
    if not names and not result.entries:
        names = [name for name in FAVOURITES if name in book.list_optimizers()][:8]
    names = list(dict.fromkeys([*result.entries, *names]))
    infos = [book.get_optimizer_info(name.removeprefix(LOOKAHEAD)) for name in names]
    contenders = [
        Contender(name, *around(info.suggested_lr), info.second_order) for name, info in zip(names, infos, strict=True)
    ]
    for contender in contenders:
        result.entries.setdefault(contender.name, Entry(contender))
    task = tasks()[result.settings.task]
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
            fail(str(error))
    store.save(result, folder)
    page = folder / "report.html"
    page.write_text(report.html(result, task), encoding="utf-8")
    console.print(screen.race_table(result, task))
    console.print(f"report {page}\ndata   {folder / store.FILE}", highlight=False, soft_wrap=True)
    if stopped:
        again = f"descend race --resume --out {folder}"
        console.print(f"Stopped; every finished run is saved. To go on: {again}", highlight=False, soft_wrap=True)
        raise typer.Exit(130)
    if any(entry.error for entry in result.entries.values()):
        raise typer.Exit(1)


def started(given: dict[str, Any], out: Path | None) -> tuple[Race, Path]:
    """A new race, and the folder for it."""
    every = tasks()
    name = given.get("task", "digits-conv")
    if name not in every:
        fail(f"there is no task {name!r}; there are {', '.join(every)}")
    task = every[name]
    target = given.get("target", task.target)
    if task.higher_is_better and not 0 < target <= 1:
        fail(f"--target is {target:g}, but the accuracy to reach lies between 0 and 1, such as {task.target}")
    try:
        torch.empty(1, device=given.get("device", "cpu"))
    except (RuntimeError, AssertionError) as error:
        fail(f"--device is {given['device']!r}, which cannot be used: {str(error).splitlines()[0]}")
    folder = out or fresh(Path("runs") / name)
    if (folder / store.FILE).exists():
        fail(f"{folder} holds a race already: add --resume to go on with it, or choose another --out")
    steps = given.get("steps", task.steps)
    usual = {"task": name, "steps": steps, "search_steps": steps, "batch": task.batch, "target": target}
    return Race(Settings(**{**usual, "threads": task.threads, **given})), folder


def resumed(given: dict[str, Any], out: Path | None) -> tuple[Race, Path]:
    """The race in a folder, the latest one unless told otherwise; its settings stay as they are."""
    folder = out or newest(given.get("task"))
    if folder is None or not (folder / store.FILE).exists():
        fail(f"there is no race to resume in {out or 'runs'}; start one without --resume")
    try:
        result = store.load(folder)
    except ValueError as error:
        fail(str(error))
    for key, value in given.items():
        if (before := getattr(result.settings, key)) != value:
            fail(
                f"--{flag(key)} is {value}, but the race in {folder} has {before}: "
                "leave it out, or start a new race in another --out"
            )
    return result, folder


def fresh(folder: Path) -> Path:
    """`folder`, or the first of `folder-2`, `folder-3`, ... that is not there."""
    number = 2
    path = folder
    while path.exists():
        path, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return path


def newest(task: str | None) -> Path | None:
    """The folder under runs/ whose race was saved last."""
    saved = sorted(Path("runs").glob(f"{task or ''}*/race.json"), key=lambda path: path.stat().st_mtime)
    return saved[-1].parent if saved else None
