"""A race in a folder: started or resumed, carried out here or by several processes, and saved whatever happens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from rich.console import Console

from descend.lab import report, screen, store  # noqa: F401 - a missing extra is told first
from descend.lab.contender import Contender, parse
from descend.lab.facts import Catalogue
from descend.lab.racing import Alone, Board, Moment, Race, Settings, Stopped, check_device, prepared, work
from descend.lab.result import Result
from descend.lab.shared import LOST, PAUSE, Shared, begin, go_on, joined, shown, storage
from descend.lab.task import Task
from descend.lab.tasks import find
from descend.lab.workers import workers

# What races when nobody is named: the first eight of these that are registered.
FAVOURITES = (
    "adamw", "sgd", "lamb", "adabelief", "adamp", "madgrad", "lion", "adan", "nadam", "radam", "novograd", "adafactor",
)  # fmt: skip
JOURNAL = "race.journal"  # where the processes of one race meet unless told otherwise


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        optimizers: names with options, or contenders. None: the favourites.
        sources: files and modules with optimizers of the user's own.
        settings: those that were given, by their names in `Settings`.
        out: the folder. None: one under runs/.
        resume: go on with the race that is there.
        procs: processes of this machine.
        storage: where they, and others that join, meet. None: nowhere, or a journal in the folder.
        until: the time of `time.monotonic` at which to stop. None: when all is done.
    """

    optimizers: str | Sequence[Contender] | None = None
    sources: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    resume: bool = False
    procs: int = 1
    storage: str | None = None
    until: float | None = None


def run(book: Catalogue, order: Order) -> tuple[Result, Path, str]:
    """Start a race or go on with one, and leave its JSON and its report in a folder, whatever happens.

    Returns:
        What it has shown, the folder, and why it ended early: "", "Ctrl-C" or "time".

    Raises:
        ValueError: for what is wrong with the order, the task or the storage, before or during the work.
    """
    contenders = entered(book, order)
    race, task, folder = resumed(order) if order.resume else started(order)
    if not contenders and not race.entries:
        contenders = favourites(book, 8)
    known = [entry.contender for entry in race.entries.values()]
    sources = {one.source for one in known if one.source} - set(order.sources)
    parse(",".join(race.entries), book, sorted(sources))
    writable(folder)
    race.environment = store.changed(race.environment)
    console, why = Console(), ""
    try:
        place = storage(order.storage or race.storage, there=order.resume) if race.storage else None
    except ValueError:
        discard(folder)
        raise
    with screen.RaceScreen(task, race.settings, console) as live:

        def changed(now: Race) -> None:
            nonlocal race
            race = now
            store.save(now, folder)
            live.ran(now)

        def watch(moment: Moment) -> None:
            live.watch(moment)
            in_time(order.until)

        try:
            race, data = prepared(task, race, [*known, *contenders])
            board = board_of(race, order, place, changed)
            if order.procs > 1 and isinstance(board, Shared):

                def far(now: Race, alive: int) -> None:
                    live.far(now, alive)
                    in_time(order.until)

                supervise(board, order.storage or race.storage, race.study, order.procs, far)
            else:
                race = work(task, board, book.create_optimizer_v2, watch, data)
        except KeyboardInterrupt:
            why = "Ctrl-C"
        except Stopped:
            why = "time"
        except (OSError, RuntimeError, ValueError, *LOST) as error:
            if not any(entry.trials for entry in race.entries.values()):
                discard(folder)
            raise ValueError(str(error).partition("\n")[0]) from error
    found = Result(race, task)
    found.save(folder)
    return found, folder, why


def entered(book: Catalogue, order: Order) -> list[Contender]:
    """The contenders that were asked for."""
    if isinstance(order.optimizers, str) or order.optimizers is None:
        return parse(order.optimizers, book, order.sources)
    return list(order.optimizers)


def favourites(book: Catalogue, count: int) -> list[Contender]:
    """The first of the usual optimizers."""
    return parse(",".join([name for name in FAVOURITES if name in book.list_optimizers()][:count]), book)


