"""The catalogue as the tests see it: one row an optimizer, every option in some variant. A new optimizer adds a row."""

from __future__ import annotations

from helpers.cases.core import ROWS as CORE
from helpers.cases.frontier import ROWS as FRONTIER
from helpers.cases.matrix import ROWS as MATRIX
from helpers.rows import DECAY, Options, Row, variant_id

__all__ = ["DECAY", "ROWS", "Options", "Row", "variant_id"]

ROWS = (*CORE, *FRONTIER, *MATRIX)
