"""What all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

from capabilities import pytest_addoption, pytest_configure, pytest_itemcollected  # noqa: E402, F401
from processes import Processes  # noqa: E402


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Started with the first task that they get."""
    pool = Processes()
    yield pool
    pool.stop()
