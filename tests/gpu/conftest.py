"""Tests of what descend asks of a GPU, on machines that have none; ``make test-gpu`` runs them in a process of their own.

They change the process: its torch has a device guard for CUDA, and its compiler writes for one.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

TORCH, TRITON = "2.13.0", "3.7.1"
_installed = False


def _missing() -> str | None:
    if torch.version.cuda or torch.__version__.split("+")[0] != TORCH:
        return f"torch is {torch.__version__}; these tests are about torch {TORCH} built for the CPU"
    if shutil.which("g++") is None:
        return "there is no g++, which compiles eight lines of C++"
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what stands here unless it was asked for: it is no test of the machine that it runs on."""
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = _missing()
    if "gpu" not in config.getoption("markexpr"):
        reason = "these tests change their process: make test-gpu"
    for item in here:
        item.add_marker("gpu")
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        elif {"inductor", "triton"} & {*item.fixturenames} and importlib.util.find_spec("triton") is None:  # type: ignore[attr-defined]
            item.add_marker(pytest.mark.skip(reason=f"there is no triton {TRITON}: make test-gpu installs it"))


@pytest.fixture
def gpu() -> Iterator[object]:
    """A virtual GPU, entered."""
    global _installed
    import virtual

    if not _installed:
        virtual.install()
        _installed = True
    with virtual.VirtualGpu() as entered:
        yield entered


@pytest.fixture
def inductor(gpu: object) -> object:
    """The same, with a compiler that writes kernels for it."""
    import target

    if not target.written and torch.cuda.device_count() != 1:
        target.install()
    return gpu


@pytest.fixture
def triton() -> object:
    """Triton, without whose wheel a test is skipped."""
    return importlib.import_module("triton")
