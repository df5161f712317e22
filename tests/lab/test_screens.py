"""What the lab's screens say, at 80 and 40 columns."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

import descend
from descend.engine.options import COMMON_DEFAULTS, Common
from descend.lab.commands import app

COMMANDS = ("race", "tune", "list", "show", "bench", "fit", "plan", "memory")


def run(*words: str, columns: int = 80) -> Any:
    return CliRunner().invoke(app(), list(words), env={"COLUMNS": str(columns)})


def test_help_of_every_command_imports_no_torch() -> None:
    code = """
import io, contextlib, sys
from descend.lab.commands import app
for words in ([], *([name] for name in sys.argv[1].split(","))):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        app()([*words, "--help"])
    assert "--help" in said.getvalue(), words
heavy = {"torch", "numpy", "optuna", "scipy", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    found = subprocess.run([sys.executable, "-c", code, ",".join(COMMANDS)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("name", ["adamw", "adadelta"])
def test_show_lists_the_options_of_every_optimizer_and_why_one_refuses_some(name: str, columns: int) -> None:
    page = run("show", name, columns=columns).output
    for option in Common.__annotations__:
        assert f"{option}={COMMON_DEFAULTS[option]!r}" in page
    refused = descend.get_optimizer_class(name, bind_defaults=False).refused  # type: ignore[union-attr]
    words = " ".join(page.split())
    assert words.count("refused: ") == len(refused)
    assert all(f"refused: {why}" in words for why in refused.values())
    assert "bytes per parameter" in words
    short = [line for line in page.splitlines() if "←" not in line and ">>>" not in line and "=" not in line]
    assert max(map(cell_len, short)) <= columns


def test_show_fills_its_lines() -> None:
    words = run("show", "sam").output
    assert "second one. BatchNorm's running statistics belong to the first pass: set" in words
    assert "\n      rho: " in words


def test_show_says_what_an_optimizer_is_once() -> None:
    for name in ("adamw", "sgd", "lamb"):
        page = run("show", name).output
        lines = [line.strip().rstrip(".") for line in page.splitlines() if len(line.split()) > 3]
        assert len(lines) == len(set(lines)), name
