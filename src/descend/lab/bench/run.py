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

from descend import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from descend.engine.optimizer import Optimizer
from descend.lab.bench import measure
from descend.lab.bench.asked import SEEDS
from descend.lab.bench.compiling import compiling, importing
from descend.lab.bench.machine import machine, scrubbed, versions
from descend.lab.bench.peers import Make, Peer
from descend.lab.bench.recording import Heat, Line, Recording
from descend.lab.bench.shapes import Shapes, shapes_of
from descend.lab.bench.traffic import bytes_of

EXECUTORS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
DTYPES = ("float32", "bfloat16", "float16", "float64")
LR, WEIGHT_DECAY = 1e-4, 1e-2

Entered = tuple[Line, measure.Contender, torch.optim.Optimizer]


@dataclass(frozen=True)
class Task:
    """One heat to come: a rule on a model in a dtype, in some of our executors and by some peers."""

    rule: str
    model: str
    dtype: str
    executors: tuple[str, ...]
    peers: tuple[Peer, ...]


@dataclass(frozen=True)
class Settings:
    """What a run consists of, beside its heats.

    Args:
        rounds: timed steps of each contender at most; 0 measures memory alone.
        device: where the parameters are.
        compiled: rules whose compilation is measured, in processes of their own.
        importing: how often the import is measured.
    """

    rounds: int
    device: str = "cpu"
    compiled: tuple[str, ...] = ()
    importing: int = 0


def own_names() -> list[str]:
    """The names whose classes are this package's, which are those that it knows the traffic of."""
    return [name for name in list_optimizers() if _is_own(name)]


def _is_own(name: str) -> bool:
    kind = get_optimizer_info(name).opt_class
    return kind.startswith("descend.") if isinstance(kind, str) else issubclass(kind, Optimizer)  # type: ignore[arg-type]


def plain_names() -> list[str]:
    """One name a class: the shortest, and of equal ones that which binds the fewest options."""
    best: dict[Any, str] = {}
    for name in own_names():
        kind = get_optimizer_class(name, bind_defaults=False)
        if kind not in best or _plainness(name) < _plainness(best[kind]):
            best[kind] = name
    return sorted(best.values())


def _plainness(name: str) -> tuple[int, int, str]:
    return len(name), len(get_optimizer_info(name).defaults or {}), name


def everything(peers: Sequence[Peer], rules: Sequence[str]) -> list[Task]:
    """All heats of the table of numbers. Peers that compile whole models meet one rule, for time's sake."""
    tasks = []
    for rule in rules:
        near = tuple(peer for peer in peers if not peer.slow or rule == "adamw")
        few = tuple(peer for peer in peers if peer.library in ("timm", "torch"))
        default = ("loop",) if rule in SEEDS else ()
        matrix = get_optimizer_info(rule).reach == "matrix"
        tasks.append(Task(rule, "vit_s", "float32", (*default, "fused"), near))
        if not matrix:
            tasks.append(Task(rule, "resnet50", "float32", (*default, "fused"), few))
            tasks.append(Task(rule, "many_tiny", "float32", ("fused",), few))
    return tasks


def ours(rule: str, params: Sequence[nn.Parameter], executor: str | None = None) -> Optimizer:
    """Our optimizer of a name, with the options that every contender gets."""
    given = {"lr": LR, "weight_decay": WEIGHT_DECAY if get_optimizer_info(rule).has_weight_decay else 0.0}
    made = create_optimizer_v2(params, opt=rule, **given, **EXECUTORS.get(executor or "", {}))  # type: ignore[arg-type]
    if not isinstance(made, Optimizer):
        raise TypeError(f"{rule} makes a {type(made).__name__}, expected an optimizer of this package")
    return made


