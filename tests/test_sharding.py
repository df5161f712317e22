"""Every optimizer with its parameters spread over processes gives what one process gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import spread
import torch
from cases import ROWS, Row
from processes import Processes

import descend

every_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    pool = Processes()
    yield pool
    pool.stop()


def possible(row: Row) -> None:
    if row.name == "Adahessian":
        pytest.skip("Adahessian: differentiates gradients, which FSDP2 cannot; it refuses parameters in pieces")


def tolerance(row: Row) -> float:
    """Polar factors and eigenbases amplify the last digits."""
    return 1e-7 if getattr(descend, row.name).reach == "matrix" else 1e-10


def check(got: Any, expected: Any, bound: float) -> None:
    for x, y in zip(got["values"], expected["values"], strict=True):
        torch.testing.assert_close(x, y, rtol=bound, atol=bound)
    for s, t in zip(got["states"], expected["states"], strict=True):
        assert s.keys() == t.keys()
        for name, x in s.items():
            torch.testing.assert_close(x, t[name], rtol=bound, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.capability("sharded")
@pytest.mark.parametrize("layout", [name for name in spread.LAYOUTS if name != "1 rank"])
@every_row
def test_every_layout_ends_where_one_process_ends(processes: Processes, row: Row, layout: str) -> None:
    possible(row)
    got = processes.run("spread", "trained", name=row.name, layout=layout)
    check(got[0], spread.alone(row.name), tolerance(row))
