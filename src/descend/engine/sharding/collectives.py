"""Sums over processes: of all tensors at once, one collective for each dimension of the mesh that they cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from descend.engine.job import Job


@dataclass
class Sum:
    """Partial sums of one job, and the dimensions of its mesh over which each goes.

    Attributes:
        values: what this process has; after :func:`complete` the sums over all.
        dims: for each value the dimensions of the mesh, in ascending order.
    """

    job: Job
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
                assert one.job.layout is not None
                found.setdefault((d, one.job.layout.mesh.get_group(d)), []).append((one, i))
    return {group: members for (_, group), members in sorted(found.items(), key=lambda item: item[0][0])}


def any_of(here: Sequence[bool], jobs: Sequence[Job]) -> list[bool]:
    """For each job whether something holds on any of the processes that have a piece of it."""
    sums = [
        Sum(job, [torch.tensor(float(x))], [tuple(i for i, _ in _sharded(job))])
        for x, job in zip(here, jobs, strict=True)
    ]
    complete(sums)
    return [bool(one.values[0] > 0) for one in sums]


def _sharded(job: Job) -> tuple[tuple[int, int], ...]:
    return job.layout.sharded if job.layout is not None else ()
