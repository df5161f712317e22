"""Which test stands for which cell of the README's table, and a record of how these tests went.

A test marked ``capability("loop")`` stands for that capability of the optimizer whose row it is parametrised with;
``capability("loop", optimizer="Lookahead")`` names it. ``pytest -m capability --record-capabilities=FILE`` writes the
record, and ``tools/table.py`` makes the tables of it. (With the equals sign: pytest learns the option from conftest.py,
and takes a word that follows it for a test file until then.)
"""

from __future__ import annotations

import inspect
import json
import platform
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import descend
from helpers import DATA, ROOT
from helpers.cases import ROWS, Row

NEITHER = "neither timm 1.0.31 nor torch 2.13 has it"
# Classes of timm's and of torch's under the names that they have here.
RENAMED = {"AdamWLegacy": "AdamW", "NAdamLegacy": "Nadam", "RAdamLegacy": "RAdam"}
WRAPS = "it wraps another optimizer, whose cell holds"


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, what a mark means, and the capabilities in it, each with its mark."""

    title: str
    shows: str
    marks: dict[str, str]


def _ticked(name: str, title: str, shows: str) -> Column:
    return Column(title, shows, {name: "✓"})


_ORACLE = "every option agrees with a NumPy float64 transcription of the paper"

COLUMNS = (
    _ticked("loop", "loop", f"{_ORACLE}, one tensor after another, in float64 and float32"),
    _ticked("foreach", "multi-tensor", f"{_ORACLE} with `foreach=True`, in float64 and float32"),
    _ticked("fused", "fused", "every compiled variant agrees with the transcription, with `fused=True`"),
    _ticked("capturable", "capturable", "with `capturable=True` a step reads nothing back to the host"),
    _ticked("bf16", "bf16", "a step of bfloat16 parameters is the float32 step, within one unit of bfloat16"),
    _ticked("complex", "complex", "complex parameters move, as pairs of reals"),
    _ticked("resume", "exact resume", "saved, loaded into a new optimizer and continued, a run is bitwise the same"),
    Column(
        "bits of state",
        "averages are stored in blocks of so many bits, and a saved run continues bitwise",
        {"int8": "8", "int4": "4"},
    ),
    _ticked("kahan", "Kahan", "bfloat16 parameters with compensation keep what rounding would lose"),
    _ticked("in backward", "in backward", "`step_in_backward` ends where ordinary steps end, bit by bit"),
    _ticked(
        "sharded",
        "sharded",
        "shards on 2, 3 and 4 processes, replicas of shards, tensor parallel and both: one process's result, in float64",
    ),
    _ticked("reshard", "resharding", "distributed checkpoints load on another number of processes, bit by bit"),
    Column(
        "same as",
        "parameters follow trajectories of timm 1.0.31 or of torch's own optimizer with the same options",
        {"timm": "timm", "torch": "torch"},
    ),
)
KNOWN = tuple(name for column in COLUMNS for name in column.marks)


@dataclass
class Cell:
    """How the tests of one capability of one optimizer went; notes are the reasons of those that were skipped."""

    passed: int = 0
    failed: int = 0
    notes: list[str] = field(default_factory=list)


def optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer class of the package, under its own name; a mixture is made of these."""
    public = (getattr(descend, name) for name in descend.__all__)
    kinds = {kind for kind in public if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)}
    return {
        k.__name__: k
        for k in sorted(kinds - {descend.Optimizer, descend.Mixed}, key=lambda k: (k.__name__.lower(), k.__name__))
    }


def elsewhere() -> set[str]:
    """The optimizers that timm or torch has too."""
    registry = json.loads((DATA / "timm" / "registry.json").read_text(encoding="utf-8"))
    return {RENAMED.get(name, name) for name in registry["classes"]} | set(vars(torch.optim)) | {"TorchAdafactor"}


def cells(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """The optimizer and the capability that a test stands for."""
    for mark in item.iter_markers("capability"):
        optimizer = mark.kwargs.get("optimizer") or _optimizer_of(item)
        for name in mark.args:
            if name not in KNOWN:
                raise pytest.UsageError(f"{item.nodeid}: capability {name!r}, expected one of {', '.join(KNOWN)}")
            yield optimizer, name


def _optimizer_of(item: pytest.Item) -> str:
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    names = [value.name if isinstance(value, Row) else value for value in params.values()]
    known = {row.name for row in ROWS} | set(optimizers())
    found = next((name for name in names if isinstance(name, str) and name in known), None)
    if found is None:
        raise pytest.UsageError(f"{item.nodeid}: capability without optimizer, and no parameter of the test names one")
    return found


class Recorder:
    """Collects the outcomes of marked tests and writes them down at the end."""

    def __init__(self, path: Path, command: str) -> None:
        self.path, self.command = path, command
        self.cells: dict[str, dict[str, Cell]] = {name: {} for name in optimizers()}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        for optimizer, name in (value for key, value in report.user_properties if key == "capability"):
            if optimizer not in self.cells:
                continue  # a class that is yet to come
            cell = self.cells[optimizer].setdefault(name, Cell())
            if report.passed:
                cell.passed += 1
            elif report.failed or hasattr(report, "wasxfail"):
                cell.failed += 1
            else:
                reason = report.longrepr[2].removeprefix("Skipped: ")
                cell.notes = sorted({*cell.notes, reason})

    def pytest_sessionfinish(self) -> None:
        recorded = {name for row in self.cells.values() for name in row}
        for name, row in self.cells.items():
            if name not in elsewhere():
                row.setdefault("timm", Cell(notes=[NEITHER]))
            if not issubclass(optimizers()[name], descend.Optimizer):
                for key in recorded - {"timm", "torch"}:
                    row.setdefault(key, Cell(notes=[WRAPS]))
        versions = dict(descend=descend.__version__, python=platform.python_version(), torch=torch.__version__)
        record = {
            "command": self.command,
            "versions": versions,
            "columns": [asdict(column) for column in COLUMNS if recorded & column.marks.keys()],
            "optimizers": {
                name: {"file": _file(name), "cells": {key: asdict(row[key]) for key in KNOWN if key in row}}
                for name, row in self.cells.items()
            },
        }
        self.path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _file(name: str) -> str:
    return str(Path(inspect.getfile(getattr(descend, name))).relative_to(ROOT))


# -------------------------------------------------------------------------------- hooks for conftest.py


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-capabilities", metavar="FILE", type=Path, help="write how the marked tests went as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "capability(*names, optimizer=None): stands for cells of the README's table")
    path = config.getoption("--record-capabilities")
    if path is not None and not hasattr(config, "workerinput"):
        command = shlex.join(["python", "-m", "pytest", *config.invocation_params.args])
        config.pluginmanager.register(Recorder(path, command), "capabilities")


def pytest_itemcollected(item: pytest.Item) -> None:
    item.user_properties += [("capability", cell) for cell in cells(item)]
