"""`descend tune`: its budget, its plan, its answer and the lines to paste."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from descend.lab import store, tuning
from descend.lab.commands import app
from descend.lab.contender import Contender
from descend.lab.racing import warmup_cosine
from descend.lab.tasks import tasks


def run(*words: object) -> Any:
    return CliRunner().invoke(app(), [str(word) for word in words], env={"COLUMNS": "100"})


@pytest.mark.parametrize(
    ("words", "seconds", "steps"),
    [("90s", 90, None), ("10m", 600, None), ("1.5h", 5400, None), ("5000", None, 5000), ("5000 steps", None, 5000)],
)
def test_a_budget_is_time_or_steps(words: str, seconds: float | None, steps: int | None) -> None:
    found = tuning.budget(words)
    assert (found.seconds, found.steps) == (seconds, steps)


@pytest.mark.parametrize("words", ["", "soon", "0", "-3m", "3 days"])
def test_another_budget_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match="expected a time such as 90s"):
        tuning.budget(words)


def test_a_plan_enters_as_many_as_can_be_searched_well_and_spends_what_is_left() -> None:
    three = [Contender(name) for name in "abc"]
    costs = [(1.0, 2.0), (1.0, 2.0), (10.0, 20.0)]
    for room in (5.0, 12.0, 24.0, 40.0, 144.0, 600.0, 1e9):
        made = tuning.plan(three, costs, room, "seconds")
        spent = sum(made.trials * search + made.seeds * final for search, final in costs[: len(made.contenders)])
        assert spent <= room
        assert len(made.contenders) == (1 if room < 24 else 2 if room < 144 else 3)
        assert room < 12 or (made.trials >= tuning.LEAST[0] and made.seeds >= tuning.LEAST[1])
        assert made.trials <= tuning.MOST[0]
        assert made.seeds <= tuning.MOST[1]
    with pytest.raises(ValueError, match="about 3 seconds, and 2 are left"):
        tuning.plan(three, costs, 2.0, "seconds")


def test_an_answer_is_ranked_and_its_lines_train_as_the_race_did(tmp_path: Path) -> None:
    out = tmp_path / "tune"
    result = run("tune", "digits-mlp", "--budget", 250, "--steps", 10, "--optimizers", "adamw,sgd", "--out", out)
    assert result.exit_code == 0, result.output
    race, task = store.load(out), tasks()["digits-mlp"]
    assert all(entry.spent + 10 * len(entry.runs) <= 125 for entry in race.entries.values())
    found = tuning.picks(race, task)
    assert [one.metric for one in found] == sorted((one.metric for one in found), reverse=True)
    assert found[0].error is not None
    assert found[0].low <= found[0].choice.lr <= found[0].high
    pasted = tuning.lines(race, found[0])
    assert pasted in result.output
    names: dict[str, Any] = {"model": task.model()}
    exec(pasted, names)
    assert names["optimizer"].param_groups[0]["initial_lr"] == pytest.approx(found[0].choice.lr, rel=1e-3)
    expected = [warmup_cosine(step, 10, race.settings.warmup, found[0].choice.decay) for step in range(10)]
    assert [names["factor"](step) for step in range(10)] == pytest.approx(expected)


def test_ctrl_c_keeps_what_is_done_and_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    step = torch.optim.Optimizer.zero_grad

    def tired(self: Any, set_to_none: bool = True) -> None:
        nonlocal calls
        calls += 1
        if calls > 45:
            raise KeyboardInterrupt
        step(self, set_to_none)

    monkeypatch.setattr("descend.AdamW.zero_grad", tired, raising=False)
    out = tmp_path / "tune"
    result = run("tune", "digits-mlp", "--budget", 200, "--steps", 10, "--optimizers", "adamw", "--out", out)
    assert result.exit_code == 130, result.output
    assert len(store.load(out).entries["adamw"].trials) == 4
    assert "Take adamw for now" in result.output
    assert "descend race --resume --out" in result.output


def test_time_that_is_over_ends_the_race_with_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "costs", lambda *_: [(1e-9, 1e-9)])
    out = tmp_path / "tune"
    result = run("tune", "digits-mlp", "--budget", "1s", "--steps", 20, "--optimizers", "adamw", "--out", out)
    assert result.exit_code == 0, result.output
    assert "The time is over" in result.output
    assert store.load(out).entries["adamw"].trials


@pytest.mark.parametrize(
    ("words", "message"),
    [(("--budget", "soon"), "--budget is 'soon'"), (("--budget", 3), "too small"), (("--budget", "1ms"), "--budget")],
)
def test_a_budget_that_is_none_is_one_line(tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    result = run("tune", "digits-mlp", *words, "--out", tmp_path / "tune")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "tune").exists()


def test_the_lines_of_an_optimizer_of_ones_own_import_it(tmp_path: Path) -> None:
    mine = tmp_path / "my_rule.py"
    mine.write_text(
        "import torch\n\nclass Downward(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.1, weight_decay=0.0):\n"
        "        super().__init__(params, lr=lr, weight_decay=weight_decay)\n"
    )
    words = ("--budget", 60, "--steps", 5, "--optimizers", mine, "--out", tmp_path / "tune")
    result = run("tune", "digits-mlp", *words)
    assert result.exit_code == 0, result.output
    assert "from my_rule import Downward\n" in result.output
    assert "optimizer = Downward(param_groups_weight_decay(model, " in result.output


def test_half_an_interval_is_students() -> None:
    from scipy.stats import t  # type: ignore[import-untyped]

    values = [0.9, 0.92, 0.95, 0.91]
    mean = sum(values) / 4
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / 3)
    assert tuning.half_interval(values) == pytest.approx(t.ppf(0.975, 3) * deviation / 2)
    assert tuning.half_interval([1.0]) is None
    assert tuning.half_interval([1.0, math.inf]) is None
