"""What the tests over the whole catalogue share: every row, the executors, memory layouts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import descend
from helpers import small
from helpers.cases import ROWS, Row

EXECUTORS = ("loop", "foreach")
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_executor = pytest.mark.parametrize("executor", EXECUTORS)


def switch(executor: str) -> dict[str, bool]:
    return {"foreach": executor == "foreach"}


def refuses(row: Row, option: str) -> bool:
    """Whether this optimizer cannot have the option; it then says why."""
    rule = getattr(descend, row.name)
    if option in rule.refused:
        with pytest.raises(ValueError, match=f"{option}=True is not possible: .{{10,}}"):
            small.make(row, small.parameters(), **{option: True})
    return option in rule.refused


def laid_out(params: list[nn.Parameter], layout: str) -> list[nn.Parameter]:
    """The same values in another memory layout."""
    return [nn.Parameter(relayout(p.detach(), layout)) for p in params]


def relayout(x: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.clone()
    if layout == "transposed":
        return x.t().contiguous().t() if x.dim() == 2 else x.clone()
    spaced = torch.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype) if x.dim() else x
    return spaced[..., ::2].copy_(x) if x.dim() else x.clone()
