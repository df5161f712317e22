"""The text of the rules: short, and each formula in one place."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import descend
from helpers.cases import Row
from helpers.contract import every_row

SOURCE = Path(descend.__file__).parent
MATHS_LINES = 25


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def test_adams_moments_stand_once_in_the_package() -> None:
    def updates(function: ast.FunctionDef) -> bool:
        calls = {ast.unparse(node).replace(" ", "") for node in ast.walk(function) if isinstance(node, ast.Call)}
        first = any(call.startswith("ema(s.exp_avg,g,") for call in calls)
        return first and any(call.startswith("ema_sq(s.exp_avg_sq,g,") for call in calls)

    found = [f"{path.stem}.{f.name}" for path in SOURCE.rglob("*.py") for f in functions(path) if updates(f)]
    assert found == ["adam.moments"]


@every_row
def test_the_mathematics_is_short(row: Row) -> None:
    rule = getattr(descend, row.name)
    lines = 0
    for name in ("scalars", "direction", "move"):
        if name in vars(rule):
            (function,) = ast.parse(textwrap.dedent(inspect.getsource(getattr(rule, name)))).body
            assert isinstance(function, ast.FunctionDef)
            code = "\n".join(map(ast.unparse, function.body)).splitlines()
            lines += sum(1 + len(line) // 120 for line in code if not line.lstrip().startswith(('"""', "'")))
    assert lines <= MATHS_LINES, lines
