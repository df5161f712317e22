"""A run of the bench: which contenders meet, and what is recorded of them."""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from descend import get_optimizer_info
from descend.engine.optimizer import Optimizer
from descend.lab.bench import measure
from descend.lab.bench.compiling import compiling, importing
from descend.lab.bench.contenders import LR, WEIGHT_DECAY, ours
from descend.lab.bench.machine import machine, scrubbed, versions
from descend.lab.bench.peers import Make, Peer
from descend.lab.bench.recording import Heat, Line, Recording
from descend.lab.bench.traffic import bytes_of
from descend.lab.models import Shapes, model_of
from descend.lab.sizes import held_bytes, predicted_bytes

Entered = tuple[Line, measure.Contender, torch.optim.Optimizer]


@dataclass(frozen=True)
class Case:
    """One heat to come: a rule on a model in a dtype, in some of our executors and by some peers."""

    rule: str
    model: str
    dtype: str
    executors: tuple[str, ...]
    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Bench:
    """All that is to be measured.

    Args:
        cases: the heats.
        rounds: timed steps of each contender at most; 0 measures memory alone.
        device: where the parameters are.
        compiled: rules whose compilation is measured, in processes of their own.
        imports: how often the import is measured.
        sources: files and modules of the user's own optimizers, which those processes import too.
    """

    cases: tuple[Case, ...]
    rounds: int
    device: str = "cpu"
    compiled: tuple[str, ...] = ()
    imports: int = 0
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cases) + len(self.compiled) + bool(self.imports)


def run(
    bench: Bench,
    recording: Recording,
    watch: Callable[[str], None] = lambda _: None,
    keep: Callable[[Recording], None] = lambda _: None,
) -> None:
    """Carry out all heats; the recording holds what is done at every moment, and `keep` is called after each."""
    start = time.perf_counter()
    device = torch.device(bench.device)
    try:
        if bench.imports:
            watch("importing descend")
            recording.importing = importing(bench.imports)
        with tempfile.TemporaryDirectory(prefix="descend-bench-") as folder:
            caches: dict[str, Path] = {}
            model, dtype = (bench.cases[0].model, bench.cases[0].dtype) if bench.cases else ("vit_s", "float32")
            for rule in bench.compiled:
                watch(f"compiling {rule}")
                caches[rule] = Path(folder) / rule
                recording.compiles.append(compiling(rule, model, dtype, bench.device, caches[rule], bench.sources))
                keep(recording)
            for case in bench.cases:
                watch(f"{case.rule} on {case.model}, {case.dtype}")
                with _cache(caches.get(case.rule)):
                    recording.heats.append(heat(case, bench.rounds, device))
                recording.seconds = time.perf_counter() - start
                keep(recording)
                gc.collect()  # optimizers are in cycles with their hooks
    except KeyboardInterrupt:
        recording.stopped = True
    finally:
        recording.seconds = time.perf_counter() - start


def new_recording(bench: Bench) -> Recording:
    """An empty recording that says where it is made, and of what."""
    packages = ("descend", "torch", *(peer.package for case in bench.cases for peer in case.peers))
    given = {"rounds": bench.rounds, "device": bench.device, "lr": LR, "weight_decay": WEIGHT_DECAY}
    return Recording(machine(torch.device(bench.device)), versions(dict.fromkeys(packages)), given)


@contextmanager
def _cache(folder: Path | None) -> Iterator[None]:
    """Let compiled code come from a folder, where it has been compiled before."""
    chosen = {} if folder is None else {"TORCHINDUCTOR_CACHE_DIR": folder, "DESCEND_CACHE_DIR": folder / "descend"}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update({name: str(place) for name, place in chosen.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def heat(case: Case, rounds: int, device: torch.device) -> Heat:
    """Make all contenders of a rule, let them step in turn, then measure what a step allocates."""
    shapes, dtype = model_of(case.model).shapes, getattr(torch, case.dtype)
    result = _described(case, shapes, dtype)
    entered: list[Entered] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers deprecate, and complain about the CPU
        for line, make in _entries(case):
            result.lines.append(line)
            try:
                params, grads = measure.parameters(shapes, dtype, device)
                optimizer = make(params)
                contender = measure.stepping(optimizer, params, grads, result.second_order)
                measure.warm(contender, rounds, device, result.period)
            except Exception as error:  # whatever another library raises must not end the run
                line.error = told(error)
                continue
            entered.append((line, contender, optimizer))
        if rounds:
            _time(result, entered, rounds, shapes, device)
        for line, contender, optimizer in entered:
            if contender.failure:
                line.error = told(contender.failure)
                continue
            line.first_s = contender.first_s
            line.state_bytes = held_bytes(optimizer)
            line.extra_bytes = measure.extra_bytes(contender, device)
            if isinstance(optimizer, Optimizer):
                line.predicted_bytes = predicted_bytes(optimizer)
    return result


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {scrubbed(error)}"


def _described(case: Case, shapes: Shapes, dtype: torch.dtype) -> Heat:
    """The heat before anything has run. Everything here follows from shapes."""
    params = [nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
    rule = ours(case.rule, params)
    equal = Counter(shape for shape in shapes if len(shape) > 1)
    return Heat(
        case.rule,
        case.model,
        case.dtype,
        type(rule).reach,
        get_optimizer_info(case.rule).second_order,
        tensors=len(shapes),
        elements=sum(map(math.prod, shapes)),
        bytes=bytes_of(rule),
        period=rule.defaults.get("precondition_frequency", 1),
        batch_bytes=max((math.prod(shape) * n * params[0].element_size() for shape, n in equal.items()), default=0),
    )


def _entries(case: Case) -> Iterator[tuple[Line, Make]]:
    for executor in case.executors:
        yield Line("descend", executor), lambda params, executor=executor: ours(case.rule, params, executor)  # type: ignore[misc]
    info = get_optimizer_info(case.rule)
    options: dict[str, Any] = {"lr": LR}
    if info.has_weight_decay:
        options["weight_decay"] = WEIGHT_DECAY
    if info.has_momentum:
        options |= {"momentum": 0.9, "nesterov": bool((info.defaults or {}).get("nesterov"))}
    for peer in case.peers:
        for how, make in peer.ways(case.rule, options):
            yield Line(peer.library, how), make


def _time(
    result: Heat,
    entered: Sequence[Entered],
    rounds: int,
    shapes: Shapes,
    device: torch.device,
) -> None:
    adamw, copy = measure.reference(shapes, device)
    for one in (adamw, copy):
        measure.warm(one, rounds, device)
    measure.interleave([adamw, copy, *(contender for _, contender, _ in entered)], rounds, device)
    result.reference_ms, result.reference_bytes = adamw.ms, adamw.moved
    result.copy_ms, result.copy_bytes = copy.ms, copy.moved
    for line, contender, _ in entered:
        contender.moved = result.bytes
        line.ms, line.quartiles, line.steps = contender.ms, contender.quartiles, len(contender.times)
        line.gbps = contender.gbps
        if line.gbps and adamw.gbps and copy.gbps:
            line.over_traffic, line.share = adamw.gbps / line.gbps, line.gbps / max(adamw.gbps, copy.gbps)
