"""What the processes of the tests do: train the small problem with its parameters spread in some way.

Every function here runs on all four processes; those that a layout has no use for take part in nothing but its making.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import small
import torch
import torch.distributed as dist
from cases import ROWS, Row
from processes import Piece
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from descend.engine.executors import kernels
from descend.engine.sharding.layout import full

# A vector, one row, few rows (some pieces are empty), odd sizes, a matrix large enough to be factored, a convolution.
SHAPES = ((5,), (1, 7), (3, 4), (6, 4), (18, 17), (4, 3, 3, 3))


@functools.cache
def mesh(*sizes: int) -> DeviceMesh:
    """A mesh of the first processes."""
    count = 1
    for n in sizes:
        count *= n
    names = ("a", "b")[: len(sizes)]
    return DeviceMesh("cpu", torch.arange(count).view(sizes), mesh_dim_names=names)


def _rows(shape: Sequence[int], index: int) -> list[Any]:
    return [Shard(0)]


def _columns(shape: Sequence[int], index: int) -> list[Any]:
    return [Shard(1) if len(shape) > 1 else Replicate()]


def _mixed(shape: Sequence[int], index: int) -> list[Any]:
    """As tensor parallelism leaves a model: rows here, columns there, norms everywhere."""
    return [Replicate() if len(shape) < 2 else Shard(index % 2)]


def _crossed(shape: Sequence[int], index: int) -> list[Any]:
    return [Shard(0), *_mixed(shape, index)]


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Sequence[int], int], list[Any]]]] = {
    "1 rank": ((1,), _rows),
    "2 ranks": ((2,), _rows),
    "3 ranks": ((3,), _rows),
    "4 ranks": ((4,), _rows),
    "columns": ((2,), _columns),
    "replicas of shards": ((2, 2), lambda shape, index: [Replicate(), Shard(0)]),
    "tensor parallel": ((2,), _mixed),
    "shards of tensor parallel": ((2, 2), _crossed),
}


def row_of(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def options_of(name: str, **more: Any) -> dict[str, Any]:
    """The busiest variant that can be spread."""
    options = {**small.busiest(name), **more}
    options.pop("still", None)
    if name == "Prodigy":
        options.pop("slice_p", None)
    return options


def whole(x: Any) -> Tensor:
    """A copy of all of a tensor, on every process that has a piece."""
    return full(x).detach().clone()


def spread(x: Tensor, on: DeviceMesh, placements: Sequence[Any]) -> Tensor:
    """A DTensor of what every process has."""
    return distribute_tensor(x, on, placements, src_data_rank=None)


def parameters(layout: str, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> list[nn.Parameter] | None:
    """The small problem's parameters; None on a process that has no part in the layout."""
    sizes, place = LAYOUTS[layout]
    on = mesh(*sizes)
    if on.get_coordinate() is None:
        return None
    made = small.parameters(dtype, shapes)
    return [nn.Parameter(spread(p.detach(), on, place(p.shape, i))) for i, p in enumerate(made)]


def gradient(p: Tensor, step: int, index: int) -> Tensor:
    """All of a parameter's gradient."""
    return small.noise(p.shape, p.dtype, step, index) * (1 + step % 3)


