"""Tests that need a CUDA device; ``make bench-gpu`` runs them, under any torch and triton."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands here, and skip it where there is no device."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cuda")
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))
