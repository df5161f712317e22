"""The names that pages give for transformers are those of its release that was tried."""

from __future__ import annotations

import elsewhere
import pytest

pytestmark = pytest.mark.integrations


def test_transformers_has_these_names() -> None:
    pytest.importorskip("transformers")
    from transformers.training_args import OptimizerNames

    named = {name for names in elsewhere.TRANSFORMERS.values() for name in names}
    assert named <= {each.value for each in OptimizerNames}
