"""What a rule keeps for a parameter: declared here, allocated and stored by the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["signed", "positive", "position", "outside"]
Start = Literal["fill", "parameter"]


@dataclass(frozen=True)
class Slot:
    """One tensor of optimizer state.

    Args:
        kind: "signed" and "positive" tensors may be quantised; a "position" is a point in parameter space
            (MADGRAD's ``x0``, slow weights), which never is, nor is what is written "outside" of the text.
        fill: the value that a new slot is filled with.
        start: "parameter" copies the parameter instead.
        reduce: the dimensions of the parameter that this slot lacks; "all" leaves a 0-d tensor.
        keepdim: reduced dimensions stay as size 1.
        shape: an explicit shape, for slots that follow none of the parameter's dimensions (Kronecker factors).
        eye: start as the identity matrix.
        dtype: a fixed dtype instead of the one that the engine chooses.
        per_block: one number for every so many elements of each slice of dimension 0.
        least_bits: fewer for each number, 4 instead of 8, would be too coarse: a sum that never forgets its errors, a
            momentum whose small parts an orthogonalisation makes large.
    """

    kind: Kind = "signed"
    fill: float = 0.0
    start: Start = "fill"
    reduce: tuple[int, ...] | Literal["all"] = ()
    keepdim: bool = False
    shape: tuple[int, ...] | None = None
    eye: bool = False
    dtype: torch.dtype | None = None
    per_block: int | None = None
    least_bits: Literal[4, 8] = 4

    @property
    def like_parameter(self) -> bool:
        """Whether the slot has the parameter's own shape, and so may be flattened and cut like it."""
        return self.shape is None and self.reduce == () and self.per_block is None

    def shape_for(self, p: Tensor) -> tuple[int, ...]:
        """The slot's shape for this parameter."""
        if self.shape is not None:
            return self.shape
        if self.per_block is not None:
            return p.size(0), math.prod(p.shape[1:]) // self.per_block
        if self.reduce == "all":
            return ()
        gone = {d % p.dim() for d in self.reduce}
        if self.keepdim:
            return tuple(1 if d in gone else n for d, n in enumerate(p.shape))
        return tuple(n for d, n in enumerate(p.shape) if d not in gone)

    def new(self, p: Tensor) -> Tensor:
        """A fresh tensor for this parameter, in its memory layout and on its device."""
        dtype = self.dtype or state_dtype(p)
        if self.like_parameter:
            # By way of a tensor without memory: a subclass of Tensor (float8 weights) would make one of its own kind.
            plain = torch.empty_strided(p.shape, p.stride(), device="meta")
            new = torch.empty_like(plain, dtype=dtype, device=p.device)
            if self.start == "parameter":
                return new.copy_(p.detach())
            (torch.view_as_real(new) if new.is_complex() else new).fill_(self.fill)
            return new
        if self.eye:
            return torch.eye(self.shape_for(p)[-1], dtype=dtype, device=p.device).mul_(self.fill or 1.0)
        return torch.full(self.shape_for(p), self.fill, dtype=dtype, device=p.device)


def signed(fill: float = 0.0, least_bits: Literal[4, 8] = 4) -> Slot:
    """A slot of the parameter's shape that takes both signs: a momentum."""
    return Slot("signed", fill, least_bits=least_bits)


def positive(fill: float = 0.0, least_bits: Literal[4, 8] = 4) -> Slot:
    """A slot of the parameter's shape that is never negative: a second moment."""
    return Slot("positive", fill, least_bits=least_bits)


def position() -> Slot:
    """A slot that starts as a copy of the parameter and is a point in its space."""
    return Slot("position", start="parameter")


def state_dtype(p: Tensor) -> torch.dtype:
    """The compute dtype: float32 for parameters of fewer bits, the parameter's own (complex included) elsewhere."""
    return torch.float32 if p.is_floating_point() and p.element_size() < 4 else p.dtype
