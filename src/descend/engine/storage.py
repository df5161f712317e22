"""How a value rests between two steps: as it is, in blocks of 8-bit numbers, or in half precision with what it lacks.

A storage holds a value in one or more tensors, its parts. The engine loads the value in the dtype of the maths, the text
changes it, and the engine stores it; texts never see parts. Everything here is plain tensor arithmetic, so that it runs
in every executor, and inside a compiled text without memory of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from descend.engine.slots import Slot
from descend.randomness import hashed

Parts = tuple[Tensor, ...]

# Where 8 bits would not be worth their scale: blocks shorter than this rest in float32.
LEAST_BLOCK = 16
MOST_BLOCK = 256
# The reciprocal of what is smaller would be infinite.
_LEAST_SCALE = 1e-37


@dataclass(frozen=True)
class Dice:
    """Where random bits come from: a hash of seed, step, parameter and the elements' places in the whole parameter.

    Attributes:
        first: the place of the first element in hand.
        slices: elements of a slice of dimension 0 in hand and on the whole, where other processes have the rest of it.
    """

    seed: int
    step: Tensor | int
    place: Tensor | int
    first: Tensor | int = 0
    slices: Sequence[Tensor | int] | None = None

    def bits(self, like: Tensor) -> Tensor:
        """32 random bits for each element, as int64."""
        index = torch.arange(like.numel(), device=like.device)
        if self.slices is not None:
            here, whole = (_whole(length) for length in self.slices)
            here = torch.clamp(here, min=1) if isinstance(here, Tensor) else max(here, 1)
            index = index // here * whole + index % here
        index = (index + _whole(self.first)).reshape(like.shape)
        return hashed(index, self.seed, _whole(self.step), _whole(self.place))


def _whole(x: Any) -> Any:
    return x.to(torch.int64) if isinstance(x, Tensor) else int(x)


class Storage(Protocol):
    """A way to rest."""

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The value in the dtype of the maths; a part itself where that is the value."""

    def store(self, value: Tensor, dice: Dice | None = None) -> Parts:
        """The parts that the value becomes, in their dtypes."""


@dataclass(frozen=True)
class Blocks:
    """8-bit numbers, and a float32 scale for each block: its largest magnitude.

    Signed numbers go through their square root and keep the sign, which is finer near 0; positive ones through their
    fourth root, and none that is larger than 0 becomes 0, since steps are divided by them.

    Args:
        signed: whether numbers have both signs.
        length: elements of a block; the last dimension of what is loaded and stored.
    """

    signed: bool
    length: int

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The numbers, spread out again."""
        numbers, scale = parts
        if self.signed:
            y = numbers.to(maths) * (1 / 127)
            return y * torch.abs(y) * scale.to(maths)
        y = numbers.to(maths) * (1 / 255)
        y = y * y
        return y * y * scale.to(maths)

    def store(self, value: Tensor, dice: Dice | None = None) -> Parts:
        """The nearest numbers."""
        scale = torch.amax(torch.abs(value), dim=-1, keepdim=True)
        x = value * torch.reciprocal(torch.where(scale > _LEAST_SCALE, scale, 1.0))
        if self.signed:
            y = torch.copysign(torch.sqrt(torch.abs(x)), x)
            return torch.round(y * 127).to(torch.int8), scale.to(torch.float32)
        y = torch.round(torch.sqrt(torch.sqrt(x)) * 255)
        y = torch.where(value > 0, torch.clamp(y, min=1.0), 0.0)
        return y.to(torch.uint8), scale.to(torch.float32)


@dataclass(frozen=True)
class Kahan:
    """Half precision, and the rounding error that it has now, in half precision too."""

    dtype: torch.dtype
    beside: ClassVar[tuple[str, ...]] = ("compensation",)

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """Their sum."""
        return parts[0].to(maths) + parts[1].to(maths)

    def store(self, value: Tensor, dice: Dice | None = None) -> Parts:
        """The nearest number, and what is left."""
        nearest = value.to(self.dtype)
        return nearest, (value - nearest.to(value.dtype)).to(self.dtype)


@dataclass(frozen=True)
class Split:
    """bfloat16, and the 16 bits that it lacks of float32: exact."""

    beside: ClassVar[tuple[str, ...]] = ("missing_bits",)

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The float32 number whose upper half, rounded, is the first part."""
        upper = parts[0].view(torch.int16).to(torch.int32) << 16
        return (upper + parts[1].to(torch.int32)).view(torch.float32).to(maths)

    def store(self, value: Tensor, dice: Dice | None = None) -> Parts:
        """The upper half, ties away from zero so that the difference has 16 bits, and the difference."""
        bits = value.to(torch.float32).view(torch.int32)
        upper = (bits + 0x8000) >> 16
        return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


@dataclass(frozen=True)
class Stochastic:
    """bfloat16, rounded up or down at random so that the mean is the value."""

    beside: ClassVar[tuple[str, ...]] = ()

    def load(self, parts: Parts, maths: torch.dtype) -> Tensor:
        """The part, converted."""
        return parts[0].to(maths)

    def store(self, value: Tensor, dice: Dice | None = None) -> Parts:
        """Cut off after random bits have been added below."""
        if dice is None:
            raise ValueError("stochastic rounding needs random bits")
        bits = value.to(torch.float32).view(torch.int32)
        upper = (bits.to(torch.int64) + (dice.bits(value) & 0xFFFF)) >> 16
        return (upper.to(torch.int16).view(torch.bfloat16),)


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


#: State that some master keeps beside a parameter.
MASTERS_STATE = frozenset((*Kahan.beside, *Split.beside, *Stochastic.beside))


