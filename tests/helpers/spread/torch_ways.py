"""DistributedDataParallel, ZeRO, tensor parallelism as torch has them, and what a step sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from helpers import small
from helpers.spread.moved import model_on
from helpers.spread.problem import (
    SHAPES,
    Model,
    found,
    mesh,
    options_of,
    parameters,
    row_of,
    set_gradients,
    spread,
    take_steps,
)


def trained_by_ddp(name: str, **options: Any) -> Any:
    """Where an optimizer ends under DistributedDataParallel, each process with gradients of its own."""
    model = nn.parallel.DistributedDataParallel(Scaled())
    optimizer = small.make(row_of(name), model.parameters(), **options_of(name, **options))
    for step in range(3):
        model(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found(optimizer)


class Scaled(Model):
    """Gradients that differ between processes, and whose mean is the given one to the last bit."""

    def forward(self, step: int) -> Tensor:
        return super().forward(step) * (2 * (dist.get_rank() % 2))


def trained_by_zero(name: str, **options: Any) -> Any:
    """Where an optimizer ends in torch's ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    import descend

    params = small.parameters(torch.float64, SHAPES)
    kind = descend.partitioned(getattr(descend, name))
    given = {"lr": row_of(name).lr, **options_of(name, **options)}
    optimizer = ZeroRedundancyOptimizer(params, optimizer_class=kind, **given)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


def counted(name: str, shapes: Sequence[tuple[int, ...]], ranks: int) -> Any:
    """The collectives of the second step and the bytes that this process sends, as `descend plan` counts them."""
    from unittest.mock import patch

    import descend
    from descend.lab.planning import Counted

    on = mesh(ranks)
    if on.get_coordinate() is None:
        return None
    params = [nn.Parameter(spread(torch.full(shape, 0.02), on, [Shard(0)])) for shape in shapes]
    optimizer = descend.create_optimizer_v2(params, opt=name, lr=1e-3, weight_decay=1e-3)
    found, real_sum, real_exchange = Counted(), dist.all_reduce, dist.all_to_all_single

    def all_reduce(tensor: Tensor, **given: Any) -> Any:
        found.all_reduce(tensor, group=given["group"])
        return real_sum(tensor, **given)

    def all_to_all_single(output: Tensor, sent: Tensor, incoming: Any, sizes: Any, **given: Any) -> Any:
        found.all_to_all_single(output, sent, incoming, sizes, **given)
        return real_exchange(output, sent, incoming, sizes, **given)

    for step in range(2):
        set_gradients(params, step)
        if step == 0:
            optimizer.step()
    with patch.object(dist, "all_reduce", all_reduce), patch.object(dist, "all_to_all_single", all_to_all_single):
        optimizer.step()
    return found.collectives, int(found.sent)


class Perceptron(nn.Module):
    """Two layers, cut as tensor parallelism cuts them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6, dtype=torch.float64)
        self.rise, self.fall = nn.Linear(6, 16, dtype=torch.float64), nn.Linear(16, 6, dtype=torch.float64)
        for i, p in enumerate(self.parameters()):
            p.data.copy_(small.noise(p.shape, p.dtype, -1, i))

    def forward(self, x: Tensor) -> Tensor:
        return self.fall(torch.tanh(self.rise(self.norm(x))))


def trained_by_torch(name: str, way: str, **options: Any) -> Any:
    """Where an optimizer ends with a model that torch's own functions have cut."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    whole_mesh = mesh(2, 2)
    model = Perceptron()
    if way != "alone":
        plan = {"rise": ColwiseParallel(), "fall": RowwiseParallel()}
        if way == "sequence":
            plan = {
                "norm": SequenceParallel(),
                "rise": ColwiseParallel(input_layouts=Shard(1)),
                "fall": RowwiseParallel(output_layouts=Replicate()),
            }
        parallelize_module(model, whole_mesh["b"], plan)
        if way == "fsdp and tensor":
            fully_shard(model, mesh=whole_mesh["a"])
    given = {**row_of(name).variants[0], **options}
    optimizer = small.make(row_of(name), model.parameters(), **given)
    for step in range(3):
        x = small.noise((3, 4, 6), torch.float64, step, 0)
        if way == "sequence":
            x = x.chunk(2, 1)[whole_mesh["b"].get_local_rank()]
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return found(optimizer)


def frozen_in_between(layout: str) -> Any:
    """Whether state of a parameter that is frozen, and of one that comes late, is there after a checkpoint."""
    import descend

    model = model_on(layout, torch.float32)
    if model is None:
        return None
    optimizer = descend.AdamW(model.named_parameters(), lr=0.1)
    take_steps(optimizer, 2)
    model.weights[2].requires_grad_(False)
    saved = optimizer.state_dict()
    before = found(optimizer)
    again = descend.AdamW(model.named_parameters(), lr=0.1)
    again.load_state_dict(saved)
    return before, found(again)


def partial_gradients() -> Any:
    """A step whose gradients are still to be summed, beside the step with their sums."""
    from torch.distributed.tensor import Partial

    import descend

    on = mesh(2)
    if on.get_coordinate() is None:
        return None
    ends = []
    for partial in (True, False):
        params = parameters("2 ranks", torch.float64, SHAPES)
        assert params is not None
        optimizer = descend.Lamb(params, lr=0.1)
        set_gradients(params, 0)
        if partial:
            for i, p in enumerate(params):
                mine = small.noise(p.shape, p.dtype, 0, i) * (0.25 if dist.get_rank() else 0.75)
                p.grad = DTensor.from_local(mine, on, [Partial()], run_check=False)
        optimizer.step()
        ends.append(found(optimizer))
    return ends


def ascended_with_a_gradient_missing() -> Any:
    """SAM, whose norm is over all gradients, where one rank has no gradient for its piece; and with zeros in its place."""
    import descend

    ends = []
    for gone in (True, False):
        params = parameters("2 ranks", torch.float64, SHAPES)
        if params is None:
            return None
        optimizer = descend.SAM(descend.Lars(params, lr=0.1))

        def gradients(step: int, params: Any = params, gone: bool = gone) -> None:
            set_gradients(params, step)
            if dist.get_rank() == 1:
                params[3].grad._local_tensor.zero_()
                params[3].grad = None if gone else params[3].grad

        gradients(0)
        optimizer.first_step()
        gradients(1)
        optimizer.step()
        ends.append(found(optimizer))
    return ends


def idle_at_first() -> Any:
    """ZeRO with a first step at lr 0, in which some processes have gradients of zero; and a key of the user's own."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    import descend

    params = small.parameters(torch.float64, SHAPES)
    optimizer = ZeroRedundancyOptimizer(params, optimizer_class=descend.partitioned(descend.Lamb), lr=0.0)
    for group in optimizer.optim.param_groups:
        group["mine"] = object()
    for step in range(2):
        for i, p in enumerate(params):
            p.grad = small.noise(p.shape, p.dtype, step, i) * (0 if step == 0 and i in (2, 3, 4) else 1)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * step
        optimizer.step()
    return [p.detach().clone() for p in params]
