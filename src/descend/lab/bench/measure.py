"""Time and memory of steps. Contenders step in turn, so that whatever else the machine does hits all alike."""

from __future__ import annotations

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

WARM_UP = 3  # steps that are not counted: the first makes the state and compiles, the last tells what a step takes
TURN = 5e-3  # seconds that a contender has its turn for, if a step is shorter than that
STREAK = 10  # steps of a turn at most
BUDGET = 2.0  # seconds of timed steps a contender; a slow one sits out some of the rounds


@dataclass
class Contender:
    """Something that can take one step after another.

    Args:
        step: what is timed.
        prepare: what comes before every step and is not timed.
        moved: bytes that a step moves, if that is what it is there for.
    """

    step: Callable[[], object]
    prepare: Callable[[], object] = lambda: None
    moved: int = 0
    first_s: float = 0.0
    planned: int = 0
    streak: int = 1
    times: list[float] = field(default_factory=list)
    failure: Exception | None = None

    @property
    def ms(self) -> float | None:
        """The median step."""
        return 1e3 * statistics.median(self.times) if self.times else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The middle half of the steps, in milliseconds."""
        if len(self.times) < 2:
            return None
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return 1e3 * low, 1e3 * high

    @property
    def gbps(self) -> float | None:
        """What it moves over the median step."""
        return self.moved / self.ms / 1e6 if self.ms else None


def parameters(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> tuple[list[nn.Parameter], list[Tensor]]:
    """Parameters and gradients that are always the same."""
    generator = torch.Generator().manual_seed(0)

    def normal(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(scale).to(device, dtype)

    return [nn.Parameter(normal(shape, 0.02)) for shape in shapes], [normal(shape, 1e-2) for shape in shapes]


def stepping(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], grads: Sequence[Tensor], curved: bool
) -> Contender:
    """An optimizer whose parameters have gradients before each step, `curved` ones with a graph behind them."""

    def prepare() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g * p if curved else g

    return Contender(optimizer.step, prepare)


def reference(shapes: Sequence[tuple[int, ...]], device: torch.device) -> tuple[Contender, Contender]:
    """torch's fused AdamW and a streaming copy, both float32: what this machine can do right now."""
    params, grads = parameters(shapes, torch.float32, device)
    elements = sum(p.numel() for p in params)
    adamw = stepping(torch.optim.AdamW(params, lr=1e-4, fused=True), params, grads, curved=False)
    adamw.moved = 28 * elements
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    return adamw, Contender(lambda: target.copy_(source), moved=8 * elements)


def warm(contender: Contender, rounds: int, device: torch.device, period: int = 1) -> None:
    """Take the steps that are not counted, and see how many of the rounds it can take part in, with how many steps.

    A turn is a multiple of `period`, so that what happens only every so many steps has its share in each.
    """
    taken = [_timed(contender, device) for _ in range(WARM_UP)]
    contender.first_s = taken[0]
    contender.streak = period * min(STREAK, max(1, int(TURN / taken[-1] / period)))
    contender.planned = min(rounds, max(1, int(BUDGET / taken[-1] / contender.streak))) if rounds else 0


def interleave(contenders: Sequence[Contender], rounds: int, device: torch.device) -> None:
    """A turn of each in every round, in an order that changes; slow ones are spread over the rounds."""
    shuffle = random.Random(0).shuffle
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            turn = [c for c in contenders if number * c.planned % rounds < c.planned]
            shuffle(turn)
            for contender in turn:
                try:
                    contender.times.append(statistics.fmean(_timed(contender, device) for _ in range(contender.streak)))
                except Exception as error:  # whatever another library raises must not end the run
                    contender.failure, contender.planned = error, 0
    finally:
        if collects:
            gc.enable()


def _timed(contender: Contender, device: torch.device) -> float:
    contender.prepare()
    _wait(device)
    start = time.perf_counter()
    contender.step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_bytes(contender: Contender, device: torch.device) -> int:
    """The most that a step has allocated at any one time, beyond what was there before it.

    On the CPU every tensor, compiled code's included, comes from one allocator, whose calls the profiler records with
    their sizes; their running sum is exact, where the resident size of a process moves by pages and keeps what is freed.
    """
    contender.prepare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        contender.step()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _silence(), profile(profile_memory=True) as recorded:
        contender.step()
    events = recorded.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@contextmanager
def _silence() -> Iterator[None]:
    """The profiler announces itself on the process's own standard error, past Python's."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
