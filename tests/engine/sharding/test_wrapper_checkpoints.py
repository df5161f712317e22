"""Distributed checkpoints of optimizers around others, and of those that move weights between steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import small
from helpers.processes import Processes
from helpers.spread import wrappers


@pytest.mark.parametrize("form", ("nested", "flat", "full", "plain"))
@pytest.mark.parametrize("steps", (2, 4), ids=("before the first synchronisation", "after"))
@pytest.mark.parametrize("which", wrappers.MAKERS)
def test_a_run_goes_on_on_other_processes(
    processes: Processes, which: str, steps: int, form: str, tmp_path: Path
) -> None:
    if "torch" in which and form == "plain":
        pytest.skip("torch's own optimizers do not spread whole tensors that they load")
    got = processes.run(wrappers.round_trip, which=which, steps=steps, form=form, folder=str(tmp_path))[0]
    assert small.same(got["loaded"]["values"], got["saved"]["values"])
    assert small.same_states(got["loaded"]["states"], got["saved"]["states"])
    assert small.same(got["continued"]["values"], got["uninterrupted"]["values"])
    assert small.same_states(got["continued"]["states"], got["uninterrupted"]["states"])
