"""The names that pages give for transformers are those of its release that was tried."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import elsewhere  # noqa: E402

pytestmark = pytest.mark.integrations


def test_transformers_has_these_names() -> None:
    pytest.importorskip("transformers")
    from transformers.training_args import OptimizerNames

    named = {name for names in elsewhere.TRANSFORMERS.values() for name in names}
    assert named <= {each.value for each in OptimizerNames}
