"""Sums over processes: of all tensors at once, one collective for each dimension of the mesh that they cross."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from descend.engine.job import Job
from descend.engine.sharding.layout import Layout, layout_of, meshes

Key = TypeVar("Key")

_MOST = 4  # sums over all tensors that a text asks for at once, at most


@dataclass
class Sum:
    """Partial sums over one parameter, and the dimensions of its mesh over which each goes.

    Attributes:
        layout: how the parameter lies; None: it is whole.
        values: what this process has; after :func:`complete` the sums over all.
        dims: for each value the dimensions of the mesh, in ascending order.
    """

    layout: Layout | None
    values: list[Tensor] = field(default_factory=list)
    dims: list[tuple[int, ...]] = field(default_factory=list)


def complete(sums: Sequence[Sum]) -> None:
    """Add up over the processes, in place."""
    for group, members in _by_group(sums).items():
        places = [(one.values, i) for one, i in members]
        flat = [values[i].reshape(-1) for values, i in places]
        dtype = torch.float64 if any(x.dtype == torch.float64 for x in flat) else torch.float32
        packed = torch.cat([x.to(dtype) for x in flat])
        dist.all_reduce(packed, group=group)
        for (values, i), x in zip(places, torch.split(packed, [x.numel() for x in flat]), strict=True):
            values[i] = x.reshape(values[i].shape).to(values[i].dtype)


def _by_group(sums: Sequence[Sum]) -> dict[Any, list[tuple[Sum, int]]]:
    """The values that go over each group of processes: the first dimensions of the meshes first, as on every process."""
    found: dict[tuple[int, Any], list[tuple[Sum, int]]] = {}
    for one in sums:
        for i, dims in enumerate(one.dims):
            for d in dims:
                assert one.layout is not None
                found.setdefault((d, one.layout.mesh.get_group(d)), []).append((one, i))
    return {group: members for (_, group), members in sorted(found.items(), key=lambda item: item[0][0])}


def any_of(here: Sequence[bool], jobs: Sequence[Job]) -> list[bool]:
    """For each job whether something holds on any of the processes that have a piece of it."""
    sums = [
        Sum(job.layout, [torch.tensor(float(x), device=job.local_param.device)], [job.crossed(None)])
        for x, job in zip(here, jobs, strict=True)
    ]
    complete(sums)
    return [bool(one.values[0] > 0) for one in sums]


def anywhere(holds: bool, params: Iterable[Tensor], group: Any = None) -> bool:
    """Whether something holds on any of the processes that have a part of these parameters, or in this group."""
    groups = [mesh.get_group(i) for mesh, i in meshes(params)] + ([group] if group is not None else [])
    for one in groups:
        flag = torch.tensor(float(holds), device=_device(one))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=one)
        holds = bool(flag > 0)
    return holds


def _device(group: Any) -> torch.device:
    """Where a group's tensors have to be."""
    return torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")


def total_over(
    group: Any, partials: Mapping[Key, tuple[Tensor, ...]], keys: Sequence[Key]
) -> dict[Key, tuple[Tensor, ...]]:
    """Sums over a group whose processes have different parameters, in one collective.

    Args:
        group: of torch.distributed.
        partials: the sums of this process, by whose they are; a process may have none.
        keys: whose sums there can be, the same on every process.

    Returns:
        The sums that at least one process has; as many as this process asked for, where it did.
    """
    packed = torch.zeros(len(keys), _MOST + 1, dtype=torch.float64, device="cpu")
    for row, key in zip(packed, keys, strict=True):
        if key in partials:
            row[: len(partials[key])] = torch.stack([x.double().cpu() for x in partials[key]])
            row[-1] = 1
    packed = packed.to(_device(group))
    dist.all_reduce(packed, group=group)
    wanted = (packed[:, -1] > 0).tolist()
    return {
        key: tuple(row[: len(partials[key]) if key in partials else _MOST].unbind())
        for key, row, any_has in zip(keys, packed, wanted, strict=True)
        if any_has
    }


def norm_of(params: Sequence[Tensor], pieces: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of tensors that lie as these parameters do, all together."""
    sums = []
    for p, x in zip(params, pieces, strict=True):
        layout, norm = layout_of(p), torch.linalg.vector_norm(x)
        sums.append(Sum(layout, [norm * norm], [layout.crossed(None) if layout else ()]))
    complete(sums)
    if not sums:
        return torch.zeros((), device="cpu")
    return torch.sqrt(torch.stack([one.values[0].to(sums[0].values[0]) for one in sums]).sum())
