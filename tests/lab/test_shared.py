"""Many workers on one race: the same numbers whatever their number and order, and what is lost when one is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import descend
from descend.lab import shared, store
from descend.lab.commands import app
from descend.lab.contender import parse
from descend.lab.racing import Alone, Job, Race, Settings, prepared, race, work
from descend.lab.tasks import tasks

TASK = tasks()["matrix"]
SETTINGS = Settings("matrix", 4, 3, 16, 0.5, trials=6, seeds=2)
MAKE: Any = descend.create_optimizer_v2
NAMES = "adamw,sgd:momentum=0.8,lion:lr=1e-3"


def contenders() -> Any:
    return parse(NAMES, descend)  # type: ignore[arg-type]


def new() -> Race:
    return prepared(TASK, Race(SETTINGS), contenders())[0]


def timeless(value: Any) -> Any:
    """All that no clock has measured and no storage is called."""
    if isinstance(value, dict):
        lost = ("seconds", "step_ms", "optimizer_ms", "environment", "storage", "study")
        return {key: timeless(part) for key, part in value.items() if key not in lost}
    return [timeless(part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def alone() -> Any:
    return timeless(asdict(race(TASK, SETTINGS, contenders(), MAKE)))


@dataclass
class Scrambled(Alone):
    """As if other workers had taken this or that job first."""

    chance: random.Random = random.Random(0)

    def take(self, job: Job) -> bool:
        return self.chance.random() < 0.3


def test_the_order_in_which_runs_are_done_changes_nothing(alone: Any) -> None:
    assert timeless(asdict(work(TASK, Scrambled(new()), MAKE))) == alone


@pytest.mark.parametrize("name", ["race.journal", "race.db"])
def test_a_storage_holds_a_whole_race_and_a_second_worker_finds_nothing_to_do(
    tmp_path: Path, name: str, alone: Any
) -> None:
    where, seen = str(tmp_path / name), list[Race]()
    board = shared.begin(where, "mine", new(), changed=seen.append)
    assert timeless(asdict(work(TASK, board, MAKE))) == alone
    assert len(seen) == len({id(one) for one in seen}) > 20
    other = shared.joined(where, "mine")
    assert timeless(asdict(work(TASK, other, None))) == alone  # type: ignore[arg-type]
    assert shared.names(where) == ["mine"]


def test_a_job_is_one_workers_until_that_worker_is_dead(tmp_path: Path) -> None:
    where = str(tmp_path / "race.journal")
    first = shared.begin(where, "mine", new())
    job, *others = first.look().jobs()
    assert first.take(job)
    second = shared.joined(where, "mine")
    assert not second.take(job)  # without a look before: of two that begin at once, one gives way
    second.look()
    assert not second.take(job)
    assert second.take(others[0])
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    trial = first._mine.popitem()[1]
    first.storage.set_trial_user_attr(trial, "worker", f"{second.me.partition(':')[0]}:{gone.pid}")
    second.look()
    assert second.take(job)


def test_a_worker_that_is_silent_for_long_is_dead(tmp_path: Path) -> None:
    where = str(tmp_path / "race.journal")
    first = shared.begin(where, "mine", new())
    job = first.look().jobs()[0]
    first.take(job)
    trial = first._mine.popitem()[1]
    first.storage.set_trial_user_attr(trial, "worker", "another-machine:1")
    second = shared.joined(where, "mine")
    second.look()
    assert not second.take(job)
    first.storage.set_trial_user_attr(trial, "beat", time.time() - shared.SILENCE - 1)
    second.look()
    assert second.take(job)


def test_a_contender_that_fails_is_out_for_all_until_the_race_is_resumed(tmp_path: Path) -> None:
    where = str(tmp_path / "race.journal")
    board = shared.begin(where, "mine", new())
    job = board.look().jobs()[0]
    board.take(job)
    board.fail(job, "RuntimeError: stuck")
    found = shared.joined(where, "mine").look()
    assert found.entries[job.contender.name].error == "RuntimeError: stuck"
    assert job.contender.name not in {other.contender.name for other in found.jobs()}
    found.entries[job.contender.name].error = None
    shared.go_on(board, found)
    assert board.look().entries[job.contender.name].error is None


def test_a_line_that_a_killed_worker_left_half_written_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "race.journal"
    board = shared.begin(str(path), "mine", new())
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "half')
    job = board.look().jobs()[0]
    assert board.take(job)
    assert shared.joined(str(path), "mine").look().settings == SETTINGS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--storage", "nosuchsql://there/race"), "out of reach"),
        (("--storage", "nosuchsql://me:secret@there/race"), "nosuchsql://me:***@there"),
        (("--storage", "/no/such/folder/race.db"), "out of reach"),
        (("--storage", "/no/such/folder/race.journal"), "out of reach"),
        (("--join", "/no/such/race.journal"), "there is no such file"),
        (("--join", "race.journal", "--trials", 3), "leave the other options out"),
    ],
)
def test_a_storage_out_of_reach_is_one_line_before_work_starts(
    tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    out = () if "--join" in words else ("--out", tmp_path / "race")
    result = CliRunner().invoke(app(), [str(word) for word in ("race", "digits-mlp", *words, *out)])
    assert result.exit_code == 2
    assert message in result.output
    assert "secret" not in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "race").exists()


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """What a call returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_sigkill_loses_no_finished_run_and_the_others_go_on(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes share a race; one is killed in the midst of a run, and the numbers are those of one process."""
    started: list[Any] = []
    kept: list[Race] = []
    start = subprocess.Popen

    def recorded(*words: Any, **how: Any) -> Any:
        started.append(start(*words, **how))
        return started[-1]

    def kill() -> None:
        where = tmp_path / "race" / "race.journal"
        until(lambda: where.exists() and '"run"' in where.read_text())
        started[0].kill()
        started[0].wait()
        kept.append(shared.joined(str(where), "race").look())

    monkeypatch.setattr("descend.lab.workers.subprocess.Popen", recorded)
    given = {"steps": 4, "search-steps": 3, "batch-size": 16, "target": 0.5, "trials": 6, "seeds": 2, "procs": 2}
    options = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    killer = threading.Thread(target=kill)
    killer.start()
    found = CliRunner().invoke(
        app(), ["race", "matrix", "--optimizers", NAMES, *options, "--out", str(tmp_path / "race")]
    )
    killer.join()
    assert found.exit_code == 0, found.output
    assert started[0].returncode == -signal.SIGKILL
    finished = store.load(tmp_path / "race")
    for name, entry in kept[0].entries.items():
        assert all(run in finished.entries[name].trials for run in entry.trials)
        assert all(run in finished.entries[name].runs for run in entry.runs)
    assert timeless(asdict(finished)) == alone


def test_a_worker_ends_with_the_race_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr(shared.os, "_exit", left.append)
    board = shared.begin(str(tmp_path / "race.journal"), "mine", new(), parent=os.getppid() + 1)
    board.wait()
    assert until(lambda: left) == [1]
    board.parent = None
