"""A race that is called from Python: in this process alone, in several, or on one that others have begun."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import descend
from descend.lab.contender import Contender, parse
from descend.lab.racing import Race, Settings, check_device, prepared, work
from descend.lab.racing import race as alone
from descend.lab.result import Result
from descend.lab.running import JOURNAL, supervise
from descend.lab.shared import Shared, begin, joined, reachable, shown
from descend.lab.task import Task, make
from descend.lab.tasks import find

ITS_OWN = ("task", "device", "threads")  # what may differ between the machines of a race
OF_SETTINGS = {field.name for field in fields(Settings)}


def race(
    model: Callable[[], Any] | Task | str,
    parts: Mapping[str, Any],
    optimizers: str | Sequence[Any],
    given: Mapping[str, Any],
    procs: int,
    storage: str | None,
    join: str | None,
) -> Result:
    """Carry out a race, or go on with one; the arguments are those of `descend.lab.race`."""
    if procs < 1:
        raise ValueError(f"procs is {procs}, expected a whole number >= 1")
    if join is not None and (storage is not None or procs > 1):
        raise ValueError("join works on a race in its own storage: leave storage and procs out")
    parts = {name: value for name, value in parts.items() if value is not None}
    task = task_of(model, parts)
    contenders = parse(optimizers, descend)  # type: ignore[arg-type]
    settings = settings_of(model if isinstance(model, str) else task.name, task, parts, given)
    make_optimizer: Any = descend.create_optimizer_v2
    if join is not None:
        with reachable(join):
            return Result(work(task, same_race(join, task, settings, contenders), make_optimizer), task)
    if storage is None and procs == 1:
        return Result(alone(task, settings, contenders, make_optimizer), task)
    if procs > 1:
        check_found_elsewhere(model, contenders, procs)
    with meeting(storage) as where, reachable(where):
        ready, data = prepared(task, Race(settings, storage=shown(where), study=task.name), contenders)
        board = begin(where, task.name, ready)
        if procs > 1:
            supervise(board, where, task.name, procs)
        else:
            work(task, board, make_optimizer, data=data)
        return Result(board.look(), task)


def task_of(model: Callable[[], Any] | Task | str, parts: Mapping[str, Any]) -> Task:
    """The task: one of a name, one that is given, or one of these parts.

    Raises:
        ValueError: for a part that is missing or wrong, or that the task has already.
    """
    if not isinstance(model, (str, Task)):
        return make(getattr(model, "__name__", "task"), {"model": model, **parts})
    task = find(model) if isinstance(model, str) else model
    if others := parts.keys() - OF_SETTINGS:
        raise ValueError(f"task {task.name!r} is whole, and {min(others)} is given besides: leave it out")
    return task


def settings_of(name: str, task: Task, parts: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The settings of a race; what is not given is the task's own."""
    usual = {part: getattr(task, part) for part in ("steps", "batch", "target", "threads")}
    chosen = {**usual, **{part: value for part, value in parts.items() if part in usual}, **given}
    settings = Settings(name, **{**chosen, "search_steps": chosen["search_steps"] or chosen["steps"]})
    task.check_target(settings.target)
    check_device(settings.device)
    return settings


def check_found_elsewhere(model: Any, contenders: Sequence[Contender], procs: int) -> None:
    """Raise ValueError for a task or an optimizer that this process alone knows."""
    help_ = "or start this script several times, the others with join=, the first with storage="
    if not isinstance(model, str):
        raise ValueError(
            f"procs is {procs}, but other processes cannot find a task that is made of functions: give its file "
            f"('mytask.py') or 'pkg.module:task', {help_}"
        )
    for one in contenders:
        if one.source.startswith("__main__:"):
            raise ValueError(
                f"procs is {procs}, but other processes cannot find {one.name}, a class of the main script: give its file "
                f"('mine.py') or 'pkg.module:Class', {help_}"
            )


def same_race(where: str, task: Task, settings: Settings, contenders: Sequence[Contender]) -> Shared:
    """The board of the race that was begun by the same call.

    Raises:
        ValueError: if there is none, or the call was another one; the message names the first difference.
    """
    board = joined(where, task.name)
    race = board.look()
    mine, theirs = asdict(settings), asdict(race.settings)
    for name, value in mine.items():
        if name not in ITS_OWN and value != theirs[name]:
            raise ValueError(f"{name} is {value}, but the race in {shown(where)} has {theirs[name]}")
    names = [one.name for one in contenders]
    if sorted(names) != sorted(race.entries):
        raise ValueError(
            f"optimizers are {', '.join(names)}, but the race in {shown(where)} has {', '.join(race.entries)}"
        )
    return board


@contextmanager
def meeting(storage: str | None) -> Iterator[str]:
    """Where processes meet: as told, or a journal that is there for the length of the race."""
    if storage is not None:
        yield storage
        return
    with tempfile.TemporaryDirectory(prefix="descend-race-") as folder:
        yield str(Path(folder) / JOURNAL)
