"""`descend.lab.race`: the command's storage, processes and joining from Python, and what it says of wrong arguments."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import descend
import descend.lab
from descend.lab import racing
from descend.lab.example import EXAMPLE
from descend.lab.racing import Race

SHORT: dict[str, Any] = {"steps": 4, "trials": 3, "seeds": 2}


def model() -> nn.Module:
    return nn.Linear(4, 3)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return inputs, inputs[:, :3].argmax(1)


class Half(descend.SGD):
    """SGD under another name."""


def numbers(race: Race) -> Any:
    """The curves and choices, without what a clock has measured."""
    return {
        name: [(run["choice"], run["seed"], [(p["step"], p["loss"]) for p in run["curve"]]) for run in runs]
        for name, entry in asdict(race)["entries"].items()
        for runs in [entry["trials"] + entry["runs"]]
    }


@pytest.fixture(scope="module")
def alone() -> Any:
    return numbers(descend.lab.race(model, rows, optimizers="adamw,lion", **SHORT).race)


@pytest.mark.parametrize("name", ("race.journal", "race.db"))
def test_the_same_call_goes_on_with_what_another_has_begun(
    tmp_path: Path, name: str, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, train, left = str(tmp_path / name), racing.train, [3]

    def stopping(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return train(*given)

    monkeypatch.setattr(racing, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        descend.lab.race(model, rows, optimizers="adamw,lion", storage=where, **SHORT)
    left[0] = 7  # of ten runs
    found = descend.lab.race(model, rows, optimizers="adamw,lion", join=where, **SHORT)
    assert numbers(found.race) == alone
    assert left == [0]


def test_processes_find_a_task_and_optimizers_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mytask.py").write_text(EXAMPLE)
    Path("mine.py").write_text("import descend\n\n\nclass Mine(descend.Lion):\n    pass\n")
    given: dict[str, Any] = {"optimizers": "sgd,mine.py", **SHORT}
    several = descend.lab.race("mytask.py", procs=2, **given)
    assert numbers(several.race) == numbers(descend.lab.race("mytask.py", **given).race)
    assert not list(tmp_path.glob("**/*journal*"))
    assert several.race.settings.task == "mytask.py"


def test_a_class_is_raced_by_the_catalogues_name_or_by_its_own() -> None:
    found = descend.lab.race("matrix", optimizers=[descend.AdamW, Half], **SHORT).race
    assert [entry.contender.source for entry in found.entries.values()] == ["", f"{__name__}:Half"]
    assert list(found.entries) == ["adamw", "half"]
    with pytest.raises(ValueError, match="derive one of another name"):
        descend.lab.race("matrix", optimizers=[torch.optim.Adam], **SHORT)


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"procs": 2}, "a task that is made of functions"),
        ({"procs": 0}, "procs is 0"),
        ({"join": "race.journal", "procs": 2}, "leave storage and procs out"),
        ({"join": "nowhere.journal"}, "there is no such file"),
        ({"storage": "nosuchsql://me:secret@there/race"}, r"nosuchsql://me:\*\*\*@there/race is out of reach"),
        ({"trials": 0}, "trials is 0, expected a whole number >= 1"),
        ({"seeds": 2.5}, "seeds is 2.5, expected a whole number >= 1"),
        ({"seed": -1}, "seed is -1, expected a number >= 0"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"device": "toaster"}, "device is 'toaster', which cannot be used"),
        ({"valdiation": rows()}, "did you mean validation"),
        ({"batch": 61}, "there are 48 examples"),
    ),
)  # fmt: skip
def test_what_is_wrong_is_said_before_work_starts(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        descend.lab.race(model, rows, **{**SHORT, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    (
        ({"loss": nn.functional.mse_loss}, "task 'digits-mlp' is whole, and loss is given besides"),
        ({"train": rows()}, "train is given besides"),
        ({"target": 95}, "accuracy to reach lies between 0 and 1"),
    ),
)  # fmt: skip
def test_a_whole_task_takes_no_other_parts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descend.lab.race("digits-mlp", **{**SHORT, **given})


def test_a_call_that_differs_does_not_join(tmp_path: Path) -> None:
    where = str(tmp_path / "race.journal")
    descend.lab.race(model, rows, optimizers="lion", storage=where, **SHORT)
    with pytest.raises(ValueError, match=r"trials is 5, but the race in .* has 3"):
        descend.lab.race(model, rows, optimizers="lion", join=where, **{**SHORT, "trials": 5})
    with pytest.raises(ValueError, match="optimizers are sgd, but the race in .* has lion"):
        descend.lab.race(model, rows, optimizers="sgd", join=where, **SHORT)
    with pytest.raises(ValueError, match="holds a race 'model' already"):
        descend.lab.race(model, rows, optimizers="lion", storage=where, **SHORT)
