"""Names that the examples in docstrings take for granted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

# They import frameworks that need not be there, and have no examples that run without a training.
collect_ignore_glob = ["src/descend/integrations/*", "src/descend/engine/executors/triton_functions.py"]


@pytest.fixture(autouse=True)
def _imported(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
