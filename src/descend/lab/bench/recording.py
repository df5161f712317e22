"""What a run of the bench found, as plain data: kept as JSON, and all that a report is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from descend.lab.outcome import read, write

FORMAT = 2


@dataclass
class Line:
    """One contender of a heat.

    Attributes:
        library: whose optimizer it is; "descend" is ours.
        how: our executor, or how a peer runs it.
        ms: median time of a step; None: not timed.
        quartiles: the middle half of the steps, in milliseconds.
        steps: how many were timed.
        gbps: the rule's bytes over the median.
        over_traffic: the median over the time that memory traffic alone would take, at the bandwidth of torch's fused
            AdamW.
        share: gbps over what the machine can do: the faster of torch's fused AdamW and a streaming copy.
        first_s: the first step, which makes the state and compiles.
        extra_bytes: the most that a step allocated at any one time.
        state_bytes: what the state weighs after a few steps.
        predicted_bytes: what the optimizer said that it would weigh.
        error: why it is not there.
    """

    library: str
    how: str
    ms: float | None = None
    quartiles: tuple[float, float] | None = None
    steps: int = 0
    gbps: float | None = None
    over_traffic: float | None = None
    share: float | None = None
    first_s: float | None = None
    extra_bytes: int | None = None
    state_bytes: int | None = None
    predicted_bytes: int | None = None
    error: str = ""

    @property
    def ours(self) -> bool:
        """Whether it is an optimizer of this package."""
        return self.library == "descend"


@dataclass
class Heat:
    """Contenders that took their steps in turn, all with one rule, on one model, in one dtype.

    Attributes:
        rule: the name of the catalogue.
        bytes: what a step of the rule must move.
        batch_bytes: the parameters of the largest set of equal matrices, which a matrix rule works on at once.
        reference_ms: torch.optim.AdamW(fused=True) on the same shapes in float32, interleaved.
        reference_bytes: what that moves.
        copy_ms: a streaming copy of as many float32 elements, interleaved.
        copy_bytes: what that moves.
        period: every so many steps the rule does more; a turn consists of so many.
    """

    rule: str
    model: str
    dtype: str
    reach: str
    second_order: bool
    tensors: int
    elements: int
    bytes: int
    batch_bytes: int
    reference_ms: float | None = None
    reference_bytes: int = 0
    copy_ms: float | None = None
    copy_bytes: int = 0
    lines: list[Line] = field(default_factory=list)
    period: int = 1

    def line(self, library: str, how: str) -> Line | None:
        """A contender that took part."""
        return next((x for x in self.lines if (x.library, x.how) == (library, how) and not x.error), None)


@dataclass
class Compile:
    """What compiling cost one rule, each time in a process of its own.

    Attributes:
        cold_s: with an empty cache on disk.
        warm_s: in a second process, with the cache that the first one left.
    """

    rule: str
    model: str
    kernels: int = 0
    cold_s: float | None = None
    warm_s: float | None = None
    error: str = ""


@dataclass
class Importing:
    """What `import descend` costs after `import torch`: the median, and modules that it should have left alone."""

    ms: float
    unwanted: list[str]


@dataclass
class Recording:
    """Everything of a run."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    importing: Importing | None = None
    compiles: list[Compile] = field(default_factory=list)
    heats: list[Heat] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False

    def ours(self, how: str = "fused") -> Iterator[tuple[Heat, Line]]:
        """Our contenders that ran in one way."""
        for heat in self.heats:
            if line := heat.line("descend", how):
                yield heat, line


def save(recording: Recording, path: Path) -> None:
    """Write it."""
    write(path, text(recording))


def text(recording: Recording) -> str:
    """As JSON."""
    return json.dumps({"format": FORMAT, **asdict(recording)}, indent=1, allow_nan=False) + "\n"


def load(path: Path) -> Recording:
    """Read what `save` wrote.

    Raises:
        ValueError: if the file is none of ours.
    """
    return read(path, _recording, "recording of descend bench; make one with --json")


def _recording(raw: dict[str, Any]) -> Recording:
    if (found := raw.pop("format")) != FORMAT:
        raise ValueError(f"its format is {found}, expected {FORMAT}")
    raw["importing"] = Importing(**raw["importing"]) if raw["importing"] else None
    raw["compiles"] = [Compile(**one) for one in raw["compiles"]]
    raw["heats"] = [Heat(**{**one, "lines": [_line(line) for line in one["lines"]]}) for one in raw["heats"]]
    return Recording(**raw)


def _line(raw: dict[str, Any]) -> Line:
    quartiles = raw.pop("quartiles")
    return Line(**raw, quartiles=tuple(quartiles) if quartiles else None)
