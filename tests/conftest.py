"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from descend.engine.executors import kernels
from helpers.capabilities import pytest_addoption, pytest_configure, pytest_itemcollected  # noqa: F401
from helpers.cases import ROWS, Row
from helpers.processes import Processes

NAMES = {row.name for row in ROWS}
torch.set_num_threads(1)
#: How many parameters a compiled call takes: a quarter of the code to compile, of the same text.
BUNDLE = kernels.BUNDLE
kernels.BUNDLE = 2


@pytest.fixture
def bundles_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One parameter a compiled call, where the text of a rule is what is tested: half the code."""
    monkeypatch.setattr(kernels, "BUNDLE", 1)


@pytest.fixture
def full_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parameters a compiled call as users have."""
    monkeypatch.setattr(kernels, "BUNDLE", BUNDLE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What shares work goes to one of several workers: kernels and oracles of an optimizer, the processes."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "processes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("processes"))
        elif (name := next((_name(value) for value in params.values() if _name(value)), None)) is not None:
            item.add_marker(pytest.mark.xdist_group(name))


def _name(value: object) -> str | None:
    """Of the optimizer that a test is about."""
    name = value.name if isinstance(value, Row) else value
    return name if isinstance(name, str) and name in NAMES else None


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Started with the first task that they get."""
    pool = Processes()
    yield pool
    pool.stop()
