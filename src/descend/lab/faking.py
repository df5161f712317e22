"""Machines that are not here: processes that answer every collective at once, and tensors without data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def faked(ranks: int) -> Iterator[None]:
    """Processes of which this is the first; the others are not there.

    Raises:
        RuntimeError: where there are processes already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("there are processes already: plan in one that has no process group")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def mesh_of(ranks: int) -> DeviceMesh:
    """All of the processes, in one dimension."""
    return init_device_mesh("cpu", (ranks,))


def shard(shape: tuple[int, ...], mesh: DeviceMesh | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """The first process's piece of a tensor that is cut along its first dimension, without data; all of it without a mesh."""
    if mesh is None or not shape:
        return torch.empty(shape, dtype=dtype, device="meta")
    rows = min(shape[0], -(-shape[0] // mesh.size()))
    piece = torch.empty((rows, *shape[1:]), dtype=dtype, device="meta")
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(piece, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)


class AnsweredReads(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Where the host reads a tensor without data, it reads ones: everything is present, every test holds."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, but for those that read."""
        options = dict(kwargs or {})
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.device.type == "meta":
            if func is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=first.dtype).item()
            if func is torch.ops.aten._to_copy.default and torch.device(options.get("device") or "meta").type == "cpu":
                return torch.ones(first.shape, dtype=options.get("dtype") or first.dtype)
        return func(*args, **options)
