"""Names that the examples in docstrings take for granted."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _imported(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
