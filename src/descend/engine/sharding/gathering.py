"""Rules that need a whole matrix: its pieces go to one process, which owns it for the step, and come back moved.

Equal matrices travel together, one exchange there and one back; the next ones are on their way while these are moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from descend.engine.job import Job
from descend.engine.sharding.collectives import any_of
from descend.engine.sharding.layout import full, local

Move = Callable[[Job], None]


def run(jobs: Sequence[Job], move: Move) -> None:
    """Carry jobs over one step, each as a whole on one process.

    Args:
        jobs: parameters in pieces, the same ones in the same order on every process.
        move: carries a job whose parameter is whole.
    """
    cut_once = [job for job in jobs if job.layout is not None and len(job.layout.sharded) == 1]
    exchanges = [Exchange(bucket, owners) for bucket, owners in _buckets(cut_once)]
    gathering = exchanges[0].gather() if exchanges else None
    returning: list[tuple[Exchange, Any]] = []
    for i, exchange in enumerate(exchanges):
        ahead = exchanges[i + 1].gather() if i + 1 < len(exchanges) else None
        wholes = exchange.gathered(gathering)
        for whole in wholes.values():
            if whole.present:
                move(whole)
        returning.append((exchange, exchange.scatter(wholes)))
        gathering = ahead
    for exchange, handle in returning:
        exchange.scattered(handle)
    others = [job for job in jobs if job.layout is not None and len(job.layout.sharded) > 1]
    for job, present in zip(others, any_of([job.present for job in others], others), strict=True):
        if present:
            _everywhere(job, move)


def _buckets(jobs: Sequence[Job]) -> Iterator[tuple[list[Job], list[int]]]:
    """Equal matrices on the same processes, each with its owner's rank: largest cost first, to the least-loaded rank."""
    burden: dict[Any, list[float]] = {}
    owner: dict[int, int] = {}
    for job in sorted(jobs, key=lambda job: -_cost(job)):
        group = _group(job)
        load = burden.setdefault(group, [0.0] * dist.get_world_size(group))
        least = min(range(len(load)), key=load.__getitem__)
        owner[id(job)] = least
        load[least] += _cost(job)
    kinds: dict[Any, list[Job]] = {}
    for job in jobs:
        assert job.layout is not None
        key = _group(job), job.layout.shape, job.layout.sharded, job.local_param.dtype, job.grad.dtype, job.storage
        kinds.setdefault((*key, tuple(job.stored)), []).append(job)
    for members in kinds.values():
        yield members, [owner[id(job)] for job in members]


