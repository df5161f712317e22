"""The leaderboard's parts go on where they were stopped, and its page says what was not recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import leaderboard

from descend.lab import store
from descend.lab.tasks import tasks

SHORT = ("--tasks", "tabular", "--trials", "2", "--seeds", "2", "--steps", "3", "--optimizers")


def record(path: Path, *words: str) -> int:
    return leaderboard.main(["record", str(path), *SHORT, *words])


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "leaderboard.json"


def test_a_part_is_saved_at_once_and_recorded_once(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        leaderboard, "print", lambda *_, **__: saved.append(len(json.loads(recording.read_text()))), False
    )
    assert record(recording, "adamw,sgd") == 0
    assert saved == [1, 2]
    monkeypatch.setattr(leaderboard, "race", None)  # nothing is run again
    assert record(recording, "sgd,adamw") == 0
    assert [part.optimizer for part in leaderboard.read(recording)] == ["adamw", "sgd"]


def test_a_part_that_was_stopped_goes_on(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = leaderboard.descend.create_optimizer_v2, 0

    def tired(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return make(*args, **options)

    monkeypatch.setattr(leaderboard.descend, "create_optimizer_v2", tired)
    assert record(recording, "adamw") == 130
    assert leaderboard.read(recording) == []
    before = store.load(leaderboard.FOLDER / "tabular" / "adamw").entries["adamw"].trials
    assert record(recording, "adamw") == 0
    assert store.load(leaderboard.FOLDER / "tabular" / "adamw").entries["adamw"].trials == before
    assert calls == 3 + 2


def test_other_settings_are_another_part(recording: Path) -> None:
    record(recording, "adamw")
    record(recording, "adamw", "--seeds", "3")
    (part,) = leaderboard.read(recording)
    assert len(part.metrics) == 3


def test_the_page_says_what_was_recorded_and_what_was_not(recording: Path) -> None:
    record(recording, "adamw,sgd")
    page = leaderboard.page(leaderboard.read(recording))
    assert "| `tabular` | 2 | 2 | 2 | 3 of 100 |" in page
    missing = next(line for line in page.splitlines() if "Not recorded: " in line)
    assert all(f"`{name}`" in missing for name in tasks() if name != "tabular")
    assert "not recorded: `soap`, `muon`, `adamw`, `sgd`" in page
    assert "## Ranking" not in page


def test_the_page_has_the_order_that_was_recorded_beside_the_literatures() -> None:
    def part(name: str, *losses: float) -> leaderboard.Part:
        settings = {"steps": 100, "seeds": 5, "trials": 5, "target": 2.4}
        return leaderboard.Part("gpt", name, settings, list(losses), [None] * 5, 0.1, 0, 0.9, 1, 5, None, {})

    found = [
        part("muon", 1.90, 1.91, 1.92, 1.93, 1.94),
        part("soap", 1.91, 1.90, 1.93, 1.92, 1.94),
        part("adamw", 2.20, 2.21, 2.22, 2.24, 2.23),
        part("sgd", 2.50, 2.51, 2.52, 2.53, 2.54),
    ]
    text = leaderboard.literature({"gpt": found})
    assert "`muon` 1.920 ≈ `soap` 1.920 before `adamw` 2.220 before `sgd` 2.520 (`gpt`, 100 steps)" in text


def test_there_are_at_least_twenty_optimizers() -> None:
    assert len(leaderboard.parse(leaderboard.OPTIMIZERS, leaderboard.descend)) >= 20


def test_the_ranking_is_over_the_tasks_with_the_most_optimizers() -> None:
    def part(task: str, number: int) -> leaderboard.Part:
        settings = {"steps": 100, "seeds": 2, "trials": 5, "target": 0.9}
        return leaderboard.Part(
            task, f"sgd:lr={number}", settings, [0.9, 0.8], [9 + number] * 2, 1, 0, None, 1, 5, None, {}
        )

    found = [part(task, number) for task in ("tabular", "digits-mlp") for number in range(21)]
    found += [part("digits-vit", number) for number in range(20)]
    ranking = leaderboard.page(found).split("## Ranking")[1].split("##")[0]
    assert "On 2 tasks, those with the most optimizers: `tabular`, `digits-mlp`." in ranking
    assert ranking.count("\n| `sgd") == 21
    assert "Not ranked" not in ranking