def set_gradients(params: Sequence[Any], step: int) -> None:
    """The same full gradients on every layout, and in one process."""
    for i, p in enumerate(params):
        g = gradient(p, step, i)
        p.grad = spread(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g


def take_steps(optimizer: Any, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        set_gradients(small.parameters_of(optimizer), step)
        optimizer.step()
        optimizer.zero_grad()


def found(optimizer: Any) -> dict[str, Any]:
    """All of the parameters and of their state; pieces are joined where the result arrives."""
    params = small.parameters_of(optimizer)
    states = [{name: piece(x) for name, x in optimizer.state.get(p, {}).items()} for p in params]
    return {"values": [piece(p) for p in params], "states": states}


def piece(x: Any) -> Any:
    """A copy of what is here of a tensor, to be joined without a collective; of all of it where it is cut otherwise."""
    if not isinstance(x, DTensor) or any(type(placement) not in (Shard, Replicate) for placement in x.placements):
        return whole(x)
    dims = tuple(placement.dim if isinstance(placement, Shard) else None for placement in x.placements)
    return Piece(x.to_local().detach().clone(), x.device_mesh.mesh, dims)


def trained(
    name: str,
    layout: str,
    steps: int = 3,
    dtype: torch.dtype = torch.float64,
    shapes: Any = SHAPES,
    **options: Any,
) -> Any:
    """Where an optimizer ends on a layout."""
    params = parameters(layout, dtype, shapes)
    if params is None:
        return None
    if options.get("fused"):
        kernels.BUNDLE = 2  # as in the process that asks
    optimizer = small.make(row_of(name), params, **options_of(name, **options))
    take_steps(optimizer, steps)
    return found(optimizer)


def alone(
    name: str, steps: int = 3, dtype: torch.dtype = torch.float64, shapes: Any = SHAPES, **options: Any
) -> dict[str, Any]:
    """Where it ends in one process, on ordinary tensors; for the test itself."""
    optimizer = small.make(row_of(name), small.parameters(dtype, shapes), **options_of(name, **options))
    take_steps(optimizer, steps)
    return found(optimizer)


class Model(nn.Module):
    """Parameters whose gradients are given numbers, for ``fully_shard``."""

    def __init__(self, dtype: torch.dtype = torch.float64, shapes: Any = SHAPES) -> None:
        super().__init__()
        self.weights = nn.ParameterList(small.parameters(dtype, shapes))

    def forward(self, step: int) -> Tensor:
        terms = [(gradient(p, step, i) * p).sum() for i, p in enumerate(self.weights)]
        return torch.stack([term.double() for term in terms]).sum()


def trained_by_fsdp(
    name: str, ranks: int, steps: int = 3, early: bool = False, ignored: Sequence[int] = (), **options: Any
) -> Any:
    """Where an optimizer ends under ``fully_shard``, some parameters left whole."""
    import descend

    on = mesh(ranks)
    if on.get_coordinate() is None:
        return None
    model = Model()
    fully_shard(model, mesh=on, ignored_params={model.weights[i] for i in ignored})
    given = options_of(name, **options)

    def make(params: Any) -> Any:
        return small.make(row_of(name), params, **given)

    optimizer = descend.step_in_backward(model, make) if early else make(model.parameters())
    for step in range(steps):
        model(step).backward()
        optimizer.step()
        optimizer.zero_grad()
    return found(optimizer)


# ------------------------------------------------------------------------------------------------ several rules

#: For each rule of a mixture the places of its parameters.
MIXTURES: dict[str, dict[str, tuple[int, ...]]] = {
    "sums": {"lamb": (0, 4), "prodigy": (1, 3), "adafactorbv": (2, 5)},
    "matrices": {"muon": (3, 4), "lamb": (0, 1), "adamw": (2,), "soap": (5,)},
}


def _mixture(which: str, params: Sequence[nn.Parameter], **options: Any) -> Any:
    import descend

    parts = MIXTURES[which].items()
    return descend.Mixed([{"params": [params[i] for i in at], "rule": rule} for rule, at in parts], lr=1e-2, **options)


def mixture(which: str, layout: str, **options: Any) -> Any:
    """Where a mixture of rules ends on a layout."""
    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    optimizer = _mixture(which, params, **options)
    take_steps(optimizer, 3)
    return found(optimizer)


def mixture_alone(which: str, **options: Any) -> dict[str, Any]:
    optimizer = _mixture(which, small.parameters(torch.float64, SHAPES), **options)
    take_steps(optimizer, 3)
    return found(optimizer)


def collectives_of_mixtures(layout: str, which: str) -> Any:
    """The collectives of the second step: of the mixture, and of each of its rules on all parameters."""
    from torch.distributed.tensor.debug import CommDebugMode

    import descend

    counts = {}
    for name in ("mixture", *MIXTURES[which]):
        params = parameters(layout, torch.float64, SHAPES)
        if params is None:
            return None
        optimizer: Any = (
            _mixture(which, params) if name == "mixture" else descend.get_optimizer_class(name)(params, lr=1e-2)
        )
        take_steps(optimizer, 1)
        set_gradients(small.parameters_of(optimizer), 1)
        with CommDebugMode() as counted:
            optimizer.step()
        counts[name] = counted.get_total_counts()
    return counts


# ------------------------------------------------------------------------------------------------ what it costs


def collectives(name: str, layout: str, count: int, shape: tuple[int, ...] = (20, 18), **options: Any) -> Any:
    """How many collectives the second step takes with this many parameters of one shape."""
    from torch.distributed.tensor.debug import CommDebugMode

    params = parameters(layout, torch.float64, [shape] * count)
    if params is None:
        return None
    optimizer = small.make(row_of(name), params, **options)
    take_steps(optimizer, 1)
    set_gradients(params, 1)
    with CommDebugMode() as counted:
        optimizer.step()
    return counted.get_total_counts()


# ------------------------------------------------------------------------------------------------ faults


def with_gradients_missing(name: str, layout: str, missing: dict[int, Sequence[int]], **options: Any) -> Any:
    """Where it ends if in the second step some ranks (keys) have no gradient for some parameters (values)."""
    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    optimizer = small.make(row_of(name), params, **options_of(name, **options))
    for step in range(3):
        set_gradients(params, step)
        if step == 1:
            for i in missing.get(dist.get_rank(), ()):
                params[i].grad = None
        optimizer.step()
    return found(optimizer)


def alone_with_zeros(name: str, zeros: dict[int, tuple[int, int]], gone: Sequence[int] = (), **options: Any) -> Any:
    """The same in one process: rows of some gradients are zero in the second step, others are not there."""
    optimizer = small.make(row_of(name), small.parameters(torch.float64, SHAPES), **options_of(name, **options))
    for step in range(3):
        params = small.parameters_of(optimizer)
        set_gradients(params, step)
        for i, p in enumerate(params):
            if step == 1 and i in zeros:
                p.grad[slice(*zeros[i])] = 0
            if step == 1 and i in gone:
                p.grad = None
        optimizer.step()
    return found(optimizer)


def with_a_nan(layout: str, broken: int) -> Any:
    """Parameters before and after a step in which one rank has a NaN, and after another step."""
    import descend

    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    optimizer = descend.Lamb(params, lr=0.1, skip_nonfinite=True)
    take_steps(optimizer, 1)
    before = found(optimizer)
    set_gradients(params, 1)
    if dist.get_rank() == broken:
        params[4].grad._local_tensor[0, 0] = torch.nan
    optimizer.step()
    after = found(optimizer)
    take_steps(optimizer, 1, 2)
    return before, after, found(optimizer)


def disagreeing(what: str) -> str:
    """The message at the first step where rank 1 has something else."""
    import descend

    params = parameters("2 ranks", torch.float64, SHAPES)
    if params is None:
        return ""
    odd = dist.get_rank() == 1
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5 if odd and what == "options" else 0.1}
    if odd and what == "order":
        params[2], params[3] = params[3], params[2]
    optimizer = descend.Lamb(params, **options)
    set_gradients(params, 0)
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return "no error"


def refused(
    name: str, placements: str, shape: tuple[int, ...] = (20, 32), dtype: str = "float64", **options: Any
) -> Any:
    """The message with which an optimizer refuses a parameter that lies so."""
    from torch.distributed.tensor import Partial

    on = mesh(2)
    if on.get_coordinate() is None:
        return None
    places = {"rows": Shard(0), "columns": Shard(1), "depth": Shard(2), "partial": Partial()}
    x = DTensor.from_local(torch.ones(shape, dtype=getattr(torch, dtype)), on, [places[placements]], run_check=False)
    try:
        small.make(row_of(name), [("layer.weight", nn.Parameter(x))], **options)
    except ValueError as error:
        return str(error)
    return "no error"


# ------------------------------------------------------------------------------------------------ others who move weights


def wrapped(which: str, layout: str) -> Any:
    """Where Lookahead, SAM and a schedule-free optimizer with evaluations end."""
    params = parameters(layout, torch.bfloat16 if which == "lookahead" else torch.float64, SHAPES)
    return None if params is None else _wrapped(which, params)


def wrapped_alone(which: str) -> Any:
    """The same in one process; for the test itself."""

    dtype = torch.bfloat16 if which == "lookahead" else torch.float64
    return _wrapped(which, small.parameters(dtype, SHAPES))


def _wrapped(which: str, params: list[nn.Parameter]) -> Any:
    import descend

    optimizer: Any = {
        "lookahead": lambda: descend.Lookahead(descend.AdamW(params, lr=0.1), k=2),
        "sam": lambda: descend.SAM(descend.AdamW(params, lr=0.1), rho=0.5, adaptive=True),
        "schedule-free": lambda: descend.ScheduleFreeAdamW(params, lr=0.1),
    }[which]()
    for step in range(5):
        set_gradients(params, step)
        if which == "sam":
            optimizer.first_step()
            set_gradients(params, step + 100)
        optimizer.step()
        if which == "schedule-free":
            optimizer.eval()
            if step < 4:
                optimizer.train()
    return found(optimizer)


def slow_weights_loaded(layout: str, from_whole: bool) -> Any:
    """A run of Lookahead's that goes on in another optimizer, from its own state_dict or from one of whole tensors."""
    import descend

    params = parameters(layout, torch.float64, SHAPES)
    if params is None:
        return None
    first = descend.Lookahead(descend.AdamW(params, lr=0.1), k=2)
    take_steps(first, 3)
    saved = first.state_dict()
    if from_whole:
        saved["state"] = {i: {name: whole(x) for name, x in state.items()} for i, state in saved["state"].items()}
    again = [nn.Parameter(p.detach().clone()) for p in params]
    second = descend.Lookahead(descend.AdamW(again, lr=0.1), k=2)
    second.load_state_dict(saved)
    alike = all(
        type(second.state[q][name]) is type(x)
        and getattr(second.state[q][name], "placements", 0) == getattr(x, "placements", 0)
        for p, q in zip(params, again, strict=True)
        for name, x in first.state[p].items()
    )
    for optimizer in (first, second):
        take_steps(optimizer, 2, 3)
    return found(first), found(second), alike


# ------------------------------------------------------------------------------------------------ checkpoints


def model_on(layout: str, dtype: torch.dtype = torch.float32, shapes: Any = SHAPES, seed: int = 0) -> Any:
    """A model whose parameters lie in a layout, and that layout's processes."""
    params = parameters(layout, dtype, shapes)
    if params is None:
        return None
    model = nn.Module()
    model.weights = nn.ParameterList(params)
    if seed:
        with torch.no_grad():
            for p in params:
                p.mul_(0.5)
    return model


def saved_and_loaded(
    name: str, layouts: Sequence[str], folder: str, dtype: torch.dtype, shapes: Any, flat: bool, **options: Any
) -> Any:
    """A run on one layout, saved after two steps, and its continuation on another, with what both had in between."""
    import warnings

    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    form = StateDictOptions(flatten_optimizer_state_dict=flat)
    given = options_of(name, **options)
    results: dict[str, Any] = {}

    def both(model: Any, optimizer: Any) -> dict[str, Any]:
        optimizers = get_optimizer_state_dict(model, optimizer, options=form)
        return {"model": get_model_state_dict(model), "optimizer": optimizers}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = model_on(layouts[0], dtype, shapes)
        if first is not None:
            optimizer = small.make(row_of(name), first.named_parameters(), **given)
            results["start"] = found(optimizer)["values"]
            both(first, optimizer)  # asking before the first step changes nothing
            results["asked"] = found(optimizer)["values"]
            take_steps(optimizer, 2)
            group = mesh(*LAYOUTS[layouts[0]][0]).get_group()
            dcp.save(both(first, optimizer), checkpoint_id=folder, process_group=group)
            results["saved"] = found(optimizer)
            take_steps(optimizer, 1, 2)
            results["uninterrupted"] = found(optimizer)
        dist.barrier()
        second = model_on(layouts[1], dtype, shapes, seed=1)
        if second is not None:
            optimizer = small.make(row_of(name), second.named_parameters(), **given)
            loaded = both(second, optimizer)
            group = mesh(*LAYOUTS[layouts[1]][0]).get_group()
            dcp.load(loaded, checkpoint_id=folder, process_group=group)
            set_model_state_dict(second, loaded["model"])
            set_optimizer_state_dict(second, optimizer, loaded["optimizer"], options=form)
            results["loaded"] = found(optimizer)
            take_steps(optimizer, 1, 2)
            results["continued"] = found(optimizer)
        dist.barrier()
    return results


# ------------------------------------------------------------------------------------------------ whole parameters


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


# ------------------------------------------------------------------------------------------------ torch's own ways


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
