"""What a newcomer meets: words that are nearly right, screens that are narrow, help that fits a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from descend.lab.commands import app


def run(*words: str, columns: int = 80) -> tuple[int, str]:
    result = CliRunner().invoke(app(), list(words), env={"COLUMNS": str(columns)})
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("word", "message"),
    (
        ("adamw:cauton=true", "adamw:cauton=true: AdamW has no option 'cauton'; did you mean 'caution'?"),
        ("adamw:caution", "'caution' is no option, expected name=value"),
        ("nowhere:caution", "'nowhere:caution' cannot be imported"),
    ),
)
def test_an_option_that_there_is_not_is_said_before_work_starts(word: str, message: str, tmp_path: Path) -> None:
    code, said = run("race", "matrix", "--optimizers", f"sgd,{word}", "--out", str(tmp_path / "race"))
    assert (code, message in said, len(said.splitlines())) == (2, True, 1), said
    assert not (tmp_path / "race").exists()


def test_one_file_is_enough_for_a_race_a_fit_and_a_plan(tmp_path: Path) -> None:
    task = tmp_path / "mytask.py"
    task.write_text(run("race", "--example")[1])
    short = ("--steps", "4", "--trials", "1", "--seeds", "1", "--optimizers", "sgd", "--out", str(tmp_path / "race"))
    assert run("race", str(task), *short)[0] == 0
    for source in (str(task), f"{task}:model"):
        code, said = run("fit", "--model", source, "--memory", "1GB", "--optimizers", "adamw")
        assert (code, "fits into" in said) == (0, True), said
    code, said = run("plan", "--model", str(task), "--optimizers", "adamw", columns=120)
    assert (code, "adamw" in said) == (0, True), said
    code, said = run("fit", "--model", f"{task}:modle", "--memory", "1GB")
    assert (code, "has no attribute 'modle'" in said) == (2, True), said


def test_options_are_whole_on_a_narrow_screen() -> None:
    code, said = run("show", "adamw", columns=40)
    assert code == 0
    for word in ("clipping_threshold=None", "betas=(0.9, 0.999)", "corrected_weight_decay=False"):
        assert word in said, word
    assert "…" not in said
    lines = said[said.index("defaults") :].splitlines()
    assert max(map(len, lines)) <= 40


def test_help_says_each_command_in_a_whole_sentence() -> None:
    code, said = run("--help")
    assert code == 0
    commands = said[said.index("Commands:") :].splitlines()[1:]
    assert len(commands) == 8
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)
