"""How a value is stored between two steps: as it is, in blocks of 8- or 4-bit numbers, or in half precision with what it lacks.

A storage holds a value in one or more tensors, its parts. The engine loads the value in the compute dtype, the text
changes it, and the engine stores it; texts never see parts. Everything here is plain tensor arithmetic, so that it runs
in every executor, and inside a compiled text without memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from descend.engine.slots import Slot
from descend.randomness import even, hashed

Parts = tuple[Tensor, ...]

# Where fewer bits would not be worth their scale: blocks shorter than this rest in float32.
LEAST_BLOCK = 16
MOST_BLOCK = 256
BITS = {"int8": 8, "int4": 4}
#: Dtypes of state by their names.
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
}
# The reciprocal of what is smaller would be infinite.
_LEAST_SCALE = 1e-37


@dataclass(frozen=True)
class ElementRng:
    """Where random bits come from: a hash of seed, step, parameter and the elements' places in the whole parameter.

    Attributes:
        first: the place of the first element of the piece that is here.
        start: where in this piece the elements in hand begin.
        slices: elements of a slice of dimension 0 in hand and on the whole, where other processes have the rest of it.
        slot: whose numbers are rounded: 0 is the parameter, then its state.
        part: which part of every row is in hand, and how many there are.
    """

    seed: int
    step: Tensor | int
    place: Tensor | int
    first: Tensor | int = 0
    slices: Sequence[Tensor | int] | None = None
    slot: int = 0
    part: tuple[int, int] = (0, 1)
    start: int = 0

    def bits(self, like: Tensor) -> Tensor:
        """32 random bits for each element, as int64."""
        return hashed(self._index(like), self.seed, _whole(self.step), _whole(self.place))

    def even(self, like: Tensor) -> Tensor:
        """A number in [0, 1) for each element, evenly spread over the steps."""
        return even(self._index(like), _whole(self.step), self.slot, self.seed, _whole(self.place))

    def _index(self, like: Tensor) -> Tensor:
        """The place of each element in the whole parameter."""
        i, count = self.part
        if count == 1:
            index = torch.arange(like.numel(), device=like.device)
        else:
            rows, columns = (torch.arange(n, device=like.device) for n in like.shape)
            index = ((rows * count + i) * like.shape[1]).unsqueeze(-1) + columns
        index = index + self.start
        if self.slices is not None:
            here, whole = (_whole(length) for length in self.slices)
            here = torch.clamp(here, min=1) if isinstance(here, Tensor) else max(here, 1)
            index = index // here * whole + index % here
        return (index + _whole(self.first)).reshape(like.shape)


def _whole(x: Any) -> Any:
    return x.to(torch.int64) if isinstance(x, Tensor) else int(x)


@dataclass(frozen=True)
class Blocks:
    """8- or 4-bit numbers, and a float32 scale for each block: its largest magnitude.

    Signed numbers go through their square root and keep the sign, which is finer near 0; positive ones through their
    fourth root, and none that is larger than 0 becomes 0, since steps are divided by them. Eight bits take the nearest
    number. Four take the one below or the one above so that the mean over the steps is the value: most steps of an
    average are smaller than half of the way to the next of so few numbers, and would be lost.

    A number that is not finite does not enter the scale, so that it costs no other number of its block: NaN becomes 0,
    an infinity the block's largest magnitude.

    Args:
        signed: whether numbers have both signs.
        length: elements of a block.
        bits: 8, or 4: then two lie in a byte, the second half of a block beside the first.
    """

    signed: bool
    length: int
    bits: int = 8

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a block of values: the last dimensions of what is loaded and stored."""
        return (self.length,) if self.bits == 8 else (2, self.length // 2)

    @property
    def most(self) -> int:
        """The largest number."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor that the numbers lie in."""
        return torch.int8 if self.signed and self.bits == 8 else torch.uint8

    def load(self, parts: Parts, compute_dtype: torch.dtype) -> Tensor:
        """The numbers, spread out again."""
        if self.bits == 4:
            return torch.stack(self.halves(parts, compute_dtype), -2)
        numbers, scale = parts
        return self._value(numbers, scale, compute_dtype)

    def store(self, value: Tensor, rng: ElementRng | None = None) -> Parts:
        """The nearest numbers; of 4 bits, where there are rng, the one below or the one above."""
        if self.bits == 4:
            return self.join(value.unbind(-2), rng)
        scale = _largest(value)
        return self._numbers(value, scale).to(self.dtype), scale.to(torch.float32)

    def halves(self, parts: Parts, compute_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Of 4-bit numbers the first halves of the blocks, and the second."""
        pairs, scale = parts
        wide = pairs.to(torch.int32)
        first, second = wide & 15, wide >> 4
        if self.signed:
            first, second = (first ^ 8) - 8, (second ^ 8) - 8
        return self._value(first, scale, compute_dtype), self._value(second, scale, compute_dtype)

    def join(self, halves: Sequence[Tensor], rng: ElementRng | None = None) -> Parts:
        """The inverse."""
        scale = torch.maximum(*map(_largest, halves))
        rolls = [None if rng is None else replace(rng, part=(i, 2)) for i in range(2)]
        numbers = [self._numbers(half, scale, roll) for half, roll in zip(halves, rolls, strict=True)]
        first, second = (y.to(torch.int32) & 15 for y in numbers)
        return (first | (second << 4)).to(torch.uint8), scale.to(torch.float32)

    def _value(self, numbers: Tensor, scale: Tensor, compute_dtype: torch.dtype) -> Tensor:
        return self._spread(numbers.to(compute_dtype) * (1 / self.most)) * scale.to(compute_dtype)

    def _numbers(self, value: Tensor, scale: Tensor, rng: ElementRng | None = None) -> Tensor:
        x = value * torch.reciprocal(torch.where(scale > _LEAST_SCALE, scale, 1.0))
        x = torch.where(torch.isnan(x), 0.0, torch.clamp(x, -1.0, 1.0))
        if rng is not None:
            y = self._either(torch.abs(x), rng)
            y = torch.copysign(y, x) if self.signed else y
        elif self.signed:
            y = torch.round(torch.copysign(torch.sqrt(torch.abs(x)), x) * self.most)
        else:
            y = torch.round(torch.sqrt(torch.sqrt(x)) * self.most)
        return y if self.signed else torch.where(value > 0, torch.clamp(y, min=1.0), 0.0)

    def _spread(self, y: Tensor) -> Tensor:
        """What numbers between -1 and 1 stand for."""
        if self.signed:
            return y * torch.abs(y)
        y = y * y
        return y * y

    def _either(self, x: Tensor, rng: ElementRng) -> Tensor:
        """The number below or the one above, for magnitudes up to 1."""
        y = torch.sqrt(x) if self.signed else torch.sqrt(torch.sqrt(x))
        below = torch.floor(y * self.most)
        low, high = self._spread(below * (1 / self.most)), self._spread((below + 1) * (1 / self.most))
        above = rng.even(x) * (high - low) < x - low
        return torch.clamp(below + above.to(x.dtype), max=float(self.most))


def _largest(value: Tensor) -> Tensor:
    """The largest magnitude of those that are finite."""
    magnitude = torch.abs(value)
    return torch.amax(torch.where(magnitude < math.inf, magnitude, 0.0), dim=-1, keepdim=True)


@dataclass(frozen=True)
class Kahan:
    """Half precision, and the rounding error that it has now, in half precision too.

    An error is kept where it can be one: at most half of the distance between neighbours. Where a parameter was given
    another value from outside, what it lacked before is no part of that.
    """

    dtype: torch.dtype
    beside: ClassVar[tuple[str, ...]] = ("compensation",)

    def load(self, parts: Parts, compute_dtype: torch.dtype) -> Tensor:
        """Their sum, element by element where the second can be the first's rounding error."""
        value, error = (part.to(compute_dtype) for part in parts)
        return value + torch.where(torch.abs(error) <= self._largest_error(value), error, 0.0)

    def store(self, value: Tensor, rng: ElementRng | None = None) -> Parts:
        """The nearest number, and what is left."""
        nearest = value.to(self.dtype)
        return nearest, (value - _from_bits(nearest)).to(self.dtype)

    def _largest_error(self, value: Tensor) -> Tensor:
        """Half of the distance of numbers to their neighbours in half precision."""
        powers = (value.to(torch.float32).view(torch.int32) & 0x7F800000).view(torch.float32)
        info = torch.finfo(self.dtype)
        return torch.clamp(powers, min=info.tiny) * (info.eps / 2)


def _from_bits(x: Tensor) -> Tensor:
    """A number of half precision in float32, made of its bits: compilers leave out conversions down and up again."""
    bits = x.view(torch.int16).to(torch.int32)
    if x.dtype == torch.bfloat16:
        return (bits << 16).view(torch.float32)
    # Its exponent counts from 15, that of float32 from 127.
    return ((bits << 13) & -0x70002000).view(torch.float32) * 2.0**112


@dataclass(frozen=True)
class Split:
    """bfloat16, and the 16 bits that it lacks of float32: exact."""

    beside: ClassVar[tuple[str, ...]] = ("missing_bits",)

    def load(self, parts: Parts, compute_dtype: torch.dtype) -> Tensor:
        """The float32 number whose upper half, rounded, is the first part."""
        upper, missing = parts[0].view(torch.int16).to(torch.int32), parts[1].to(torch.int32)
        # No number has bits below those of 0, or above those of infinity: values from outside stay what they are.
        missing = torch.where((upper & 0x7FFF) == 0, torch.clamp(missing, min=0), missing)
        missing = torch.where((upper & 0x7FFF) == 0x7F80, torch.clamp(missing, max=0), missing)
        return ((upper << 16) + missing).view(torch.float32).to(compute_dtype)

    def store(self, value: Tensor, rng: ElementRng | None = None) -> Parts:
        """The upper half, ties away from zero so that the difference has 16 bits, and the difference."""
        bits = value.to(torch.float32).view(torch.int32)
        upper = (bits + 0x8000) >> 16
        return upper.to(torch.int16).view(torch.bfloat16), (bits - (upper << 16)).to(torch.int16)


@dataclass(frozen=True)
class Stochastic:
    """bfloat16, rounded up or down at random so that the mean is the value."""

    beside: ClassVar[tuple[str, ...]] = ()

    def load(self, parts: Parts, compute_dtype: torch.dtype) -> Tensor:
        """The part, converted."""
        return parts[0].to(compute_dtype)

    def store(self, value: Tensor, rng: ElementRng | None = None) -> Parts:
        """Cut off after random bits have been added below."""
        if rng is None:
            raise ValueError("stochastic rounding needs random bits")
        bits = value.to(torch.float32).view(torch.int32)
        upper = (bits.to(torch.int64) + (rng.bits(value) & 0xFFFF)) >> 16
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
class StorageSpec:
    """How a parameter and its state rest.

    Attributes:
        blocks: the state that is stored in blocks, by name.
        length: elements of a block; None where there are none.
        master: how the parameter keeps what its dtype cannot hold, and in which state beside it.
    """

    blocks: tuple[tuple[str, Blocks], ...] = ()
    length: int | None = None
    master: Kahan | Split | Stochastic | None = None

    @property
    def random(self) -> bool:
        """Whether something is rounded by its place and step."""
        return isinstance(self.master, Stochastic) or self.in_order

    @property
    def is_plain(self) -> bool:
        """Whether tensors of the compute dtype are the values themselves."""
        return self.master is None and not self.blocks

    @property
    def lanes(self) -> int:
        """How many values share a byte: two where everything in blocks has 4 bits, the halves of each block."""
        return 2 if self.blocks and all(storage.bits == 4 for _, storage in self.blocks) else 1

    @property
    def in_order(self) -> bool:
        """Whether blocks go along the elements in the order of their dimensions, whatever their order in memory is."""
        return any(storage.bits == 4 for _, storage in self.blocks)

    def load(self, p: Tensor, s: Mapping[str, Tensor], compute_dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """The values of the parameter and of the state."""
        parts = self._parts
        return self.parameter(p, s, compute_dtype), {
            name: self.slot(name, p, s, compute_dtype) for name in s if name not in parts
        }

    def parameter(self, p: Tensor, s: Mapping[str, Tensor], compute_dtype: torch.dtype) -> Tensor:
        """The value of the parameter."""
        return (
            self.master.load((p, *(s[name] for name in self.master.beside)), compute_dtype)
            if self.master
            else p.to(compute_dtype)
        )

    def slot(self, name: str, p: Tensor, s: Mapping[str, Tensor], compute_dtype: torch.dtype) -> Tensor:
        """The value of a slot, in the parameter's shape where it is stored in blocks."""
        storage = dict(self.blocks).get(name) if self.blocks else None
        if storage is None:
            return s[name].to(compute_dtype)
        return _unpacked(storage, s[name], s[f"{name}_scale"], compute_dtype, p.shape)

    def laid_as(self, p: Tensor, name: str, s: Mapping[str, Tensor], stored: Mapping[str, Slot]) -> dict[str, Tensor]:
        """The parts of a slot of the parameter's shape, in the parameter's memory layout."""
        storage = dict(self.blocks).get(name)
        if storage is None:
            return {name: torch.empty_like(p, dtype=s[name].dtype).copy_(s[name])}
        value = torch.empty_like(p, dtype=torch.float32).copy_(self.slot(name, p, s, torch.float32))
        return packed(name, storage, stored, value)

    def store(
        self, p: Tensor, s: Mapping[str, Tensor], p_value: Tensor, state: Mapping[str, Tensor], rng: ElementRng | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every stored tensor with what it becomes."""
        blocks = dict(self.blocks)
        others = {name: value for name, value in state.items() if name not in blocks}
        yield from self._store_plain(p, s, p_value, others, rng)
        for slot, (name, storage) in enumerate(self.blocks, 1):
            if name in state:
                numbers, scale = s[name], s[f"{name}_scale"]
                mine = replace(rng, slot=slot) if rng is not None and storage.bits == 4 else None
                yield from zip((numbers, scale), _packed(storage, state[name], numbers, scale.shape, mine), strict=True)

    def load_lane(
        self, lane: int, p: Tensor, s: Mapping[str, Tensor], compute_dtype: torch.dtype
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same for one lane: all, or one half of every block, a row a block.

        State that belongs to both halves, a norm for example, is a copy for each.
        """
        if self.lanes == 1:
            return self.load(p, s, compute_dtype)
        parts = self._parts
        state = {name: s[name].to(compute_dtype, copy=True) for name in s if name not in parts}
        for name, storage in self.blocks:
            state[name] = storage.halves((s[name], s[f"{name}_scale"]), compute_dtype)[lane]
        return self.parameter(p, s, compute_dtype), state

    def store_lanes(
        self,
        p: Sequence[Tensor],
        s: Sequence[Mapping[str, Tensor]],
        p_values: Sequence[Tensor],
        states: Sequence[Mapping[str, Tensor]],
        rng: ElementRng | None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The inverse, for all lanes."""
        if self.lanes == 1:
            yield from self.store(p[0], s[0], p_values[0], states[0], rng)
            return
        blocks = dict(self.blocks)
        for i, stored in enumerate(p):
            roll = None if rng is None else replace(rng, part=(i, 2))
            others = {name: value for name, value in states[i].items() if name not in blocks}
            yield from self._store_plain(stored, s[i], p_values[i], others, roll)
        for slot, (name, storage) in enumerate(self.blocks, 1):
            mine = None if rng is None else replace(rng, slot=slot)
            parts = storage.join([state[name] for state in states], mine)
            yield from zip((s[0][name], s[0][f"{name}_scale"]), parts, strict=True)

    @property
    def _parts(self) -> tuple[str, ...]:
        """State that is no value by itself."""
        scales = (f"{name}_scale" for name, _ in self.blocks)
        return (*scales, *(self.master.beside if self.master else ()))

    def _store_plain(
        self, p: Tensor, s: Mapping[str, Tensor], p_value: Tensor, state: Mapping[str, Tensor], rng: ElementRng | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What does not rest in blocks."""
        if self.master is None:
            yield p, p_value
        else:
            parts = p, *(s[name] for name in self.master.beside)
            yield from zip(parts, self.master.store(p_value, rng), strict=True)
        for name, value in state.items():
            yield s[name], value


def _packed(
    storage: Blocks, value: Tensor, like: Tensor, scales: Sequence[int], rng: ElementRng | None = None
) -> tuple[Tensor, Tensor]:
    """A value in blocks: numbers that lie in memory as `like` does, and their scales in this shape.

    Blocks of 8-bit numbers go along the memory, in which the numbers lie as the parameter does; of 4-bit numbers,
    which have no dimension to tell that by, along the elements in the order of their dimensions.
    """
    if storage.bits == 8:
        value = value.reshape(like.shape)
        if value.stride() != like.stride():
            value = torch.empty_like(like, dtype=value.dtype).copy_(value)
        value = _flat(value)
    numbers, scale = storage.store(value.reshape(-1, *storage.shape), rng)
    if storage.bits == 4 or like.is_contiguous():
        return numbers.reshape(like.shape), scale.reshape(scales)
    return numbers.as_strided(like.shape, like.stride()), scale.reshape(scales)


def _unpacked(
    storage: Blocks, numbers: Tensor, scale: Tensor, compute_dtype: torch.dtype, shape: Sequence[int]
) -> Tensor:
    """The inverse, in the shape of the parameter; of 8-bit numbers, in their memory layout too."""
    rows = (numbers if storage.bits == 4 else _flat(numbers)).reshape(-1, storage.length * storage.bits // 8)
    value = storage.load((rows, scale.reshape(-1, 1)), compute_dtype)
    if storage.bits == 4 or numbers.is_contiguous():
        return value.reshape(shape)
    return value.as_strided(numbers.shape, numbers.stride()).reshape(shape)


def _flat(x: Tensor) -> Tensor:
    """The elements in the order of memory."""
    return x if x.is_contiguous() else x.as_strided((x.numel(),), (1,))


def plan_storage(slots: Mapping[str, Slot], h: Any, p: Tensor) -> tuple[dict[str, Slot], StorageSpec]:
    """The tensors that a parameter's state is stored in, and how.

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
    stored: dict[str, Slot] = {}
    blocks: list[tuple[str, Blocks]] = []
    for name, slot in slots.items():
        named = wanted.get(name)
        dtype: Any = DTYPES.get(named, named) if isinstance(named, str) else named
        if dtype in BITS:
            averages = slot.kind in ("signed", "positive") and slot.like_parameter
            if chosen and not averages:
                raise ValueError(
                    f"state_dtype of {name!r} is {dtype!r}, which is for averages of the parameter's shape"
                )
            if chosen and BITS[dtype] < slot.least_bits:
                raise ValueError(f"state_dtype of {name!r} is {dtype!r}, which is too coarse for it; use 'int8'")
            if averages and slot.dtype is None and slot.fill == 0 and length:
                bits = max(BITS[dtype], slot.least_bits) if length % 2 == 0 else 8
                storage = Blocks(slot.kind == "signed", length, bits)
                blocks.append((name, storage))
                stored[name] = replace(slot, dtype=storage.dtype, per_block=None if bits == 8 else 2)
                stored[f"{name}_scale"] = Slot("positive", dtype=torch.float32, per_block=length)
                continue
            dtype = None
        keeps = dtype is None or slot.kind not in ("signed", "positive") or slot.dtype is not None
        stored[name] = slot if keeps else replace(slot, dtype=dtype)
    master = _master(h.master, p)
    for name in master.beside if master else ():
        stored[name] = Slot(dtype=torch.int16 if isinstance(master, Split) else p.dtype)
    return stored, StorageSpec(tuple(blocks), length if blocks else None, master)


def _master(master: str | None, p: Tensor) -> Kahan | Split | Stochastic | None:
    if p.dtype not in (torch.bfloat16, torch.float16) or master is None:
        return None
    if master == "kahan":
        return Kahan(p.dtype)
    if p.dtype != torch.bfloat16:
        raise ValueError(f"master={master!r} is for bfloat16 parameters, expected 'kahan' or None for {p.dtype}")
    return Split() if master == "split" else Stochastic()


def packed(name: str, storage: Blocks, stored: Mapping[str, Slot], value: Tensor) -> dict[str, Tensor]:
    """A value in blocks, under the names of its parts."""
    scales = stored[f"{name}_scale"].shape_for(value)
    like = torch.empty(stored[name].shape_for(value), device="meta") if storage.bits == 4 else value
    numbers, scale = _packed(storage, value, like, scales)
    return {name: numbers, f"{name}_scale": scale}


def stored_alike(numbers: Tensor, scale: Tensor, storage: Blocks, like: Tensor) -> bool:
    """Whether parts that came from somewhere rest as they are to, of a value that lies in memory as `like` does."""
    counts = like.numel() * storage.bits // 8, like.numel() // storage.length
    laid = storage.bits == 4 or numbers.stride() == like.stride()
    return (numbers.numel(), scale.numel()) == counts and numbers.dtype == storage.dtype and laid


def unpacked(numbers: Tensor, scale: Tensor, slot: Slot, shape: Sequence[int]) -> Tensor:
    """The value of parts that came from somewhere: their sizes say how they rest.

    Args:
        numbers: of a parameter's state.
        scale: of their blocks.
        slot: what the state is.
        shape: of the parameter.
    """
    count = math.prod(shape)
    bits = 8 if numbers.numel() == count else 4
    storage = Blocks(slot.kind == "signed", count // max(scale.numel(), 1) or MOST_BLOCK, bits)
    return _unpacked(storage, numbers, scale, torch.float32, shape)
