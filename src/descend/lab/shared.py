"""A race in a storage of Optuna, on which any number of processes and machines work: a study is a race, a trial a run.

Two workers that carry out the same job get the same numbers, so that a claim saves work and nothing rests on it: a
worker that is killed loses the run that it was at, and another worker takes that one up.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalRedisBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from descend.lab import store
from descend.lab.racing import Entry, Job, Race, Run
from descend.lab.search import quiet

BEAT = 5  # seconds between two signs of life of a worker
SILENCE = 60.0  # seconds without one after which a worker counts as dead
PAUSE = 0.2  # seconds between two looks where every job is another worker's
FILES = {".db", ".sqlite", ".sqlite3"}
LOST = (OptunaError, SQLAlchemyError)  # what a storage raises that is no longer in reach
Key = tuple[str, str, int]


class Shared:
    """The board of a race in a storage.

    Args:
        storage: the storage of Optuna.
        study: the number of the race in it.
        changed: called with the race whenever more of it is done.
        parent: the process without which this one is to end. None: it goes on alone.
    """

    def __init__(
        self,
        storage: BaseStorage,
        study: int,
        changed: Callable[[Race], None] = lambda race: None,
        parent: int | None = None,
    ) -> None:
        self.storage, self.study, self.changed, self.parent = storage, study, changed, parent
        self.me = f"{socket.gethostname()}:{os.getpid()}"
        self._mine: dict[Key, int] = {}
        self._others: dict[Key, int] = {}
        self._known: dict[int, Run] = {}
        self._events = -1
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def look(self) -> Race:
        """The race as far as it has come."""
        attributes = self.storage.get_study_user_attrs(self.study)
        race, events = store.race_of(dict(attributes["race"])), 0
        others: dict[Key, int] = {}
        for trial in self.storage.get_all_trials(self.study, deepcopy=False):
            notes = trial.user_attrs
            name, phase, number = key = _key(trial)
            entry = race.entries[name]
            if "run" in notes:
                if trial.number not in self._known:
                    self._known[trial.number] = store.run_of(notes["run"])
                entry.add(Job(entry.contender, phase, number), self._known[trial.number])  # type: ignore[arg-type]
                events += 1
            elif "error" in notes and trial.number >= attributes.get("since", 0):
                entry.error = notes["error"]
                events += 1
            elif trial.state == TrialState.RUNNING and self._alive(trial):
                others.setdefault(key, trial.number)
        self._others = {key: number for key, number in others.items() if key not in self._mine}
        if events != self._events:
            self._events = events
            self.changed(race)
        return race

    def take(self, job: Job) -> bool:
        """Begin a job, unless a worker that lives is at it."""
        key = (job.contender.name, job.phase, job.number)
        if key in self._others:
            return False
        self._show_life()
        notes = {"job": list(key), "worker": self.me, "beat": time.time()}
        trial = self._mine[key] = self.storage.create_new_trial(
            self.study, create_trial(state=TrialState.RUNNING, user_attrs=notes)
        )
        mine = self.storage.get_trial_number_from_id(trial)
        for rival in self.storage.get_all_trials(self.study, deepcopy=False):
            done, at_it = "run" in rival.user_attrs, rival.state == TrialState.RUNNING and self._alive(rival)
            if _key(rival) == key and rival.number < mine and (done or at_it):
                self.give_back(job)
                return False
        return True

    def keep(self, job: Job, run: Run) -> None:
        """Add a run."""
        trial = self._mine.pop((job.contender.name, job.phase, job.number))
        self.storage.set_trial_user_attr(trial, "run", asdict(run))
        whole = not (run.diverged or run.pruned)
        state = TrialState.COMPLETE if whole else TrialState.PRUNED
        self.storage.set_trial_state_values(trial, state, [run.score] if whole else None)

    def fail(self, job: Job, message: str) -> None:
        """Take the contender out of the race."""
        trial = self._mine[job.contender.name, job.phase, job.number]
        self.storage.set_trial_user_attr(trial, "error", message)
        self.give_back(job)

    def give_back(self, job: Job) -> None:
        """Leave a job to another worker."""
        trial = self._mine.pop((job.contender.name, job.phase, job.number))
        self.storage.set_trial_state_values(trial, TrialState.FAIL)

    def wait(self) -> None:
        """Wait a moment."""
        self._show_life()
        time.sleep(PAUSE)

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a trial that runs still works: not if it is silent, or was of this machine and is gone."""
        host, _, process = trial.user_attrs["worker"].rpartition(":")
        if time.time() - trial.user_attrs["beat"] > SILENCE:
            return False
        return host != socket.gethostname() or os.name != "posix" or _exists(int(process))

    def _show_life(self) -> None:
        if self._beating.ident is None:
            self._beating.start()

    def _beat(self) -> None:
        for second in count(1):
            time.sleep(1)
            if self.parent is not None and os.getppid() != self.parent:
                os._exit(1)
            if second % BEAT:
                continue
            for trial in list(self._mine.values()):
                with suppress(Exception):  # the run may just have ended, and a storage may be away for a moment
                    self.storage.set_trial_user_attr(trial, "beat", time.time())


