"""What the processes of the tests do: train the small problem with its parameters spread in some way.

Every function here runs on all four processes; those that a layout has no use for take part in nothing but its making.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from descend.engine.sharding.layout import full
from helpers import small
from helpers.cases import ROWS, Row
from helpers.processes import Piece

# A vector, one row, few rows (some pieces are empty), odd sizes, a matrix large enough to be factored, a convolution.
SHAPES = ((5,), (1, 7), (3, 4), (6, 4), (18, 17), (4, 3, 3, 3))


@functools.cache
def mesh(*sizes: int) -> DeviceMesh:
    """A mesh of the first processes."""
    count = 1
    for n in sizes:
        count *= n
    names = ("a", "b")[: len(sizes)]
    return DeviceMesh("cpu", torch.arange(count).view(sizes), mesh_dim_names=names)


def _rows(shape: Sequence[int], index: int) -> list[Any]:
    return [Shard(0)]


def _columns(shape: Sequence[int], index: int) -> list[Any]:
    return [Shard(1) if len(shape) > 1 else Replicate()]


def _mixed(shape: Sequence[int], index: int) -> list[Any]:
    """As tensor parallelism leaves a model: rows here, columns there, norms everywhere."""
    return [Replicate() if len(shape) < 2 else Shard(index % 2)]


def _crossed(shape: Sequence[int], index: int) -> list[Any]:
    return [Shard(0), *_mixed(shape, index)]


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Sequence[int], int], list[Any]]]] = {
    "1 rank": ((1,), _rows),
    "2 ranks": ((2,), _rows),
    "3 ranks": ((3,), _rows),
    "4 ranks": ((4,), _rows),
    "columns": ((2,), _columns),
    "replicas of shards": ((2, 2), lambda shape, index: [Replicate(), Shard(0)]),
    "tensor parallel": ((2,), _mixed),
    "shards of tensor parallel": ((2, 2), _crossed),
}


def row_of(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def options_of(name: str, **more: Any) -> dict[str, Any]:
    """The busiest variant that can be spread."""
    options = {**small.busiest(name), **more}
    options.pop("still", None)
    if name == "Prodigy":
        options.pop("slice_p", None)
    return options


def whole(x: Any) -> Tensor:
    """A copy of all of a tensor, on every process that has a piece."""
    return full(x).detach().clone()


def spread(x: Tensor, on: DeviceMesh, placements: Sequence[Any]) -> Tensor:
    """A DTensor of what every process has."""
    return distribute_tensor(x, on, placements, src_data_rank=None)


def parameters(layout: str, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> list[nn.Parameter] | None:
    """The small problem's parameters; None on a process that has no part in the layout."""
    sizes, place = LAYOUTS[layout]
    on = mesh(*sizes)
    if on.get_coordinate() is None:
        return None
    made = small.parameters(dtype, shapes)
    return [nn.Parameter(spread(p.detach(), on, place(p.shape, i))) for i, p in enumerate(made)]


def gradient(p: Tensor, step: int, index: int) -> Tensor:
    """All of a parameter's gradient."""
    return small.noise(p.shape, p.dtype, step, index) * (1 + step % 3)


def set_gradients(params: Sequence[Any], step: int) -> None:
    """The same full gradients on every layout, and in one process."""
    for i, p in enumerate(params):
        g = gradient(p, step, i)
        p.grad = spread(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g


def take_steps(optimizer: Any, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        set_gradients(small.parameters_of(optimizer), step)
        optimizer.step()
        optimizer.zero_grad()


def found(optimizer: Any) -> dict[str, Any]:
    """All of the parameters and of their state; pieces are joined where the result arrives."""
    params = small.parameters_of(optimizer)
    states = [{name: piece(x) for name, x in optimizer.state.get(p, {}).items()} for p in params]
    return {"values": [piece(p) for p in params], "states": states}


def piece(x: Any) -> Any:
    """A copy of what is here of a tensor, to be joined without a collective; of all of it where it is cut otherwise."""
    if not isinstance(x, DTensor) or any(type(placement) not in (Shard, Replicate) for placement in x.placements):
        return whole(x)
    dims = tuple(placement.dim if isinstance(placement, Shard) else None for placement in x.placements)
    return Piece(x.to_local().detach().clone(), x.device_mesh.mesh, dims)


class Model(nn.Module):
    """Parameters whose gradients are given numbers, for ``fully_shard``."""

    def __init__(self, dtype: torch.dtype = torch.float64, shapes: Any = SHAPES) -> None:
        super().__init__()
        self.weights = nn.ParameterList(small.parameters(dtype, shapes))

    def forward(self, step: int) -> Tensor:
        terms = [(gradient(p, step, i) * p).sum() for i, p in enumerate(self.weights)]
        return torch.stack([term.double() for term in terms]).sum()
