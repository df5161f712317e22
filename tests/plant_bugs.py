"""Plant bugs that other libraries have shipped, one by one, and see that the tests catch each of them.

    python tests/plant_bugs.py [WORD ...]       all bugs, or those whose description has one of the words

Each bug is an edit of a copy of the package; the tests that are to catch it run against that copy and stop at the first
failure. Prints a line a bug and ends with status 1 if one was missed, or if the tests fail without any bug.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.bugs import Bug, bugs

ROOT = Path(__file__).parents[1]


def plant(bug: Bug, copy: Path) -> None:
    path = copy / "src" / "descend" / bug.file
    text = path.read_text()
    if bug.right not in text:
        raise SystemExit(f"{bug.file} no longer has the text of the bug {bug.what!r}: {bug.right!r}")
    path.write_text(text.replace(bug.right, bug.wrong))


def pytest(copy: Path, tests: str, select: str) -> str | None:
    """The first test that fails and why, None if none does."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-x",
        "-q",
        "-m",
        "not slow",
        "-k",
        select,
    ]
    path = {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "250"}
    result = subprocess.run(
        [*command, f"tests/{tests}"], cwd=copy, env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    if result.returncode == 0:
        return None
    if result.returncode != 1:
        raise SystemExit(f"pytest -k {select!r} {tests} could not run:\n{result.stdout[-3000:]}{result.stderr[-1000:]}")
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    return failed[-1].removeprefix(f"FAILED tests/{tests}::")


def main(words: list[str]) -> int:
    chosen = [bug for bug in bugs() if not words or any(word in f"{bug.what} {bug.where}" for word in words)]
    missed, start = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for name in dict.fromkeys(bug.tests for bug in chosen):
            shutil.copytree(ROOT / "src", copy / "src", dirs_exist_ok=True)
            select = " or ".join(f"({bug.select})" for bug in chosen if bug.tests == name)
            if (failed := pytest(copy, name, select)) is not None:
                raise SystemExit(f"{name}: {failed} fails without any bug")
        for number, bug in enumerate(chosen, 1):
            shutil.rmtree(copy / "src")
            shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
            plant(bug, copy)
            caught = pytest(copy, bug.tests, bug.select)
            missed += caught is None
            print(f"{number:3} {'caught' if caught else 'MISSED'}  {bug.what} ({bug.where})", flush=True)
            print(f"           {(caught or f'{bug.tests} -k {bug.select!r}')[:160]}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} bugs caught in {time.monotonic() - start:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
