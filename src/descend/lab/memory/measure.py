"""Bytes of state in every storage, and what they cost: losses of the byte-level GPT, times of a step, peaks of a training."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import descend
from descend.lab import racing
from descend.lab.bench.machine import machine, versions
from descend.lab.bench.measure import interleave, parameters, stepping, warm
from descend.lab.contender import Contender
from descend.lab.models import Model, model_of
from descend.lab.names import created
from descend.lab.outcome import read, write
from descend.lab.racing import Settings
from descend.lab.search import Choice
from descend.lab.sizes import held_bytes, predicted_bytes
from descend.lab.task import Examples, Task
from descend.lab.tasks import GPT, tasks

#: The best of four learning rates on the byte-level GPT, after 120 steps.
RATES = {
    "adamw": 8e-3, "lamb": 2e-2, "lion": 2e-3, "adabelief": 8e-3, "madgrad": 1e-2, "adan": 2e-2, "muon": 2e-2,
}  # fmt: skip
STORAGES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"state_dtype": torch.bfloat16},
    "int8": {"state_dtype": "int8"},
    "int4": {"state_dtype": "int4"},
}
IN_SHORT = ("int8", "int4")
#: How bfloat16 weights may be kept.
MASTERS = ("none", "kahan", "split", "stochastic")


@dataclass
class Weights:
    """Bytes of state for each element of a model, by storage."""

    optimizer: str
    bytes: dict[str, float] = field(default_factory=dict)


@dataclass
class Losses:
    """Validation losses of one way to train, a seed each."""

    optimizer: str
    weights: str
    state: str
    losses: list[float] = field(default_factory=list)
    blocked: float = 0.0

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.losses)


@dataclass
class Findings:
    """All that was measured; times are medians in milliseconds, peaks are bytes for each parameter."""

    model: str = "ViT-S/16"
    weights: list[Weights] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    losses: list[Losses] = field(default_factory=list)
    seeds: int = 3
    steps: int = 300
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: bool = False


def measure(
    parts: Sequence[str],
    found: Findings,
    optimizers: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
    keep: Callable[[Findings], None] = lambda _: None,
) -> None:
    """Measure some of peaks, times and losses again; the others stay as they were found.

    The findings hold what is done at every moment, after Ctrl-C too, and `keep` is called with them.
    """
    threads = {f"threads for {part}": str(torch.get_num_threads()) for part in parts if part in ("times", "losses")}
    here = machine(torch.device("cpu")) | versions(("descend", "torch"))
    here.pop("threads", None)
    found.environment = {**here, **{k: v for k, v in found.environment.items() if k.startswith("threads")}, **threads}
    begin, before, found.stopped = time.perf_counter(), found.seconds, False

    def did() -> None:
        found.seconds = before + time.perf_counter() - begin
        keep(found)

    try:
        did()
        if "peaks" in parts:
            tell("peaks of a training step")
            found.peaks = peaks()
            did()
        if "times" in parts:
            tell("times of a fused step")
            found.times = times()
            did()
        if "losses" in parts:
            task, found.losses = tasks()["gpt"], []
            data = task.load()
            for one in planned(optimizers):
                tell(f"{task.title}: {one.optimizer}, {one.weights} weights, {one.state} state")
                train(one, task, data, found.seeds, found.steps)
                found.losses.append(one)
                did()
    except KeyboardInterrupt:
        found.stopped = True
        did()


def weights(name: str, model: Model) -> Weights:
    """The bytes of one optimizer's state in every storage, as it says; none is made."""
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in model.shapes]
    made = {storage: created(name, params, 1e-3, **options) for storage, options in STORAGES.items()}
    return Weights(name, {storage: predicted_bytes(one) / model.elements for storage, one in made.items()})


def rate(name: str) -> float:
    """The learning rate to train with: the one found, or the middle of what its authors suggest."""
    suggested = descend.get_optimizer_info(name.partition("+")[0]).suggested_lr
    return RATES.get(name, math.sqrt(math.prod(suggested)) if suggested else 1e-3)


def peaks() -> dict[str, float]:
    """The most bytes that parameters, gradients and state have together in a training step, for each parameter."""
    usual: dict[str, Any] = {}
    small: dict[str, Any] = {"state_dtype": "int8"}
    ways = {
        "float32": (torch.float32, usual, False),
        "float32, in backward": (torch.float32, usual, True),
        "bfloat16 + Kahan, int8": (torch.bfloat16, small, False),
        "bfloat16 + Kahan, int8, in backward": (torch.bfloat16, small, True),
        "bfloat16 + split, int8, in backward": (torch.bfloat16, {**small, "master": "split"}, True),
    }
    return {title: _peak(*way) for title, way in ways.items()}


