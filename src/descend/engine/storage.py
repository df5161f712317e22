"""How a value rests between two steps: as it is, in blocks of 8-bit numbers, or in half precision with what it lacks.

A storage holds a value in one or more tensors, its parts. The engine loads the value in the dtype of the maths, the text
changes it, and the engine stores it; texts never see parts. Everything here is plain tensor arithmetic, so that it runs
in every executor, and inside a compiled text without memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from descend.randomness import hashed

Parts = tuple[Tensor, ...]

# Where 8 bits would not be worth their scale: blocks shorter than this rest in float32.
LEAST_BLOCK = 16
MOST_BLOCK = 256
# The companding map of signed numbers is this much finer at 0 than at 1, roughly.
_FINENESS = 16.0


@dataclass(frozen=True)
class Dice:
    """Where random bits come from: a hash of seed, step, parameter and the elements' places in the whole parameter."""

    seed: int
    step: Tensor | int
    place: Tensor | int
    first: int = 0

    def bits(self, like: Tensor) -> Tensor:
        """32 random bits for each element, as int64."""
        index = torch.arange(self.first, self.first + like.numel(), device=like.device).reshape(like.shape)
        return hashed(index, self.seed, int(self.step), int(self.place))


class Storage(Protocol):
    """A way to rest."""

    #: What the names of its parts end in, the first nothing.
    suffixes: ClassVar[tuple[str, ...]]

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The value in the dtype of the maths; a part itself where that is the value."""

    def store(self, parts: Parts, value: Tensor, dice: Dice | None) -> Parts:
        """The parts that the value becomes, in their dtypes."""


@dataclass(frozen=True)
class Plain:
    """The value in a dtype, rounded to the nearest."""

    dtype: torch.dtype
    suffixes: ClassVar[tuple[str, ...]] = ("",)

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The part, converted if need be."""
        return parts[0].to(maths)

    def store(self, parts: Parts, value: Tensor, dice: Dice | None) -> Parts:
        """The value, converted if need be."""
        return (value.to(self.dtype),)


@dataclass(frozen=True)
class Blocks:
    """8-bit numbers, and a float32 scale for each block: its largest magnitude.

    Signed numbers go through y = x·(1 + a)/(|x| + a), which is finer near 0; positive ones through their fourth root,
    and none that is larger than 0 becomes 0, since steps are divided by them.

    Args:
        signed: whether numbers have both signs.
        length: elements of a block; the last dimension of what is loaded and stored.
    """

    signed: bool
    length: int
    suffixes: ClassVar[tuple[str, ...]] = ("", "_scale")

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The numbers, spread out again."""
        numbers, scale = parts
        if self.signed:
            y = numbers.to(maths) * (1 / 127)
            return y * scale.to(maths) / (1 + _FINENESS * (1 - torch.abs(y)))
        y = numbers.to(maths) * (1 / 255)
        y = y * y
        return y * y * scale.to(maths)

    def store(self, parts: Parts, value: Tensor, dice: Dice | None) -> Parts:
        """The nearest numbers."""
        scale = torch.amax(torch.abs(value), dim=-1, keepdim=True)
        x = value / torch.where(scale > 0, scale, 1.0)
        if self.signed:
            y = x * (1 + _FINENESS) / (1 + _FINENESS * torch.abs(x))
            return torch.round(y * 127).to(torch.int8), scale.to(torch.float32)
        y = torch.round(torch.sqrt(torch.sqrt(x)) * 255)
        y = torch.where(value > 0, torch.clamp(y, min=1.0), 0.0)
        return y.to(torch.uint8), scale.to(torch.float32)


@dataclass(frozen=True)
class Kahan:
    """Half precision, and the rounding error that it has now, in half precision too."""

    dtype: torch.dtype
    suffixes: ClassVar[tuple[str, ...]] = ("", "compensation")

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """Their sum."""
        return parts[0].to(maths) + parts[1].to(maths)

    def store(self, parts: Parts, value: Tensor, dice: Dice | None) -> Parts:
        """The nearest number, and what is left."""
        nearest = value.to(self.dtype)
        return nearest, (value - nearest.to(value.dtype)).to(self.dtype)


@dataclass(frozen=True)
class Split:
    """bfloat16, and the 16 bits that it lacks of float32: exact."""

    suffixes: ClassVar[tuple[str, ...]] = ("", "missing_bits")

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The float32 number whose upper half, rounded, is the first part."""
        upper = parts[0].view(torch.int16).to(torch.int32) << 16
        return (upper + parts[1].to(torch.int32)).view(torch.float32).to(maths)

    def store(self, parts: Parts, value: Tensor, dice: Dice | None) -> Parts:
        """The upper half, ties away from zero so that the difference has 16 bits, and the difference."""
        bits = value.to(torch.float32).view(torch.int32)
        upper = (bits + 0x8000) >> 16
        return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


@dataclass(frozen=True)
class Stochastic:
    """bfloat16, rounded up or down at random so that the mean is the value."""

    suffixes: ClassVar[tuple[str, ...]] = ("",)

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The part, converted."""
        return parts[0].to(maths)

    def store(self, parts: Parts, value: Tensor, dice: Dice | None) -> Parts:
        """Cut off after random bits have been added below."""
        if dice is None:
            raise ValueError("stochastic rounding needs random bits")
        bits = value.to(torch.float32).view(torch.int32)
        upper = (bits.to(torch.int64) + (dice.bits(value) & 0xFFFF)) >> 16
        return (upper.to(torch.int16).view(torch.bfloat16),)


Kind = Literal["signed", "positive", "position"]


def block_length(shape: tuple[int, ...]) -> int | None:
    """Elements of a block of a parameter of this shape: they divide a slice of dimension 0, so that shards keep whole
    blocks. None: it has one dimension, or its slices can only be cut into blocks too short to be worth it."""
    if len(shape) < 2 or 0 in shape:
        return None
    slice_length = 1
    for n in shape[1:]:
        slice_length *= n
    length = next(n for n in range(min(MOST_BLOCK, slice_length), 0, -1) if slice_length % n == 0)
    return length if length >= LEAST_BLOCK else None
