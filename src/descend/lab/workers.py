"""Processes that work on a race in a storage: how they are started, and what each of them does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from rich.console import Console

from descend.lab import own
from descend.lab.facts import Catalogue
from descend.lab.racing import work
from descend.lab.screen import RaceScreen
from descend.lab.shared import joined, names, reachable, shown
from descend.lab.tasks import find

PARENT = "DESCEND_WORKER_OF"  # the process without which a worker is to end
STOP = (signal.SIGINT, signal.SIGTERM)  # what a user, and the race that has started a worker, end it with
PATIENCE = 10.0  # seconds that a worker may take to stop


@dataclass(frozen=True)
class Workers:
    """Processes, and what they say to standard error."""

    running: list[subprocess.Popen[bytes]]
    said: IO[str]

    @property
    def alive(self) -> int:
        """How many are at work."""
        return sum(process.poll() is None for process in self.running)

    @property
    def last_words(self) -> str:
        """The last line that one of them has said, or how the first ended."""
        self.said.seek(0)
        lines = self.said.read().strip().splitlines()
        return lines[-1].removeprefix("descend: ") if lines else f"code {self.running[0].returncode}"


@contextmanager
def workers(where: str, name: str, count: int) -> Iterator[Workers]:
    """So many processes, which end with this block and with this process."""
    command = [sys.executable, "-m", "descend.lab.cli", "race", name, "--join", where]
    around = {**os.environ, PARENT: str(os.getpid())}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=around) for _ in range(count)]
        try:
            yield Workers(running, said)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def stop(way: int, frame: object) -> None:
    """Stop, as Ctrl-C does, but once: a second signal must not break off what the first has begun to tidy up."""
    for other in STOP:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def join(book: Catalogue, where: str, name: str | None) -> None:
    """Work on the races of a storage until all is done: on the one of a name, or on each that was begun there.

    Raises:
        ValueError: if the storage is out of reach, or a task or optimizer of it is not on this machine.
    """
    for way in STOP:
        signal.signal(way, stop)
    parent, console = os.environ.get(PARENT), Console()
    for one in [name] if name else names(where):
        board = joined(where, one, parent=int(parent) if parent else None)
        race = board.look()
        if not race.jobs():
            continue
        for source in {entry.contender.source for entry in race.entries.values()} - {""}:
            own.register(source)
        task = find(race.settings.task)
        console.print(f"{one}: {task.title or task.name}", highlight=False, markup=False)
        with RaceScreen(task, race.settings, console) as live, reachable(where):
            board.changed = live.ran
            work(task, board, book.create_optimizer_v2, live.watch)
    console.print(f"nothing is left to do in {shown(where)}", highlight=False, markup=False, soft_wrap=True)
