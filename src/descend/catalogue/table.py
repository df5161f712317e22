"""Which parameter is treated how, as rows and as a printed table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class ParamRow:
    """What happens to one parameter.

    Attributes:
        name: its name; group and position where the groups have no names.
        shape: its shape.
        group: index of its group.
        lr: its learning rate. None: the group has none.
        lr_scale: the share of the base learning rate that layer decay leaves it.
        weight_decay: its weight decay. None: the group has none.
        rule: who moves it.
        state_bytes: bytes of optimizer state. None: not known.
        dtype: its dtype.
        trainable: whether it takes gradients.
    """

    name: str
    shape: tuple[int, ...]
    group: int
    lr: float | None
    lr_scale: float
    weight_decay: float | None
    rule: str
    state_bytes: int | None
    dtype: torch.dtype
    trainable: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class ParamTable(Sequence[ParamRow]):
    """Rows of :class:`ParamRow`; printed, a table with totals."""

    def __init__(self, rows: Iterable[ParamRow]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> ParamRow: ...
    @overload
    def __getitem__(self, index: slice) -> ParamTable: ...

    def __getitem__(self, index: int | slice) -> ParamRow | ParamTable:
        return ParamTable(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        head = ("parameter", "shape", "dtype", "group", "lr", "lr scale", "decay", "rule", "state", "trains")
        body = [_cells(row) for row in self._rows]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if title in ("parameter", "shape", "dtype", "rule") else cell.rjust(width)
                for title, cell, width in zip(head, cells, widths, strict=True)
            ).rstrip()
            for cells in (head, *body)
        ]
        line = "-" * max(map(len, lines))
        return "\n".join((lines[0], line, *lines[1:], line, self._totals()))

    def _totals(self) -> str:
        elements = sum(row.numel for row in self._rows)
        trained = sum(row.numel for row in self._rows if row.trainable)
        groups = len({row.group for row in self._rows})
        text = f"{_count(len(self), 'parameter')} in {_count(groups, 'group')}, {_count(elements, 'element')}"
        if trained != elements:
            text += f", {trained:,} of them trained"
        known = [row.state_bytes for row in self._rows if row.state_bytes is not None]
        return f"{text}, {_bytes(sum(known))} of state" if known else text


def param_groups_table(optimizer_or_groups: Optimizer | Iterable[Any]) -> ParamTable:
    """Tell which parameter gets which learning rate, decay and rule, and what its state costs.

    Args:
        optimizer_or_groups: an optimizer, or what one is made from: parameter groups (with ``params`` in a list),
            parameters, or (name, parameter) pairs.

    Returns:
        A sequence of :class:`ParamRow` that prints as a table.

    Example:
        >>> from torch import nn
        >>> table = param_groups_table(torch.optim.SGD(nn.Linear(2, 3).named_parameters(), lr=0.1))
        >>> print(table)
        parameter  shape  dtype    group   lr  lr scale  decay  rule  state  trains
        ---------------------------------------------------------------------------
        weight     3x2    float32      0  0.1         1      0  SGD       -     yes
        bias       3      float32      0  0.1         1      0  SGD       -     yes
        ---------------------------------------------------------------------------
        2 parameters in 1 group, 9 elements
        >>> [row.name for row in table if len(row.shape) > 1]
        ['weight']
    """
    optimizer = optimizer_or_groups if isinstance(optimizer_or_groups, Optimizer) else None
    groups: list[Any] = optimizer.param_groups if optimizer else list(optimizer_or_groups)  # type: ignore[arg-type]
    if groups and not isinstance(groups[0], Mapping):
        groups = [{"params": groups}]
    return ParamTable(
        _row(name, param, index, group, optimizer)
        for index, group in enumerate(groups)
        for name, param in _named(group, index)
    )


def _named(group: Mapping[str, Any], index: int) -> Iterator[tuple[str, Tensor]]:
    params = group["params"]
    entries = [params] if isinstance(params, Tensor) else list(params)
    names = group.get("param_names") or ()
    for position, entry in enumerate(entries):
        if isinstance(entry, tuple):
            yield entry
        else:
            yield names[position] if position < len(names) else f"{index}.{position}", entry


def _row(name: str, p: Tensor, index: int, group: Mapping[str, Any], optimizer: Optimizer | None) -> ParamRow:
    return ParamRow(
        name=name,
        shape=tuple(p.shape),
        group=index,
        lr=_number(group.get("lr")),
        lr_scale=float(group.get("layer_scale", group.get("lr_scale", 1.0))),
        weight_decay=_number(group.get("weight_decay")),
        rule=_rule(p, group, optimizer),
        state_bytes=_state_bytes(p, group, optimizer),
        dtype=p.dtype,
        trainable=p.requires_grad,
    )


def _rule(p: Tensor, group: Mapping[str, Any], optimizer: Optimizer | None) -> str:
    """A hybrid optimizer says by ``rule_name(param, group)`` which of its rules a parameter goes to."""
    if optimizer is None:
        return "fallback" if group.get("use_fallback") else ""
    own_answer = getattr(optimizer, "rule_name", None)
    if own_answer is not None:
        return str(own_answer(p, group))
    base = getattr(optimizer, "base_optimizer", None)
    name = type(optimizer).__name__
    return f"{name}({_rule(p, group, base)})" if isinstance(base, Optimizer) else name


def _state_bytes(p: Tensor, group: Mapping[str, Any], optimizer: Optimizer | None) -> int | None:
    """What the optimizer predicts; for one that doesn't, what its state holds now."""
    predict = getattr(optimizer, "state_bytes", None)
    if predict is not None:
        return int(predict(p, group))
    state = optimizer.state.get(p) if optimizer is not None else None
    if not state:
        return None
    return sum(value.numel() * value.element_size() for value in state.values() if isinstance(value, Tensor))


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _cells(row: ParamRow) -> tuple[str, ...]:
    return (
        row.name,
        "x".join(map(str, row.shape)) or "scalar",
        str(row.dtype).removeprefix("torch."),
        str(row.group),
        _short(row.lr),
        _short(row.lr_scale),
        _short(row.weight_decay),
        row.rule or "-",
        "-" if row.state_bytes is None else _bytes(row.state_bytes),
        "yes" if row.trainable else "no",
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _bytes(number: int) -> str:
    size, units = float(number), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "B"
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{number} B" if unit == "B" else f"{size:.1f} {unit}"
