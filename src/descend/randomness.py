"""Random numbers that are a hash of where they are used, so that resuming and sharding repeat them exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_GOLDEN = round((5**0.5 - 1) / 4 * 2**32)  # half the golden section: the product with 32 bits fits into 63
_STRIDES = (2, 3, 7, 11, 13, 17, 19)  # no sum of multiples of their roots is a whole number


def hashed(index: Tensor, *keys: Tensor | int) -> Tensor:
    """32 random bits, as int64 in [0, 2³²), for every global element index under integer keys.

    A counter-based generator: a multiply-and-shift finaliser over index and key, applied twice. The same keys give
    the same bits on every device and for every way in which the elements are split up.
    """
    key = _mixed(0x9E3779B9, keys)
    low = _mix_tensor((index & _WORD) ^ key)
    return _mix_tensor(low ^ _mix_tensor(((index >> 32) & _WORD) ^ _mix(key ^ 0x85EBCA6B)))


def uniform(index: Tensor, *keys: int) -> Tensor:
    """Numbers in (0, 1), float64, one for every global element index."""
    return (hashed(index, *keys).to(torch.float64) + 0.5) * 2.0**-32


def normal(index: Tensor, *keys: int) -> Tensor:
    """Standard normal numbers, float64, one for every global element index (Box and Muller)."""
    radius = torch.sqrt(-2 * torch.log(uniform(index, *keys, 1)))
    return radius * torch.cos(2 * torch.pi * uniform(index, *keys, 2))


def rademacher(like: Sequence[Tensor], keys: Sequence[Sequence[int]]) -> list[Tensor]:
    """Tensors of −1 and 1 in the shapes of others; element i is bit i mod 32 of the hash of ⌊i/32⌋ under its tensor's keys.

    They are made together, since calls for small tensors cost more than their numbers.

    Args:
        like: tensors of one dtype on one device.
        keys: of each.
    """
    device, counts = like[0].device, [-(-x.numel() // 32) for x in like]
    words_of = torch.tensor(counts, device=device)
    firsts = torch.repeat_interleave(words_of.cumsum(0) - words_of, words_of)
    index = torch.arange(len(firsts), device=device) - firsts
    columns: list[Any] = [
        column[0]
        if len({*column}) == 1
        else torch.repeat_interleave(torch.tensor(column, dtype=torch.int64, device=device), words_of)
        for column in zip(*keys, strict=True)
    ]
    eighths = (hashed(index, *columns) - (1 << 31)).to(torch.int32).view(torch.uint8).to(torch.int32)
    # All eight bits of a byte at once: a row of signs for each byte.
    signs = ((torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1) * 2 - 1
    made = signs.to(like[0].dtype).index_select(0, eighths).reshape(-1)
    found = torch.split(made, [n * 32 for n in counts])
    return [some[: x.numel()].reshape(x.shape) for some, x in zip(found, like, strict=True)]


def even(index: Tensor, step: Tensor | int, stream: int, *keys: Tensor | int) -> Tensor:
    """Numbers in [0, 1), float32, that fill it evenly: along the steps for every element, and along the elements.

    Multiples of irrational numbers modulo 1 (Weyl). Any n steps in a row leave no gap much longer than 1/n, so that
    rounding by them errs by that at most where rounding at random errs by 1/√n; and they cost little to make.

    Args:
        index: the place of every element.
        step: counts the steps.
        stream: from 1; several streams fill the square, the cube, … evenly together.
        keys: where to begin.
    """
    begin = _mixed(0x85EBCA6B, (stream, *keys))
    stride = round(_STRIDES[stream % len(_STRIDES)] ** 0.5 % 1 * 2**32)
    bits = ((index & _WORD) * _GOLDEN + ((step & _WORD) * stride + begin)) & _WORD
    return (bits >> 8).to(torch.float32) * 2.0**-24


def _mixed(start: int, keys: Sequence[Any]) -> Any:
    """One word of all keys."""
    for word in keys:
        start = _mix(start ^ (word & _WORD)) ^ _mix((word >> 32) & _WORD)
    return start


def _mix(x: Any) -> Any:
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)


def _mix_tensor(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _WORD
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _WORD
    return x ^ (x >> 15)
