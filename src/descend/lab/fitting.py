"""What a training step holds in memory, for every way to keep weights and state: computed from shapes, nothing is made."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import descend
from descend.engine.executors.offload import BATCH_BYTES
from descend.lab.faking import faked, mesh_of, shard
from descend.lab.models import Model, Shape
from descend.lab.names import created
from descend.lab.sizes import GIB, show
from descend.lab.table import NOTHING, Table

#: How weights and state may be kept, and how far each is from training in float32: the order of their losses in
#: docs/memory.md. State in bfloat16 comes last: rounding to the nearest loses what a slow average gains in a step.
WEIGHTS: dict[tuple[str, str | None], int] = {
    ("float32", None): 0,
    ("bfloat16", "split"): 1,
    ("bfloat16", "kahan"): 2,
    ("bfloat16", "stochastic"): 3,
    ("bfloat16", None): 9,
}
NEARLY = 4  # choices that do not fit which are shown
STATES = {"float32": 0, "int8": 2, "int4": 3, "bfloat16": 5}


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        optimizer: its name.
        dtype: of the weights and the gradients.
        master: how weights in bfloat16 keep what their dtype cannot hold.
        state: the dtype of the state.
        in_backward: parameters move inside backward, and gradients are freed at once.
        offload: state is in the host's memory.
    """

    optimizer: str
    dtype: str = "float32"
    master: str | None = None
    state: str = "float32"
    in_backward: bool = False
    offload: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The options of the optimizer that are not the default."""
        found: dict[str, Any] = {}
        if self.state != "float32":
            found["state_dtype"] = torch.bfloat16 if self.state == "bfloat16" else self.state
        if self.dtype == "bfloat16" and self.master != "kahan":
            found["master"] = self.master
        if self.offload:
            found["offload_state"] = True
        return found

    @property
    def coarseness(self) -> int:
        """How far it is from training in float32."""
        return WEIGHTS[self.dtype, self.master] + STATES[self.state]

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """What is preferred comes first: state on the device, then fine numbers, then gradients that can accumulate."""
        return self.offload, self.coarseness, self.in_backward

    @property
    def words(self) -> list[str]:
        """Weights, state and steps, in words."""
        weights = self.dtype if self.dtype == "float32" else f"bfloat16, {self.master or 'nearest'}"
        steps = "in backward" if self.in_backward else "in step()"
        return [weights, f"{self.state} on the host" if self.offload else self.state, steps]


@dataclass(frozen=True)
class Need:
    """Bytes that one process holds at the peak of a training step, activations apart.

    Attributes:
        way: how it trains.
        weights: parameters, or its pieces of them.
        gradients: all of them, or the most that exist at a time where parameters move in backward.
        state: of the optimizer, on the device.
        host: state in the host's memory.
        room: what sharded layers take while they are whole, and state from the host while it visits.
    """

    way: Way
    weights: int
    gradients: int
    state: int
    host: int = 0
    room: int = 0

    @property
    def peak(self) -> int:
        """All that is on the device."""
        return self.weights + self.gradients + self.state + self.room

    def dominates(self, other: Need) -> bool:
        """Whether it takes no more and gives up no more."""
        mine = (self.peak, self.way.coarseness, self.way.in_backward, self.way.offload)
        theirs = (other.peak, other.way.coarseness, other.way.in_backward, other.way.offload)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def ways(optimizer: str, ranks: int = 1) -> Iterator[Way]:
    """Every way to train with an optimizer; sharded state cannot be on the host."""
    offloads = (False, True) if ranks == 1 else (False,)
    for (dtype, master), state, early, offload in product(WEIGHTS, STATES, (False, True), offloads):
        yield Way(optimizer, dtype, master, state, early, offload)


def needs(
    model: Model, optimizers: Sequence[str], ranks: int = 1, watch: Callable[[str], None] = lambda _: None
) -> list[Need]:
    """What each way takes, those left out that an optimizer refuses; the preferred ways of an optimizer come first."""
    found = []
    with faked(ranks) if ranks > 1 else nullcontext():
        mesh = mesh_of(ranks) if ranks > 1 else None
        for name in optimizers:
            watch(name)
            mine = [need for way in ways(name, ranks) if (need := needed(model, way, mesh)) is not None]
            found += sorted(mine, key=lambda need: (*need.way.rank, need.peak))
    return found


def needed(model: Model, way: Way, mesh: DeviceMesh | None = None) -> Need | None:
    """What one way takes; None if the optimizer refuses it."""
    counts, ranks = Counter(model.shapes), mesh.size() if mesh else 1
    dtype = getattr(torch, way.dtype)
    params = [nn.Parameter(shard(shape, mesh, dtype)) for shape in counts]
    make = _making(way)
    try:
        if way.in_backward:
            optimizer = descend.step_in_backward(nn.ParameterList(params), make)
        else:
            optimizer = make(params)
    except ValueError:
        return None
    group = optimizer.param_groups[0]
    each = [optimizer.state_bytes(p, group) for p in params]
    state = sum(n * size for n, size in zip(counts.values(), each, strict=True))
    item = dtype.itemsize
    pieces = {shape: item * _piece(shape, ranks) for shape in counts}
    weights = sum(pieces[shape] for shape in model.shapes)
    gradients = weights
    if way.in_backward:  # a gradient that several layers add to exists until the last of them
        held = sum(pieces[shape] for name, shape in model.parameters if name in model.shared)
        gradients = held + max((pieces[s] for name, s in model.parameters if name not in model.shared), default=0)
    room = _gathered(model, item) if ranks > 1 else 0
    if not way.offload:
        return Need(way, weights, gradients, state, room=room)
    return Need(way, weights, gradients, 0, state, room + min(state, 2 * max(BATCH_BYTES, *each)))


def _making(way: Way) -> Callable[[Any], Any]:
    return lambda params: created(way.optimizer, params, 1e-3, **way.options)


def _piece(shape: Shape, ranks: int) -> int:
    """Elements of the first process's piece."""
    return math.prod((-(-shape[0] // ranks), *shape[1:])) if shape else 1


def _gathered(model: Model, item: int) -> int:
    """Whole layers under FSDP2: the weights of what is in no block, of a block and of the next one, and a block's gradient."""
    sizes = [item * sum(map(math.prod, layer)) for layer in model.layers]
    blocks = sizes[1:] or sizes
    return sizes[0] + 2 * max(blocks) + max(sizes)


def best(found: Sequence[Need], memory: int) -> list[Need]:
    """For each optimizer the preferred way that fits, or the smallest one; those that fit come first."""
    chosen = []
    for name in dict.fromkeys(need.way.optimizer for need in found):
        mine = [need for need in found if need.way.optimizer == name]
        fitting = [need for need in mine if need.peak <= memory]
        chosen.append(min(fitting, key=lambda need: (need.way.rank, need.peak)) if fitting else _smallest(mine))
    return sorted(chosen, key=lambda need: need.peak > memory)


def _smallest(found: Sequence[Need]) -> Need:
    return min(found, key=lambda need: (need.peak, need.way.rank))


def choices(found: Sequence[Need]) -> list[Need]:
    """The ways that no other one of the same optimizer is better than in every respect."""
    return [
        need
        for need in found
        if not any(other.way.optimizer == need.way.optimizer and other.dominates(need) for other in found)
    ]


def table(title: str, found: Sequence[Need], memory: int, parts: bool) -> Table:
    """A row for each way; with its parts instead of the optimizer's name where all are of one."""
    head = ["weights", "state", "steps", "peak GiB", "left GiB"]
    if parts:
        head[3:3] = ["weights GiB", "gradients GiB", "state GiB", "room GiB"]
    else:
        head.insert(0, "optimizer")
    host = any(need.host for need in found)
    rows = []
    for need in found:
        sizes = [need.weights, need.gradients, need.state, need.room] if parts else []
        left = _gib(memory - need.peak) if need.peak <= memory else "too much"
        names = [] if parts else [need.way.optimizer]
        rows.append([*names, *need.way.words, *map(_gib, sizes), _gib(need.peak), left])
        if host:
            rows[-1].append(_gib(need.host) if need.host else NOTHING)
    return Table(title, [*head, "host GiB"] if host else head, rows)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def call(model: Model, way: Way, ranks: int = 1) -> str:
    """Python that trains this way, to paste where `model` is there."""
    kind = descend.get_optimizer_class(way.optimizer, bind_defaults=False)
    info = descend.get_optimizer_info(way.optimizer)
    options = [f"lr={_rate(info.suggested_lr)}"] if info.suggested_lr else []
    options += [f"{name}={_value(value)}" for name, value in way.options.items()]
    lines = ["import torch"] if "torch." in " ".join(options) or way.dtype == "bfloat16" else []
    lines.append("import descend")
    own = not kind.__module__.startswith("descend.")
    name = getattr(kind, "__name__", way.optimizer)
    if own:
        lines.append(f"from {kind.__module__} import {name}")
    if info.defaults:
        made = "descend.create_optimizer_v2({}, " + ", ".join([f'"{way.optimizer}"', *options]) + ")"
    else:
        made = f"{'' if own else 'descend.'}{name}(" + ", ".join(["{}", *options]) + ")"
    if ranks > 1:
        lines.append("from torch.distributed.fsdp import fully_shard")
    lines.append("")
    if way.dtype == "bfloat16":
        lines.append("model = model.to(torch.bfloat16)")
    if ranks > 1:
        lines += _sharding(model)
    if way.in_backward:
        lines.append(f"optimizer = descend.step_in_backward(model, lambda params: {made.format('params')})")
    else:
        lines.append(f"optimizer = {made.format('model.parameters()')}")
    return "\n".join(lines)


def _sharding(model: Model) -> Iterator[str]:
    """Each repeated block is sharded, then the model."""
    lists = dict.fromkeys(
        found[1].rstrip(".") for name, _ in model.parameters if (found := re.match(r"((?:.*?\.)?)\d+\.", name))
    )
    for path in lists:
        yield f"for block in {'.'.join(part for part in ('model', path) if part)}:"
        yield "    fully_shard(block)"
    yield "fully_shard(model)"


def _rate(bounds: tuple[float, float]) -> str:
    return f"{math.sqrt(bounds[0] * bounds[1]):.0e}".replace("e-0", "e-").replace("e+00", "")


def _value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def summary(model: Model, chosen: Sequence[Need], memory: int, ranks: int) -> str:
    """One sentence: whether the model fits, and how."""
    first = chosen[0]
    many = model.elements >= 1e9
    size = f"{model.elements / (1e9 if many else 1e6):.2f} {'billion' if many else 'million'} parameters"
    where = show(memory) + (f" on each of {ranks} processes" if ranks > 1 else "")
    weights, state, steps = first.way.words
    how = (
        f"{first.way.optimizer}, weights in {weights}, state in {state}, steps {steps}: {show(first.peak)} at the peak"
    )
    if first.peak > memory:
        return f"{model.title}, {size}, does not fit into {where}. The least is {how}."
    return f"{model.title}, {size}, fits into {where}: {how}, {show(memory - first.peak)} left for activations."


METHOD = (
    "Weights and gradients have the weights' dtype; state is what the optimizer keeps between steps, with the part of "
    "the weights that bfloat16 lacks where there is one. Activations come on top, and the temporaries of a step: a few "
    "chunks of at most 4 MiB, or a batch of equal matrices for rules of matrices.",
    "With steps in backward the gradients are the largest one, and those that several layers add to: these exist until "
    "the last of them is through. Gradients cannot accumulate over several passes then, nor be clipped by their total norm.",
    "Room is for what visits: state from the host, in two batches, or the layers that FSDP2 has whole at a time: what is in "
    "no block, a block and the next one, and a block's gradient.",
    "The order of preference: state on the device before state on the host, then what is nearest to float32 (split keeps all bits, "
    "kahan the rounding error, stochastic the mean; int8 before int4), then gradients that may accumulate.",
)


def answers(found: Sequence[Need], memory: int) -> tuple[list[Need], list[Need]]:
    """What to show: the best way of each optimizer, and the choices with the first one that fit or nearly do."""
    chosen = best(found, memory)
    others = choices([need for need in found if need.way.optimizer == chosen[0].way.optimizer])
    beyond = sorted(need.peak for need in others if need.peak > memory)[:NEARLY]
    return chosen, [need for need in others if need.peak <= max([memory, *beyond])]


def tables(chosen: Sequence[Need], others: Sequence[Need], memory: int) -> list[Table]:
    """The best way of each optimizer, and all choices with the first."""
    found = [table("The best way of each optimizer", chosen, memory, parts=False)] if len(chosen) > 1 else []
    return [*found, table(f"The choices with {others[0].way.optimizer}", others, memory, parts=True)]


def calls(chosen: Sequence[Need], others: Sequence[Need], memory: int) -> list[Need]:
    """The ways to print calls of, the best first."""
    fitting = [need for need in (chosen if len(chosen) > 1 else others) if need.peak <= memory]
    return (fitting or [chosen[0]])[:3]


def markdown(model: Model, found: Sequence[Need], memory: int, ranks: int) -> str:
    """A page with the choices and the calls."""
    chosen, others = answers(found, memory)
    parts = [
        f"# What fits: {model.title} in {show(memory)}",
        summary(model, chosen, memory, ranks),
        *(f"```python\n{call(model, need.way, ranks)}\n```" for need in calls(chosen, others, memory)),
        *(each.markdown() for each in tables(chosen, others, memory)),
        "## How it is computed",
        "\n".join(f"- {line}" for line in METHOD),
    ]
    return "\n\n".join(parts) + "\n"