@dataclass(frozen=True)
class Rests:
    """How a parameter and its state rest.

    Attributes:
        blocks: the state that rests in blocks, by name.
        length: elements of a block; None where there are none.
        master: how the parameter keeps what its dtype cannot hold, and in which state beside it.
    """

    blocks: tuple[tuple[str, Blocks], ...] = ()
    length: int | None = None
    master: Kahan | Split | Stochastic | None = None

    def load(self, p: Tensor, s: Mapping[str, Tensor], maths: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """The values of the parameter and of the state."""
        parts = [*(f"{name}_scale" for name, _ in self.blocks), *(self.master.beside if self.master else ())]
        return self.parameter(p, s, maths), {name: self.slot(name, p, s, maths) for name in s if name not in parts}

    def parameter(self, p: Tensor, s: Mapping[str, Tensor], maths: torch.dtype) -> Tensor:
        """The value of the parameter."""
        return self.master.load((p, *(s[name] for name in self.master.beside)), maths) if self.master else p.to(maths)

    def slot(self, name: str, p: Tensor, s: Mapping[str, Tensor], maths: torch.dtype) -> Tensor:
        """The value of a slot, in the parameter's shape where it rests in blocks."""
        storage = dict(self.blocks).get(name) if self.blocks else None
        if storage is None:
            return s[name].to(maths)
        parts = _by_blocks(s[name], storage.length), s[f"{name}_scale"].reshape(-1, 1)
        return _back(storage.load(parts, maths), s[name]).reshape(p.shape)

    def store(
        self, p: Tensor, s: Mapping[str, Tensor], p_value: Tensor, state: Mapping[str, Tensor], dice: Dice | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every resting tensor with what it becomes."""
        if self.master is None:
            yield p, p_value
        else:
            parts = p, *(s[name] for name in self.master.beside)
            yield from zip(parts, self.master.store(p_value, dice), strict=True)
        blocks = dict(self.blocks)
        for name, value in state.items():
            if name in blocks:
                value = value.reshape(s[name].shape)
                if value.stride() != s[name].stride():
                    value = torch.empty_like(s[name], dtype=value.dtype).copy_(value)
                numbers, scale = blocks[name].store(_by_blocks(value, blocks[name].length))
                yield s[name], _back(numbers, s[name])
                yield s[f"{name}_scale"], scale.reshape(s[f"{name}_scale"].shape)
            else:
                yield s[name], value


def _by_blocks(x: Tensor, length: int) -> Tensor:
    """The elements in the order of memory, a row a block."""
    return (x if x.is_contiguous() else x.as_strided((x.numel(),), (1,))).reshape(-1, length)


def _back(blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse, in the memory layout of `like`."""
    return blocks.reshape(like.shape) if like.is_contiguous() else blocks.as_strided(like.shape, like.stride())


def rest(slots: Mapping[str, Slot], h: Any, p: Tensor) -> tuple[dict[str, Slot], Rests]:
    """The tensors that a parameter's state rests in, and how.

    Args:
        slots: what the rule declared.
        h: the options of the group, of which ``state_dtype`` and ``master`` count.
        p: the parameter.

    Raises:
        ValueError: for a storage that a state cannot have, naming it.
    """
    length = None if p.is_complex() else block_length(tuple(p.shape))
    chosen = isinstance(h.state_dtype, (Mapping, tuple))
    wanted = dict(h.state_dtype) if chosen else dict.fromkeys(slots, h.state_dtype)
    resting: dict[str, Slot] = {}
    blocks: list[tuple[str, Blocks]] = []
    for name, slot in slots.items():
        dtype = wanted.get(name)
        if dtype == "int8":
            averages = slot.kind in ("signed", "positive") and slot.like_parameter
            if chosen and not averages:
                raise ValueError(f"state_dtype of {name!r} is 'int8', which is for averages of the parameter's shape")
            if averages and slot.dtype is None and slot.fill == 0 and length:
                storage = Blocks(slot.kind == "signed", length)
                blocks.append((name, storage))
                resting[name] = replace(slot, dtype=torch.int8 if storage.signed else torch.uint8)
                resting[f"{name}_scale"] = Slot("positive", dtype=torch.float32, per_block=length)
                continue
            dtype = None
        keeps = dtype is None or slot.kind not in ("signed", "positive") or slot.dtype is not None
        resting[name] = slot if keeps else replace(slot, dtype=dtype)
    master = _master(h.master, p)
    for name in master.beside if master else ():
        resting[name] = Slot(dtype=torch.int16 if isinstance(master, Split) else p.dtype)
    return resting, Rests(tuple(blocks), length if blocks else None, master)


def _master(master: str | None, p: Tensor) -> Kahan | Split | Stochastic | None:
    if p.dtype not in (torch.bfloat16, torch.float16) or master is None:
        return None
    if master == "kahan":
        return Kahan(p.dtype)
    if p.dtype != torch.bfloat16:
        raise ValueError(f"master={master!r} is for bfloat16 parameters, expected 'kahan' or None for {p.dtype}")
    return Split() if master == "split" else Stochastic()


def packed(name: str, storage: Blocks, value: Tensor) -> dict[str, Tensor]:
    """A value in blocks, under the names of its parts."""
    numbers, scale = storage.store(_by_blocks(value, storage.length))
    return {
        name: _back(numbers, value),
        f"{name}_scale": scale.reshape(Slot(per_block=storage.length).shape_for(value)),
    }


def unpacked(numbers: Tensor, scale: Tensor) -> Tensor:
    """The value of parts that came from somewhere: their dtype and their sizes say how they rest."""
    storage = Blocks(numbers.dtype == torch.int8, numbers.numel() // max(scale.numel(), 1) or MOST_BLOCK)
    parts = _by_blocks(numbers, storage.length), scale.reshape(-1, 1)
    return _back(storage.load(parts, torch.float32), numbers)