def board_of(race: Race, order: Order, place: BaseStorage | None, changed: Callable[[Race], None]) -> Board:
    """Where the runs of a race are kept."""
    if place is None:
        return Alone(race, changed)
    where = order.storage or race.storage
    if not order.resume:
        return begin(where, race.study, race, place, changed=changed)
    board = joined(where, race.study, place, changed=changed)
    go_on(board, race)
    return board


def supervise(
    board: Shared, where: str, name: str, procs: int, watch: Callable[[Race, int], None] = lambda race, alive: None
) -> None:
    """Let processes of this machine carry out a race, until all is done; `watch` sees it, and how many are at work.

    Raises:
        ValueError: if all of them have ended before, with what one of them said.
    """
    with workers(where, name, procs) as started:
        while True:
            now = board.look()
            watch(now, started.alive)
            if not now.jobs():
                return
            if not started.alive and board.look().jobs():
                raise ValueError(f"all workers have stopped before the race was done: {started.last_words}")
            time.sleep(PAUSE)


def in_time(until: float | None) -> None:
    """End the race if it is over."""
    if until is not None and time.monotonic() > until:
        raise Stopped


# ---------------------------------------------------------------------------------------------------------- folders


def started(order: Order) -> tuple[Race, Task, Path]:
    """A new race, its task, and the folder for it.

    Raises:
        ValueError: for a setting that cannot be, or a folder that holds a race.
    """
    given = order.settings
    name = given.get("task", "digits-conv")
    task = find(name)
    target = given.get("target", task.target)
    task.check_target(target)
    check_device(given.get("device", "cpu"))
    folder = order.out or fresh(Path("runs") / task.name)
    if (folder / store.FILE).exists():
        raise ValueError(
            f"{folder} holds a race already: go on with it (descend race --resume), or choose another --out"
        )
    steps = given.get("steps", task.steps)
    threads = max(1, min(task.threads, (os.cpu_count() or 1) // order.procs))
    usual = {"task": name, "steps": steps, "search_steps": steps, "batch": task.batch, "target": target}
    race = Race(Settings(**{**usual, "threads": threads, **given}))
    if order.storage or order.procs > 1:
        race.storage = shown(order.storage or str((folder / JOURNAL).resolve()))
        race.study = folder.name
    return race, task, folder


def resumed(order: Order) -> tuple[Race, Task, Path]:
    """The race in a folder, the latest one unless told otherwise; its settings stay as they are.

    Raises:
        ValueError: if there is none, or a setting is another one.
    """
    folder = order.out or newest(order.settings.get("task"))
    if folder is None or not (folder / store.FILE).exists():
        raise ValueError(f"there is no race to resume in {order.out or 'runs'}; start one without --resume")
    race = store.load(folder)
    for key, value in order.settings.items():
        if (before := getattr(race.settings, key)) != value:
            raise ValueError(
                f"--{flag(key)} is {value}, but the race in {folder} has {before}: "
                "leave it out, or start a new race in another --out"
            )
    if race.storage:
        race = joined(order.storage or race.storage, race.study).look()
    elif order.storage or order.procs > 1:
        option = "--storage" if order.storage else "--procs"
        raise ValueError(
            f"{option} was given, but the race in {folder} was started without: leave it out, or start a new race in "
            "another --out"
        )
    return race, find(race.settings.task), folder


def flag(setting: str) -> str:
    """The command-line option of a setting."""
    return {"batch": "batch-size"}.get(setting, setting.replace("_", "-"))


def writable(folder: Path) -> None:
    """Make the folder.

    Raises:
        ValueError: if nothing can be written there.
    """
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out is {folder}, where nothing can be written: {error.strerror}") from error


def discard(folder: Path) -> None:
    """Remove the folder if nothing is in it but an empty race."""
    for name in (store.FILE, JOURNAL):
        (folder / name).unlink(missing_ok=True)
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
    saved = sorted(Path("runs").glob(f"{name}*/{store.FILE}"), key=lambda path: path.stat().st_mtime)
    return saved[-1].parent if saved else None