def _peak(dtype: torch.dtype, options: dict[str, Any], early: bool) -> float:
    torch.manual_seed(0)
    task = tasks()["gpt"]
    model = GPT(dim=256, depth=6, heads=4).to(dtype)
    elements = sum(p.numel() for p in model.parameters())
    most = 0
    optimizer: Any = None

    def look(_: Tensor) -> None:
        nonlocal most
        held = [t for p in model.parameters() for t in (p, p.grad) if t is not None]
        most = max(most, sum(t.nbytes for t in held) + (held_bytes(optimizer) if optimizer else 0))

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(look)  # type: ignore[no-untyped-call]  # before the optimizer's own
    if early:
        optimizer = descend.step_in_backward(model, lambda params: descend.AdamW(params, **options))
    else:
        optimizer = descend.AdamW(model.parameters(), **options)
    text = torch.randint(0, 256, (4, 65))
    for _ in range(2):
        torch.autograd.backward(task.loss(model, (text[:, :-1], text[:, 1:])))
        optimizer.step()
        optimizer.zero_grad()
    return most / elements


def times() -> dict[str, float]:
    """Median milliseconds of a fused AdamW step on a ViT-S/16, the storages in turn."""
    device = torch.device("cpu")
    contenders = {}
    for storage, options in STORAGES.items():
        params, grads = parameters(model_of("vit_s").shapes, torch.float32, device)
        contenders[storage] = stepping(descend.AdamW(params, lr=1e-4, fused=True, **options), params, grads, False)
    for contender in contenders.values():
        warm(contender, 30, device)
    interleave(list(contenders.values()), 30, device)
    return {storage: contender.ms or math.nan for storage, contender in contenders.items()}


def planned(optimizers: Sequence[str]) -> list[Losses]:
    """The trainings: state in every number of bits, then bfloat16 weights of AdamW in every way if it is among them."""
    blocks = [Losses(name, "float32", state) for name in optimizers for state in ("float32", *IN_SHORT)]
    masters = MASTERS if "adamw" in optimizers else ()
    return blocks + [Losses("adamw", f"bfloat16, {master}", "float32") for master in masters]


def train(one: Losses, task: Task, data: Examples, seeds: int, steps: int) -> None:
    """Add a loss for every seed, and what share of the elements that could be so short is."""
    dtype, _, master = one.weights.partition(", ")
    options = dict(STORAGES[one.state])
    if master:
        options["master"] = None if master == "none" else master
    made: list[Any] = []

    def in_storage(model: nn.Module, /, *, opt: str, lr: float, weight_decay: float) -> Any:
        kept = model.to(getattr(torch, dtype))
        made[:] = [descend.create_optimizer_v2(kept, opt=opt, lr=lr, weight_decay=weight_decay, **options)]
        return made[0]

    settings = Settings(task.name, steps, steps, task.batch, task.target)
    for seed in range(1, seeds + 1):
        contender = Contender(one.optimizer)
        choice = Choice(rate(one.optimizer), settings.weight_decay, None)
        run = racing.train(task, data, settings, contender, in_storage, choice, seed, steps, lambda _: False)
        one.losses.append(run.score)
        one.blocked = blocked(made[0], 4 if one.state == "int4" else 8)


def blocked(optimizer: Any, bits: int) -> float:
    """The share of elements of so many bits among those of averages of the parameter's shape."""
    short, every = 0, 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name, slot in optimizer.slots_of(p, group).items():
                if slot.like_parameter and slot.kind in ("signed", "positive"):
                    every += p.numel()
                    short += p.numel() * (8 * optimizer.state[p][name].nbytes == bits * p.numel())
    return short / max(1, every)


def save(found: Findings, path: Path) -> None:
    """Write it."""
    write(path, text(found))


def text(found: Findings) -> str:
    """As JSON."""
    return json.dumps(asdict(found), indent=1) + "\n"


def load(path: Path) -> Findings:
    """What was saved.

    Raises:
        ValueError: if the file is no such recording.
    """
    return read(path, _findings, "recording of descend memory; make one with --json")


def _findings(raw: dict[str, Any]) -> Findings:
    raw["weights"] = [Weights(**one) for one in raw["weights"]]
    raw["losses"] = [Losses(**one) for one in raw["losses"]]
    return Findings(**raw)
