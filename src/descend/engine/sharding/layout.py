"""Where the pieces of a DTensor lie, and where those of its state belong."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.slots import Slot
from descend.engine.torch_private import offset_of, piece_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

Dims = tuple[int, ...] | None


def is_dtensor(x: Any) -> bool:
    """Whether x is a DTensor; where nobody has imported them, there are none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local(x: Any) -> Tensor:
    """The piece of this process; a tensor that is no DTensor is its own."""
    return piece_of(x) if is_dtensor(x) else x


@dataclass(frozen=True, eq=False)
class Layout:
    """How a parameter lies on a mesh of processes.

    Attributes:
        mesh: the processes.
        placements: one for each dimension of the mesh.
        shape: of the whole parameter.
        offset: where the piece of this process begins, along each dimension.
        piece: its shape.
    """

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    piece: tuple[int, ...]

    @cached_property
    def sharded(self) -> tuple[tuple[int, int], ...]:
        """Dimensions of the mesh with more than one process, each with the dimension of the parameter that it cuts."""
        return tuple(
            (i, int(placement.dim))
            for i, placement in enumerate(self.placements)
            if hasattr(placement, "dim") and self.mesh.size(i) > 1
        )

    def crossed(self, dims: Dims) -> tuple[int, ...]:
        """The dimensions of the mesh over which sums along these dimensions of the parameter go; None: along all."""
        return tuple(i for i, d in self.sharded if dims is None or d in dims)

    def new(self, slot: Slot, p: Tensor, like: Tensor | None = None) -> Tensor:
        """A fresh tensor of state: a DTensor with this process's piece of it.

        Args:
            slot: what to make.
            p: the parameter.
            like: the parameter's piece, on the device that the state is wanted on; None: on its own.
        """
        piece = local(p).detach() if like is None else like
        if slot.shape is None:
            return self.wrap(slot.new(piece), self.placed(slot), slot.shape_for(p))
        whole = slot.new(piece)
        return self.spread(whole, self.placed(slot))

    def placed(self, slot: Slot) -> tuple[Placement, ...]:
        """The placements of a slot's tensor."""
        return tuple(self._placed(slot, i, placement) for i, placement in enumerate(self.placements))

    def _placed(self, slot: Slot, i: int, placement: Placement) -> Placement:
        from torch.distributed.tensor import Replicate, Shard

        if not hasattr(placement, "dim") or slot.like_parameter:
            return placement
        if slot.shape is not None:
            first = i == next(j for j, each in enumerate(self.placements) if hasattr(each, "dim"))
            return Shard(0) if first and slot.shape else Replicate()
        if slot.reduce == "all":
            return Replicate()
        gone = {d % len(self.shape) for d in slot.reduce}
        if placement.dim in gone:
            return Replicate()
        kept = placement.dim if slot.keepdim else placement.dim - sum(d < placement.dim for d in gone)
        kept = min(kept, 1) if slot.per_block else kept
        # FSDP2 over tensor parallelism has a placement of its own, which says more than the dimension.
        return placement if kept == placement.dim else Shard(kept)

    def wrap(self, piece: Tensor, placements: tuple[Placement, ...], shape: tuple[int, ...]) -> Tensor:
        """A DTensor of this shape whose piece is here."""
        from torch.distributed.tensor import DTensor

        whole, stride = torch.Size(shape), _strides(shape)
        return DTensor.from_local(piece, self.mesh, placements, run_check=False, shape=whole, stride=stride)

    def spread(self, whole: Tensor, placements: tuple[Placement, ...]) -> Tensor:
        """A DTensor of a tensor that every process has: each keeps its piece."""
        from torch.distributed.tensor import DTensor, Replicate

        everywhere = [Replicate()] * len(placements)
        kept = DTensor.from_local(whole, self.mesh, everywhere, run_check=False).redistribute(self.mesh, placements)
        return self.wrap(local(kept).clone(), placements, tuple(whole.shape))

    def here(self, x: Tensor, placements: tuple[Placement, ...]) -> Tensor:
        """This process's piece of a tensor, wherever it has been: whole, in other pieces, or still to be summed."""
        if not is_dtensor(x):
            return local(self.spread(x.to(self.mesh.device_type), placements))
        if tuple(x.placements) != placements or x.device_mesh != self.mesh:  # type: ignore[attr-defined]
            x = x.redistribute(self.mesh, placements)  # type: ignore[attr-defined]
        return local(x)

    def gradient(self, p: Tensor) -> Tensor:
        """What is here of a parameter's gradient; zeros where another process may have one and this has none."""
        return torch.zeros_like(local(p)) if p.grad is None else self.here(p.grad, self.placements)

    @cached_property
    def first(self) -> int:
        """The place of the piece's first element among all of the parameter's."""
        return sum(o * s for o, s in zip(self.offset, _strides(self.shape), strict=True))

    def slice_lengths(self) -> tuple[int, int]:
        """Elements of a slice of dimension 0, here and on the whole."""
        return math.prod(self.piece[1:]), math.prod(self.shape[1:])


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return torch.empty(shape, device="meta").stride()


