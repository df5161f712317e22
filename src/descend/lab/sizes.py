"""Bytes: of an optimizer's state before and after there is any, and as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from descend.engine.optimizer import Optimizer

MIB, GIB = 2**20, 2**30
UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 2**40,
}


def predicted_bytes(optimizer: Optimizer) -> int:
    """The state of all parameters, as the optimizer says before there is any."""
    return sum(optimizer.state_bytes(p, group) for group in optimizer.param_groups for p in group["params"])


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """The state that there is, however it is nested."""
    return sum(tensor.nbytes for tensor in _tensors(list(optimizer.state.values())))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def parse(words: str) -> int:
    """Bytes from words such as "24GB" (10⁹), "80GiB" (2³⁰) or "512 MiB".

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", words)
    unit = UNITS.get(found[2].upper()) if found else None
    if not found or not unit or float(found[1]) <= 0:
        raise ValueError(f"{words!r} is no size; write a number and a unit, such as 24GB (10⁹ bytes) or 24GiB (2³⁰)")
    return int(float(found[1]) * unit)


def show(amount: float) -> str:
    """Three digits and the unit that suits them."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:.{2 if amount < 10 * size else 1 if amount < 100 * size else 0}f} {unit}"
    return f"{amount:.0f} B"