def run(
    tasks: Sequence[Task], settings: Settings, recording: Recording, watch: Callable[[str], None] = lambda _: None
) -> None:
    """Carry out all heats; the recording holds what is done at every moment, whatever interrupts."""
    start = time.perf_counter()
    device = torch.device(settings.device)
    try:
        if settings.importing:
            watch("importing descend")
            recording.importing = importing(settings.importing)
        with tempfile.TemporaryDirectory(prefix="descend-bench-") as folder:
            caches: dict[str, Path] = {}
            model, dtype = (tasks[0].model, tasks[0].dtype) if tasks else ("vit_s", "float32")
            for rule in settings.compiled:
                watch(f"compiling {rule}")
                caches[rule] = Path(folder) / rule
                recording.compiles.append(compiling(rule, model, dtype, settings.device, caches[rule]))
            for task in tasks:
                watch(f"{task.rule} on {task.model}, {task.dtype}")
                with _cache(caches.get(task.rule)):
                    recording.heats.append(heat(task, settings.rounds, device))
                gc.collect()  # optimizers are in cycles with their hooks
    except KeyboardInterrupt:
        recording.stopped = True
    finally:
        recording.seconds = time.perf_counter() - start


def new_recording(tasks: Sequence[Task], settings: Settings) -> Recording:
    """An empty recording that says where it is made, and of what."""
    packages = ("descend", "torch", *(peer.package for task in tasks for peer in task.peers))
    given = {"rounds": settings.rounds, "device": settings.device, "lr": LR, "weight_decay": WEIGHT_DECAY}
    return Recording(machine(torch.device(settings.device)), versions(dict.fromkeys(packages)), given)


@contextmanager
def _cache(folder: Path | None) -> Iterator[None]:
    """Let compiled code come from a folder, where it has been compiled before."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
        elif folder is not None:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)


def heat(task: Task, rounds: int, device: torch.device) -> Heat:
    """Make all contenders of a rule, let them step in turn, then measure what a step allocates."""
    shapes, dtype = shapes_of(task.model), getattr(torch, task.dtype)
    result = _described(task, shapes, dtype)
    entered: list[Entered] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peers deprecate, and complain about the CPU
        for line, make in _entries(task):
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
            line.state_bytes = measure.state_bytes(optimizer)
            line.extra_bytes = measure.extra_bytes(contender, device)
            if isinstance(optimizer, Optimizer):
                line.predicted_bytes = sum(
                    optimizer.state_bytes(p, group) for group in optimizer.param_groups for p in group["params"]
                )
    return result


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {scrubbed(error)}"


def _described(task: Task, shapes: Shapes, dtype: torch.dtype) -> Heat:
    """The heat before anything has run. Everything here follows from shapes."""
    params = [nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
    rule = ours(task.rule, params)
    equal = Counter(shape for shape in shapes if len(shape) > 1)
    return Heat(
        task.rule,
        task.model,
        task.dtype,
        type(rule).reach,
        get_optimizer_info(task.rule).second_order,
        tensors=len(shapes),
        elements=sum(map(math.prod, shapes)),
        bytes=bytes_of(rule),
        period=rule.defaults.get("precondition_frequency", 1),
        batch_bytes=max((math.prod(shape) * n * params[0].element_size() for shape, n in equal.items()), default=0),
    )


def _entries(task: Task) -> Iterator[tuple[Line, Make]]:
    for executor in task.executors:
        yield Line("descend", executor), lambda params, executor=executor: ours(task.rule, params, executor)  # type: ignore[misc]
    info = get_optimizer_info(task.rule)
    options: dict[str, Any] = {"lr": LR}
    if info.has_weight_decay:
        options["weight_decay"] = WEIGHT_DECAY
    if info.has_momentum:
        options |= {"momentum": 0.9, "nesterov": bool((info.defaults or {}).get("nesterov"))}
    for peer in task.peers:
        for how, make in peer.ways(task.rule, options):
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
            line.light, line.share = adamw.gbps / line.gbps, line.gbps / max(adamw.gbps, copy.gbps)
