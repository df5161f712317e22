"""A race as JSON: everything it did, written after every run and read back by `--resume`."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from descend.lab.contender import Contender
from descend.lab.outcome import read, write
from descend.lab.racing import Entry, Point, Race, Run, Settings
from descend.lab.search import Choice

FORMAT = 3
FILE = "race.json"


def save(race: Race, folder: Path) -> None:
    """Write the race; the file is complete at every moment, whatever interrupts."""
    write(folder / FILE, json.dumps(plain(race), allow_nan=False) + "\n")


def load(folder: Path) -> Race:
    """Read the race that `save` wrote into `folder`."""
    return read(folder / FILE, race_of, "race that this version wrote; start a new one")


def plain(race: Race) -> dict[str, Any]:
    """A race as JSON has it."""
    return {"format": FORMAT, **asdict(race)}


def race_of(raw: dict[str, Any]) -> Race:
    """The race that `plain` made so."""
    if (found := raw.pop("format")) != FORMAT:
        raise ValueError(f"its format is {found}, expected {FORMAT}")
    raw["settings"] = Settings(**raw["settings"])
    raw["untrained"] = Point(**raw["untrained"]) if raw["untrained"] else None
    raw["entries"] = {name: entry(value) for name, value in raw["entries"].items()}
    return Race(**raw)


def entry(raw: dict[str, Any]) -> Entry:
    """One contender's part of the file."""
    who = Contender(**{**raw["contender"], "betas": tuple(raw["contender"]["betas"])})
    return Entry(who, [run_of(r) for r in raw["trials"]], [run_of(r) for r in raw["runs"]], raw["error"])


def run_of(raw: dict[str, Any]) -> Run:
    """One run of the file."""
    curve = [Point(**point) for point in raw["curve"]]
    return Run(**{**raw, "choice": Choice(**raw["choice"]), "curve": curve})


def environment() -> dict[str, str]:
    """The versions and the kind of machine that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("descend", "torch", "optuna", "scikit-learn", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["cores"] = str(os.cpu_count())
    found["byte order"] = sys.byteorder
    return found


def changed(before: dict[str, str]) -> dict[str, str]:
    """The environment, with a word wherever a race that is resumed began in another one."""
    now = environment()
    return {
        key: value if before.get(key, value) == value else f"{value}, before it was resumed {before[key]}"
        for key, value in now.items()
    }
