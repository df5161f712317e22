"""Float64 NumPy transcriptions of the papers, written without a look at the package: the judge of its tests."""

from __future__ import annotations

from . import accumulate, adam, adam_variants, averaging, factored, layerwise, matrix, precondition, prodigy, sgd
from .averaging import Lookahead
from .base import Oracle

FAMILIES = (
    accumulate, adam, adam_variants, averaging, factored, layerwise, matrix, precondition, prodigy, sgd,
)  # fmt: skip

ORACLES: dict[str, type[Oracle]] = {
    name: oracle
    for family in FAMILIES
    for name, oracle in vars(family).items()
    if isinstance(oracle, type) and issubclass(oracle, Oracle) and oracle.defaults
}

__all__ = ["ORACLES", "Lookahead", "Oracle"]
