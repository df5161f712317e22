"""What a row of the test catalogue says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """An optimizer under test.

    lr: large enough that fifty steps move every parameter by a tenth of its size.
    variants: option sets; each turns something that the default leaves off. The key "still" marks one whose steps are
        tiny by design: its errors count against the parameter's size.
    moves: the least share of its size that every parameter moves by; less where a rule holds steps back by design.
    """

    name: str
    lr: float | None = 0.05
    variants: tuple[Options, ...] = ()
    float32: float = 2e-4
    moves: float = 0.1


DECAY = 0.1


def variant_id(options: Options) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items()) or "default"
