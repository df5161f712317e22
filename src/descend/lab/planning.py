"""What an optimizer would cost on machines that are not here: collectives and bytes, counted on faked processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn

from descend.lab.bench.traffic import bytes_of
from descend.lab.faking import AnsweredReads, faked, mesh_of, shard
from descend.lab.models import Model, Shape
from descend.lab.names import created
from descend.lab.sizes import MIB, predicted_bytes
from descend.lab.table import NOTHING, Table, plural


@dataclass(frozen=True)
class Machines:
    """What there will be.

    Attributes:
        ranks: processes, each with a shard of every parameter.
        bandwidth: GB/s that a process sends to the others.
        memory_bandwidth: GB/s of its own memory.
        latency: microseconds that a collective takes however little it carries.
    """

    ranks: int
    bandwidth: float
    memory_bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cost:
    """One optimizer's step on the first process.

    Attributes:
        collectives: of the optimizer, those of the model's own sharding apart.
        sent: bytes that the process sends in them.
        state: bytes of its state.
        moved: bytes that its rule moves in its memory.
        fsdp: bytes that FSDP2 sends in a step: weights gathered twice, gradients summed once.
    """

    optimizer: str
    collectives: int
    sent: int
    state: int
    moved: int
    fsdp: int

    def communication_ms(self, machines: Machines) -> float:
        """Latencies and bytes, nothing overlapped."""
        return 1e-3 * machines.latency * self.collectives + 1e-6 * self.sent / machines.bandwidth

    def memory_ms(self, machines: Machines) -> float:
        """The rule's own bytes; matrix products come on top."""
        return 1e-6 * self.moved / machines.memory_bandwidth


class Counted:
    """Stands in for torch's collectives: counts them, and the bytes that one process of a ring sends in them."""

    def __init__(self) -> None:
        self.collectives = 0
        self.sent = 0.0

    def all_reduce(self, tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> None:
        """The tensor goes round twice."""
        size = dist.get_world_size(group)
        self.collectives += 1
        self.sent += 2 * (size - 1) / size * tensor.nbytes

    def all_to_all_single(
        self, output: Tensor, sent: Tensor, incoming: list[int], sizes: list[int], group: Any, async_op: bool
    ) -> Counted:
        """Everything goes out but what is one's own."""
        self.collectives += 1
        self.sent += sent.nbytes - sizes[dist.get_rank(group)] * sent.element_size()
        output.zero_()
        return self

    def wait(self) -> None:
        """It is there already."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """In place of torch's own, for so long."""
        sums = patch.object(dist, "all_reduce", self.all_reduce)
        exchanges = patch.object(dist, "all_to_all_single", self.all_to_all_single)
        with sums, exchanges:
            yield


def cost(name: str, shapes: Sequence[Shape], ranks: int, dtype: torch.dtype = torch.float32, **options: Any) -> Cost:
    """Count what the second step of an optimizer costs the first of these processes; no tensor has data."""
    with faked(ranks) if ranks > 1 else nullcontext():
        mesh = mesh_of(ranks) if ranks > 1 else None
        params = [nn.Parameter(shard(shape, mesh, dtype)) for shape in shapes]
        optimizer = created(name, params, 1e-3, 1e-3, **options)
        state = predicted_bytes(optimizer)
        counted = Counted()
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p)
            counted = Counted()
            with counted.counting(), AnsweredReads():  # type: ignore[no-untyped-call]
                optimizer.step()
        whole = [nn.Parameter(shard(shape, None, dtype)) for shape in shapes]
        moved = bytes_of(created(name, whole, 1e-3, 1e-3, **options)) / ranks
    fsdp = 3 * (ranks - 1) / ranks * sum(p.nbytes for p in whole)
    return Cost(name, counted.collectives, int(counted.sent), state, int(moved), int(fsdp))


def table(model: Model, costs: Sequence[Cost], machines: Machines, ways: str) -> Table:
    """A row for each optimizer."""
    size = f"{model.elements / 1e9:.2f} billion" if model.elements >= 1e9 else f"{model.elements / 1e6:.1f} million"
    title = f"{model.title}, {size} parameters, {ways}, on {plural(machines.ranks, 'process', 'processes')}"
    if machines.ranks > 1:
        title += f" at {machines.bandwidth:g} GB/s"
    head = ["optimizer", "state MiB", "memory ms", "collectives", "MiB sent", "% of FSDP2", "network ms"]
    rows = [
        [
            one.optimizer,
            f"{one.state / MIB:.1f}",
            f"{one.memory_ms(machines):.2f}",
            str(one.collectives),
            f"{one.sent / MIB:.2f}",
            f"{100 * one.sent / one.fsdp:.1f}" if one.fsdp else NOTHING,
            f"{one.communication_ms(machines):.2f}",
        ]
        for one in costs
    ]
    return Table(title, head, rows) if machines.ranks > 1 else Table(title, head[:3], [row[:3] for row in rows])


def markdown(made: Table) -> str:
    """A page of the documentation."""
    parts = ["# Planning for many machines", made.markdown(), "## How it is computed", METHOD]
    return "\n\n".join(parts) + "\n"


METHOD = """\
- Nothing is timed: an optimizer takes two steps on tensors without data, each parameter cut along its first dimension, and
  the collectives and bytes of the second one are counted on the first process. Tests hold the counts to those of real
  processes.
- **state** is one process's part. Weights and gradients come on top.
- **memory** is the time to move what the rule must move in a process's memory: the bytes of one process over W, over its
  memory's bandwidth. Products of matrices come on top, and are divided among the owners.
- **collectives** and **MiB sent** are the optimizer's own. FSDP2 itself sends 3·(W−1)/W times the parameters in a step
  (gathers them twice, sums gradients once); the next column says what the optimizer adds to that. A sum of n bytes over
  a ring of W processes sends 2·(W−1)/W·n from each; what goes to an owner is sent once, but for the owner's own part.
- **network** is latency·collectives + bytes/bandwidth, with nothing overlapped. Elementwise rules have none; rules of
  tensors and rows send a few numbers for each tensor, row or column, whatever W is; rules of matrices send gradient,
  parameter and state to an owner, and parameter and state back: (4 + 4 + s)·n/W + (4 + s)·n/W bytes for n elements in
  float32 with s bytes of state each."""