def _cost(job: Job) -> float:
    """Operations of a product with the shorter side's square, roughly."""
    assert job.layout is not None
    size = math.prod(job.layout.shape)
    rows = job.layout.shape[0] if job.layout.shape else 1
    return float(size * min(rows, size // max(rows, 1) or 1))


def _group(job: Job) -> Any:
    assert job.layout is not None
    return job.layout.mesh.get_group(job.layout.sharded[0][0])


@dataclass
class _Piece:
    """One tensor of a job: here, and how long its part on every process is along the dimension that is cut."""

    here: Tensor
    dim: int | None
    lengths: list[int]

    def shape(self, rank: int) -> tuple[int, ...]:
        shape = list(self.here.shape)
        if self.dim is not None:
            shape[self.dim] = self.lengths[rank]
        return tuple(shape)

    def part(self, whole: Tensor, rank: int) -> Tensor:
        """What a process holds of the whole."""
        if self.dim is None:
            return whole
        return whole.narrow(self.dim, sum(self.lengths[:rank]), self.lengths[rank])


class Exchange:
    """Equal matrices on their way to their owners and back."""

    def __init__(self, jobs: list[Job], owners: list[int]) -> None:
        self.jobs, self.owners = jobs, owners
        self.group = _group(jobs[0])
        self.rank, self.size = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.device = jobs[0].local_param.device
        self.pieces = [_pieces(job, self.size) for job in jobs]

    def gather(self) -> Any:
        """Send what is here to the owners."""
        outgoing = [
            [
                x
                for job, pieces, owner in zip(self.jobs, self.pieces, self.owners, strict=True)
                if owner == rank
                for x in (_flag(job.present, self.device), *(piece.here for piece in pieces))
            ]
            for rank in range(self.size)
        ]
        mine = [pieces for pieces, owner in zip(self.pieces, self.owners, strict=True) if owner == self.rank]
        incoming = [
            sum(1 + sum(_bytes(piece, rank) for piece in pieces) for pieces in mine) for rank in range(self.size)
        ]
        return _exchange(outgoing, incoming, self.group, self.device)

    def gathered(self, handle: Any) -> dict[int, Job]:
        """The whole jobs that this process owns, by their number."""
        parts = _arrived(handle)
        readers = [_Reader(part) for part in parts]
        wholes = {}
        for i, (job, pieces, owner) in enumerate(zip(self.jobs, self.pieces, self.owners, strict=True)):
            if owner != self.rank:
                continue
            present = [bool(reader.take((), torch.uint8)) for reader in readers]
            found = []
            for piece in pieces:
                each = [reader.take(piece.shape(rank), piece.here.dtype) for rank, reader in enumerate(readers)]
                found.append(each[0] if piece.dim is None else torch.cat(each, piece.dim))
            wholes[i] = _whole(job, found, any(present))
        return wholes

    def scatter(self, wholes: dict[int, Job]) -> Any:
        """Send everybody's part of what this process owns."""
        outgoing = [
            [
                x
                for i, whole in wholes.items()
                for x in (
                    _flag(whole.done, self.device),
                    *(
                        piece.part(value, rank)
                        for piece, value in zip(
                            self.pieces[i][1:], (whole.local_param, *whole.local_state.values()), strict=True
                        )
                    ),
                )
            ]
            for rank in range(self.size)
        ]
        incoming = [
            sum(
                1 + sum(_bytes(piece, self.rank) for piece in pieces[1:])
                for pieces, owner in zip(self.pieces, self.owners, strict=True)
                if owner == rank
            )
            for rank in range(self.size)
        ]
        return _exchange(outgoing, incoming, self.group, self.device)

    def scattered(self, handle: Any) -> None:
        """Put in place what came back."""
        readers = [_Reader(part) for part in _arrived(handle)]
        for job, pieces, owner in zip(self.jobs, self.pieces, self.owners, strict=True):
            moved = bool(readers[owner].take((), torch.uint8))
            for piece in pieces[1:]:
                value = readers[owner].take(piece.shape(self.rank), piece.here.dtype)
                if moved:
                    piece.here.copy_(value)
            job.done = moved


def _pieces(job: Job, size: int) -> list[_Piece]:
    """Gradient, parameter and state of a job."""
    layout = job.layout
    assert layout is not None
    ((axis, dim),) = layout.sharded
    lengths = _lengths(layout.shape[dim], size)
    found = [_Piece(job.grad, dim, lengths), _Piece(job.local_param.detach(), dim, lengths)]
    for name, slot in job.stored.items():
        placement: Any = layout.placed(slot)[axis]
        whole = slot.shape_for(job.param)
        cut = getattr(placement, "dim", None)
        found.append(_Piece(job.local_state[name], cut, [] if cut is None else _lengths(whole[cut], size)))
    return found


def _lengths(length: int, size: int) -> list[int]:
    """What each process has of a dimension."""
    chunk = -(-length // size)
    return [max(0, min(chunk, length - rank * chunk)) for rank in range(size)]


def _whole(job: Job, found: list[Tensor], present: bool) -> Job:
    """The job with whole tensors in place of its pieces."""
    grad, param, *state = found
    whole = replace(
        job, param=param, local_param=param, local_state=dict(zip(job.stored, state, strict=True)), layout=None
    )
    whole.grad, whole.known, whole.carried, whole.present = grad, job.known, job.carried, present
    whole.done = False
    return whole


def _everywhere(job: Job, move: Move) -> None:
    """Every process makes the whole and moves it, where it is cut along several dimensions of the mesh."""
    layout = job.layout
    assert layout is not None
    tensors: list[Any] = [
        layout.wrap(job.grad, layout.placements, layout.shape),
        job.param,
        *(job.state[name] for name in job.stored),
    ]
    found = [full(x).clone() for x in tensors]
    whole = _whole(job, found, True)
    move(whole)
    placed = [layout.placements, *(layout.placed(slot) for slot in job.stored.values())]
    here = (job.local_param.detach(), *(job.local_state[name] for name in job.stored))
    for piece, value, placements in zip(here, (whole.local_param, *whole.local_state.values()), placed, strict=True):
        piece.copy_(local(layout.spread(value, placements)))
    job.done = whole.done


# ------------------------------------------------------------------ bytes


def _flag(value: bool, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.uint8, device=device)


def _bytes(piece: _Piece, rank: int) -> int:
    return math.prod(piece.shape(rank)) * piece.here.element_size()


def _as_bytes(x: Tensor) -> Tensor:
    x = torch.view_as_real(x) if x.is_complex() else x
    return x.contiguous().reshape(-1).view(torch.uint8)


def _exchange(outgoing: list[list[Tensor]], incoming: list[int], group: Any, device: torch.device) -> Any:
    """Send lists of tensors, one list a process; returns a handle for :func:`_arrived`."""
    packed = [_as_bytes(x) for tensors in outgoing for x in tensors]
    sizes = [sum(x.numel() * x.element_size() for x in tensors) for tensors in outgoing]
    sent = torch.cat(packed) if packed else torch.empty(0, dtype=torch.uint8, device=device)
    received = torch.empty(sum(incoming), dtype=torch.uint8, device=device)
    work = dist.all_to_all_single(received, sent, incoming, sizes, group=group, async_op=True)
    return work, received, incoming, sent


def _arrived(handle: Any) -> tuple[Tensor, ...]:
    """The bytes that came, from each process."""
    work, received, incoming, _ = handle
    work.wait()
    parts: tuple[Tensor, ...] = torch.split(received, incoming)
    return parts


class _Reader:
    """Takes tensors from a stretch of bytes, one after another."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.at = data, 0

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        count = math.prod(shape) * dtype.itemsize
        here = self.data[self.at : self.at + count].clone()  # a copy begins at a multiple of its elements' size
        self.at += count
        real = here.view(dtype.to_real() if dtype.is_complex else dtype)
        return torch.view_as_complex(real.reshape(*shape, 2)) if dtype.is_complex else real.reshape(shape)
