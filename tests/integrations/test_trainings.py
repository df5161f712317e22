"""Trainings in other people's frameworks are the loop by hand, and resume bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from frameworks import FRAMEWORKS, adapted
from plain import CASES, TOTAL, train

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_is_the_plain_loop_and_resumes_bitwise(framework: str, case: str, tmp_path: Path) -> None:
    run, what = FRAMEWORKS[framework], CASES[case]
    whole = run(what, tmp_path, resume=False)
    plain = train(what, adapted(what) if framework == "peft" else None)
    assert len(whole.losses) == TOTAL * what.accumulate
    torch.testing.assert_close(whole.losses, plain.losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(whole.parameters, plain.parameters)
    assert plain.losses[-1] < plain.losses[0]
    resumed = run(what, tmp_path, resume=True)
    assert resumed.losses == whole.losses[len(whole.losses) // 2 :]
    for left, right in zip(resumed.parameters, whole.parameters, strict=True):
        assert torch.equal(left, right)