def _key(trial: FrozenTrial) -> Key:
    name, phase, number = trial.user_attrs["job"]
    return name, phase, number


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# ------------------------------------------------------------------------------------------------------- storages


class Lock(JournalFileSymlinkLock):
    """The lock of a journal: who gets it finds whole lines only, whatever has killed the one before."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), grace_period=10)
        self.path = path

    def acquire(self) -> bool:
        """Wait for the lock, and cut off a line that was never finished."""
        got = super().acquire()
        with self.path.open("rb+") as file:
            if size := file.seek(0, os.SEEK_END):
                file.seek(size - 1)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
        return got


def storage(where: str, there: bool) -> BaseStorage:
    """The storage of a path (a journal, or SQLite where it ends in .db or .sqlite) or of a URL that Optuna takes.

    Args:
        where: the path or URL.
        there: whether it has to exist already.

    Raises:
        ValueError: if it is out of reach.
    """
    path = Path(where)
    with clear(where):
        if "://" not in where and there and not path.exists():
            raise FileNotFoundError("there is no such file")
        if where.startswith("redis"):
            return JournalStorage(JournalRedisBackend(where))
        if "://" in where or path.suffix in FILES:
            url = where if "://" in where else f"sqlite:///{path}"
            patient = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
            return RDBStorage(url, engine_kwargs=patient)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=Lock(path)))


def shown(where: str) -> str:
    """A URL without its password."""
    head, at, tail = where.rpartition("@")
    scheme, slashes, user = head.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}:***@{tail}" if at and ":" in user else where


@contextmanager
def clear(where: str) -> Iterator[None]:
    """Raise ValueError with one line for whatever a storage raises."""
    try:
        with quiet():
            yield
    except Exception as error:
        line = str(error).strip().partition("\n")[0].replace(where, shown(where))
        raise ValueError(f"the storage {shown(where)} is out of reach: {type(error).__name__}: {line}") from error


@contextmanager
def reachable(where: str) -> Iterator[None]:
    """Raise ValueError with one line where a storage is lost in the midst of the work."""
    try:
        yield
    except LOST as error:
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"the storage {shown(where)} was lost: {type(error).__name__}: {line}") from error


def names(where: str) -> list[str]:
    """The races in a storage, in the order in which they were begun."""
    made = storage(where, there=True)
    with clear(where):
        return [study.study_name for study in made.get_all_studies() if "race" in study.user_attrs]


def begin(where: str, name: str, race: Race, made: BaseStorage | None = None, **how: Any) -> Shared:
    """Put a race into a storage, which may have been opened before.

    Raises:
        ValueError: if a race of this name is there, or the storage is out of reach.
    """
    made = made or storage(where, there=False)
    with clear(where):
        studies = {study.study_name: study for study in made.get_all_studies()}
        there = name in studies and "race" in studies[name].user_attrs
        if not there:  # a study without a race is what a beginning that was interrupted has left
            direction = [StudyDirection.MINIMIZE]
            study = made.get_study_id_from_name(name) if name in studies else made.create_new_study(direction, name)
            made.set_study_user_attr(study, "race", head(race))
    if there:
        raise ValueError(
            f"{shown(where)} holds a race {name!r} already: join it, go on with it (--resume), or choose another storage or "
            "--out"
        )
    return Shared(made, study, **how)


def joined(where: str, name: str, made: BaseStorage | None = None, **how: Any) -> Shared:
    """The board of a race that was begun.

    Raises:
        ValueError: if there is none of this name, or the storage is out of reach.
    """
    made = made or storage(where, there=True)
    with clear(where):
        there = [study.study_name for study in made.get_all_studies() if "race" in study.user_attrs]
        if name in there:
            return Shared(made, made.get_study_id_from_name(name), **how)
    raise ValueError(f"{shown(where)} has no race {name!r}; it has {', '.join(there) or 'none'}")


def go_on(board: Shared, race: Race) -> None:
    """Give a race in a storage contenders that have joined it, and every contender another chance."""
    since = len(board.storage.get_all_trials(board.study, deepcopy=False))
    board.storage.set_study_user_attr(board.study, "race", head(race))
    board.storage.set_study_user_attr(board.study, "since", since)


def head(race: Race) -> dict[str, Any]:
    """A race without its runs."""
    bare = {name: Entry(entry.contender) for name, entry in race.entries.items()}
    return store.plain(replace(race, entries=bare))