def full(x: Any) -> Tensor:
    """All of a tensor, on every process; of 16-bit integers too, which no backend gathers."""
    if not is_dtensor(x):
        return x
    if x.dtype != torch.int16:
        return x.full_tensor()
    from torch.distributed.tensor import DTensor

    wide = DTensor.from_local(
        local(x).int(), x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )
    return wide.full_tensor().to(torch.int16)


def fresh(slot: Slot, p: Tensor, like: Tensor | None = None) -> Tensor:
    """A new tensor of a parameter's state, placed as the parameter is.

    Args:
        slot: what to make.
        p: the parameter.
        like: the parameter, or its piece, on the device that the state is wanted on; None: on its own.
    """
    layout = layout_of(p)
    return slot.new(p if like is None else like) if layout is None else layout.new(slot, p, like)


def layout_of(p: Tensor) -> Layout | None:
    """How a parameter lies; None if it is an ordinary tensor."""
    if not is_dtensor(p):
        return None
    mesh, placements = p.device_mesh, tuple(p.placements)  # type: ignore[attr-defined]
    return Layout(mesh, placements, tuple(p.shape), offset_of(p), tuple(local(p).shape))


def is_flat(p: Tensor) -> bool:
    """Whether p is a flat piece of parameters that FSDP1 or DeepSpeed's ZeRO has cut without regard to their shapes."""
    if getattr(p, "_is_flat_param", False) or hasattr(p, "ds_id"):
        return True
    # FSDP1 with use_orig_params=True: the parameter is a view of this process's piece, and has lost its shape.
    return getattr(p, "_fsdp_flattened", False) and p.dim() < 2 and processes() > 1


def processes() -> int:
    """The number of processes that train together."""
    dist = torch.distributed
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_layout(p: Tensor, length: int | None, random: bool, needs_whole: str) -> None:
    """Raise ValueError where a parameter lies so that no rule, or not this one, can be carried out.

    Args:
        p: the parameter.
        length: of its blocks of 8- or 4-bit state, if it has any.
        random: whether it, or its state, is rounded by the elements' places.
        needs_whole: why its pieces cannot be moved by different processes, and what to do; empty if they can.
    """
    layout = layout_of(p)
    if layout is None:
        return
    if any(placement.is_partial() for placement in layout.placements):
        raise ValueError(
            f"placements {layout.placements}: sums that are not complete, redistribute to Shard or Replicate"
        )
    if needs_whole and layout.sharded:
        raise ValueError(f"placements {layout.placements}: {needs_whole}")
    for i, d in layout.sharded:
        piece = -(-layout.shape[d] // layout.mesh.size(i)) * math.prod(layout.shape[d + 1 :])
        if length and (d > 1 or (d == 1 and piece % length)):
            raise ValueError(
                f"placements {layout.placements} cut the blocks of {length} numbers; use Shard(0), or "
                "state_dtype=torch.bfloat16"
            )
    cut = [d for _, d in layout.sharded]
    if random and (max(cut, default=0) > 1 or len(set(cut)) < len(cut)):
        raise ValueError(
            f"placements {layout.placements}: rounding by place needs dimension 0 or 1 cut, each once; or use "
            "master='kahan' and state_dtype='int8'"
        )


def meshes(params: Iterable[Tensor]) -> list[tuple[DeviceMesh, int]]:
    """Every mesh that these parameters lie on, with each of its dimensions, in an order that all processes have."""
    found: dict[Any, DeviceMesh] = {}
    for p in params:
        if is_dtensor(p):
            mesh = p.device_mesh  # type: ignore[attr-defined]
            found.setdefault((mesh.ndim, tuple(mesh.mesh.flatten().tolist())), mesh)
    return [(found[key], i) for key in sorted(found) for i in range(found[key].ndim) if found[key].size(i) > 1]
