"""What an optimizer would cost on machines that are not here: its collectives are counted on processes that are faked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import descend
from descend.lab.bench.traffic import bytes_of
from descend.lab.grid import grid

Shapes = Sequence[tuple[int, ...]]
MIB = 2**20


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


def cost(name: str, shapes: Shapes, ranks: int, **options: Any) -> Cost:
    """Count what the second step of an optimizer costs the first of these processes."""
    with faked(ranks):
        mesh = init_device_mesh("cpu", (ranks,))
        params = [nn.Parameter(_shard(shape, mesh)) for shape in shapes]
        optimizer: Any = descend.create_optimizer_v2(params, opt=name, lr=1e-3, weight_decay=1e-3, **options)
        for step in range(2):
            for p in params:
                p.grad = torch.zeros_like(p)
                p.grad._local_tensor.fill_(1e-3)  # type: ignore[attr-defined]
            counted = Counted()
            with counted.counting():
                optimizer.step()
            if step == 0:
                state = sum(optimizer.state_bytes(p, g) for g in optimizer.param_groups for p in g["params"])
        whole = sum(4 * math.prod(shape) for shape in shapes)
        plain = [nn.Parameter(torch.empty(p.shape, device="meta")) for p in params]
        unspread: Any = descend.create_optimizer_v2(plain, opt=name, lr=1e-3, weight_decay=1e-3, **options)
        moved = bytes_of(unspread) / ranks
    fsdp = 3 * (ranks - 1) / ranks * whole
    return Cost(name, counted.collectives, int(counted.sent), state, int(moved), int(fsdp))


def _shard(shape: tuple[int, ...], mesh: Any) -> Any:
    rows = -(-shape[0] // mesh.size()) if shape else 1
    piece = torch.full((min(rows, shape[0]), *shape[1:]), 0.02)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(piece, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)


@contextmanager
def faked(ranks: int) -> Iterator[None]:
    """Processes that answer every collective at once, with nothing in it."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("there are processes already: plan in one that has no process group")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def table(costs: Sequence[Cost], machines: Machines) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of what to show."""
    head = ["optimizer", "collectives", "MiB sent", "of FSDP2's", "state MiB", "communication ms", "own memory ms"]
    rows = [
        [
            one.optimizer,
            str(one.collectives),
            f"{one.sent / MIB:.2f}",
            f"{one.sent / one.fsdp:.1%}" if one.fsdp else "–",
            f"{one.state / MIB:.1f}",
            f"{one.communication_ms(machines):.2f}",
            f"{one.memory_ms(machines):.2f}",
        ]
        for one in costs
    ]
    return head, rows


def markdown(model: str, costs: Sequence[Cost], machines: Machines) -> str:
    """A page of the documentation."""
    head, rows = table(costs, machines)
    options = f"--model {model} --ranks {machines.ranks} --bandwidth {machines.bandwidth:g}"
    options += f" --memory-bandwidth {machines.memory_bandwidth:g} --latency {machines.latency:g}"
    told = [
        "# Planning for many machines",
        f"Generated by `descend plan {options} --out docs/plan.md`. Nothing here was timed: collectives and bytes are "
        "counted while the optimizer's second step runs on faked processes, and tests hold the counts to those of real "
        "ones. `descend plan` does it for your model, ranks and bandwidths.",
        f"A step of the first process of {machines.ranks}, every parameter cut along its first dimension, float32:",
        grid(head, rows),
        METHOD,
    ]
    return "\n\n".join(told) + "\n"


METHOD = """\
- **collectives** and **MiB sent** are the optimizer's own. FSDP2 itself sends 3·(W−1)/W times the parameters in a step
  (gathers them twice, sums gradients once); the column beside says what the optimizer adds to that. A sum of n bytes over
  a ring of W processes sends 2·(W−1)/W·n from each; what goes to an owner is sent once, but for one's own.
- **communication** is latency·collectives + bytes/bandwidth, with nothing overlapped. Elementwise rules have none; rules of
  tensors and rows send a few numbers for each tensor, row or column, whatever W is; rules of matrices send gradient,
  parameter and state to an owner, and parameter and state back: (4 + 4 + s)·n/W + (4 + s)·n/W bytes for n elements with s
  bytes of state each.
- **own memory** is what the rule must move in a process's memory, over its bandwidth: the bytes of one process over W.
  Products of matrices come on top, and are divided among the owners.
- **state** is one process's part; parameters and gradients are 8·n/W bytes more."""
