"""Written kernels, interpreted on the virtual GPU inside real steps, give what the loop gives on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import virtual
from interpreter import interpreted
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map
from virtual import VirtualGpu

import descend
from descend.engine.executors import kernels, tiled
from descend.engine.plan import trial_jobs
from helpers import small
from helpers.cases import ROWS

F32, BF16, F64, C64 = torch.float32, torch.bfloat16, torch.float64, torch.complex64
LR = {row.name: row.lr for row in ROWS}
SHAPES = ((), (5,), (6, 64), (40, 256), (4, 3, 3, 3))
Place = Callable[[Tensor], Tensor]


@dataclass
class Course:
    """Some steps of an optimizer; cases override what is special about them."""

    rule: str = "AdamW"
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = F32
    shapes: Sequence[tuple[int, ...]] = SHAPES
    steps: int = 3

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return "-".join([self.rule, dtype, *(f"{name}={value}" for name, value in self.options.items())])

    def parameter(self, place: Place, i: int) -> Parameter:
        """A parameter on its device."""
        return Parameter(place(small.noise(self.shapes[i], self.dtype, -1, i)))

    def groups(self, params: list[Parameter]) -> Any:
        """What the optimizer gets."""
        return params

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor | None:
        """A gradient on its device."""
        return place(small.noise(p.shape, p.dtype, step, i))

    def before(self, place: Place, optimizer: Any, params: list[Parameter], step: int) -> None:
        """What happens before a step, its gradients being there."""

    def run(self, place: Place, **ways: Any) -> tuple[list[Tensor], Any]:
        """The parameters on the host after all steps, and the optimizer."""
        params = [self.parameter(place, i) for i in range(len(self.shapes))]
        optimizer = getattr(descend, self.rule)(self.groups(params), **{"lr": LR[self.rule], **self.options, **ways})
        for step in range(self.steps):
            for i, p in enumerate(params):
                p.grad = self.gradient(place, p, step, i)
            self.before(place, optimizer, params, step)
            optimizer.step()
        return [virtual.to_host(p.detach()) for p in params], optimizer


def compared(course: Course, gpu: VirtualGpu) -> float:
    """The largest difference to the loop, as a share of how far a parameter has moved."""
    launched = 0
    with interpreted():
        ours, _ = course.run(virtual.to_gpu, fused=True)
        launched = sum(count for what, count in gpu.account.launches.items() if "triton_launch.py" in what)
    assert launched >= course.steps, gpu.account
    expected, _ = course.run(torch.clone, fused=False, foreach=False)
    start = [small.noise(shape, course.dtype, -1, i) for i, shape in enumerate(course.shapes)]
    for x in ours:
        assert x.isfinite().all()
    wide = torch.complex128 if course.dtype.is_complex else F64
    return small.distance(*([x.to(wide) for x in xs] for xs in (ours, expected, start)))


class Unaligned(Course):
    """Parameters begin 4 bytes after a multiple of 16."""

    def parameter(self, place: Place, i: int) -> Parameter:
        value = small.noise(self.shapes[i], self.dtype, -1, i)
        return Parameter(place(torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)))


class UnalignedGradients(Course):
    """Gradients do."""

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor:
        value = small.noise(p.shape, self.dtype, step, i)
        return place(torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape))


class Turned(Course):
    """Gradients lie in memory in another order than their parameters; those of the last are expanded."""

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor:
        value = small.noise(p.shape, self.dtype, step, i)
        if p.dim() == 4:
            return place(value.contiguous(memory_format=torch.channels_last))
        if i == 3:
            return place(value[:1]).expand(p.shape)
        return place(value.t().contiguous()).t() if p.dim() == 2 else place(value)


class TurnedParameters(Course):
    """Parameters do not lie in the order of their dimensions; gradients come in that of the dimensions."""

    def parameter(self, place: Place, i: int) -> Parameter:
        value = small.noise(self.shapes[i], self.dtype, -1, i)
        if value.dim() == 4:
            return Parameter(place(value.contiguous(memory_format=torch.channels_last)))
        return Parameter(place(value.t().contiguous().t() if value.dim() == 2 else value))


class Sporadic(Course):
    """Some gradients are late, or missing in between."""

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor | None:
        if (i == 2 and step == 0) or (i == 3 and step == 1):
            return None
        return super().gradient(place, p, step, i)


class Loaded(Course):
    """State comes from a checkpoint between steps."""

    def before(self, place: Place, optimizer: Any, params: list[Parameter], step: int) -> None:
        if step == 1:
            kept = optimizer.state_dict()
            optimizer.load_state_dict(tree_map(lambda x: copy.deepcopy(virtual.to_host(x)), kept))


class Exchanged(Course):
    """Parameters get other memory between steps."""

    def before(self, place: Place, optimizer: Any, params: list[Parameter], step: int) -> None:
        if step == 1:
            for i, p in enumerate(params):
                p.data = place(small.noise(p.shape, p.dtype, -7, i))


class Groups(Course):
    """A group for every parameter, with an lr and a weight decay of its own."""

    def groups(self, params: list[Parameter]) -> Any:
        return [{"params": [p], "lr": 0.01 * (i + 1), "weight_decay": 0.1 * i} for i, p in enumerate(params)]


class HalfCapturable(Course):
    """One of two groups has its scalars on the device."""

    def groups(self, params: list[Parameter]) -> Any:
        gpu = params[0].device.type == "cuda"
        return [{"params": params[::2]}, {"params": params[1::2], "capturable": gpu, "lr": 0.02}]


class TensorLr(Course):
    """lr is a tensor, which changes in place."""

    def groups(self, params: list[Parameter]) -> Any:
        self.lr = torch.tensor(0.01)
        if self.options.get("capturable") and params[0].device.type == "cuda":
            self.lr = virtual.to_gpu(self.lr)
        return [{"params": params, "lr": self.lr}]

    def before(self, place: Place, optimizer: Any, params: list[Parameter], step: int) -> None:
        self.lr.fill_(0.01 * (step + 1))


class Scaled(Course):
    """A GradScaler leaves its scale and, in the second step, that something is not finite."""

    def before(self, place: Place, optimizer: Any, params: list[Parameter], step: int) -> None:
        optimizer.grad_scale = place(torch.full((), 4.0))
        optimizer.found_inf = place(torch.full((), float(step == 1)))


class Infinite(Course):
    """A gradient is not finite in the second step."""

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor:
        value = small.noise(p.shape, self.dtype, step, i)
        return place(value / 0 if step == 1 and i == 3 else value)


class Wide(Course):
    """Gradients have another dtype than their parameters."""

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor:
        p.grad_dtype = None  # type: ignore[attr-defined]
        return place(small.noise(p.shape, F32 if self.dtype is BF16 else BF16, step, i))


CAP, INT8, INT4 = {"capturable": True}, {"state_dtype": "int8"}, {"state_dtype": "int4"}
SKIP, OFFLOAD = {"skip_nonfinite": True}, {"offload_state": True}
TINY, BLOCKS = ((), (0,), (1,), (1, 1), (7,), (0, 3), (2, 8)), ((16, 256), (5,))
MANY = ((7,), (16,)) * 100

#: Kernels of each class: elementwise, sums over tensors and over all of them, single numbers, blocks, storages of bf16.
CLASSES = [
    Course(), Course(dtype=F64), Course(dtype=BF16), Course(dtype=BF16, options={"master": "split"}),
    Course(dtype=BF16, options={"master": "stochastic"}), Course("NvNovoGrad"), Course(options=INT8, shapes=BLOCKS),
]  # fmt: skip
SLOW_CLASSES = [
    Course("Lamb"), Course("Lamb", dtype=BF16), Course("Lamb", dtype=F64), Course("Lamb", INT8), Course("Prodigy"),
    Course("Lion"), Course("MADGRAD"), Course("Lars"), Course("NAdamW"), Course("StableAdamW"), Course("RMSpropTF"),
    Course(options=INT8), Course(options=INT4), Course(dtype=BF16, options=INT8), Course(dtype=C64),
    Course("Lion", dtype=BF16, options={"master": "stochastic"}), Course("Lamb", shapes=((70000,), (8192,), (8193,))),
]  # fmt: skip
EDGES = [
    Course(shapes=TINY), Unaligned(), UnalignedGradients(), Turned(), TurnedParameters(), Sporadic(), Loaded(),
    Exchanged(), Groups(), HalfCapturable(), TensorLr(options=CAP), Scaled(options=CAP), Infinite(options=SKIP),
    Wide(),
]  # fmt: skip
SLOW_EDGES = [
    Course("Lamb", shapes=TINY), Course(options=INT8, shapes=TINY), Course(options=CAP, shapes=TINY),
    Unaligned(dtype=BF16), Unaligned("Lamb"), Unaligned(options=INT8, shapes=BLOCKS),
    UnalignedGradients(options=INT8, shapes=BLOCKS), Turned("Lamb"), Turned(options=INT8), Turned(options=INT4),
    Turned(dtype=C64), TurnedParameters("Lamb"), TurnedParameters(options=INT8), TurnedParameters(options=INT4),
    Sporadic("Lamb"), Sporadic(options=CAP), Loaded("Lamb"), Loaded(dtype=BF16), Loaded(options=INT8),
    Loaded(options=CAP), Exchanged("MADGRAD"), Exchanged(options=INT8), Exchanged(options=CAP), Groups("Lamb"),
    Groups(options=CAP), Groups(options=INT8), TensorLr(), Scaled(), Scaled("Lamb"), Scaled(dtype=BF16, options=CAP),
    Scaled("Prodigy", CAP), Scaled(options=INT8), Infinite(options={**SKIP, **CAP}), Wide(dtype=BF16), Wide("Lamb"),
    Course(options=CAP, shapes=MANY, steps=2), Course("Lamb", CAP, shapes=MANY[:80], steps=2),
    Course(options=OFFLOAD), Course("Lamb", OFFLOAD),
]  # fmt: skip


def name(course: Course) -> str:
    """What a case is called."""
    return "-".join([*([] if type(course) is Course else [type(course).__name__]), str(course)])


def cases(quick: Sequence[Course], slow: Sequence[Course]) -> list[Any]:
    return [*quick, *[pytest.param(course, marks=pytest.mark.slow) for course in slow]]


def tolerance(course: Course) -> float:
    """A number in the middle between two codes may go to either; in bf16 its step is a tenth of the way."""
    if "state_dtype" in course.options:
        return 0.1 if course.dtype is BF16 else 1e-2
    return {BF16: 0.0 if course.rule == "AdamW" else 5e-3, F64: 1e-13}.get(course.dtype, 2e-5)


@pytest.mark.parametrize("course", cases(CLASSES, SLOW_CLASSES), ids=name)
def test_classes(course: Course, gpu: VirtualGpu, triton: object) -> None:
    apart = compared(course, gpu)
    assert apart <= tolerance(course), apart


@pytest.mark.parametrize("course", cases(EDGES, SLOW_EDGES), ids=name)
def test_edges(course: Course, gpu: VirtualGpu, triton: object) -> None:
    apart = compared(course, gpu)
    assert apart <= tolerance(course), apart


#: What a user's lines may do with a gradient and a parameter.
WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "g**3": lambda g, p: g**3,
    "g**-3": lambda g, p: g**-3,
    "g**0": lambda g, p: g**0,
    "g**1.5": lambda g, p: g**1.5,
    "(-2)**g": lambda g, p: (-2.0) ** torch.round(g),
    "round": lambda g, p: torch.round(2 * g),
    "int % 3": lambda g, p: ((g * 10).to(torch.int32) % 3).float(),
    "int // 3": lambda g, p: ((g * 10).to(torch.int32) // 3).float(),
    "int / 3": lambda g, p: (g * 10).to(torch.int32) / 3,
    "int >> 2": lambda g, p: ((g * 100).to(torch.int32) >> 2).float(),
    "~": lambda g, p: (~(g > 0)) * g,
    "bool + bool": lambda g, p: ((g > 0) + (p > 0)) * g,
    "bf16": lambda g, p: (g.bfloat16() * p.bfloat16() + g.bfloat16()).float(),
    "where": lambda g, p: torch.where(g > 0, p, -1.0),
    "clamp": lambda g, p: torch.clamp(g, min=-torch.abs(p), max=torch.abs(p)),
    "addcmul": lambda g, p: torch.addcmul(g, g, p, value=0.3),
    "isnan": lambda g, p: torch.where(torch.isnan(torch.sqrt(g)), p, g),
}
UNWRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "erf": lambda g, p: torch.erf(g),
    "g % 0.3": lambda g, p: g % 0.3,
    "g // 0.3": lambda g, p: g // 0.3,
    "floor": lambda g, p: torch.div(g, 0.3, rounding_mode="floor"),
    "trunc": lambda g, p: torch.div(g, 0.3, rounding_mode="trunc"),
    "decimals": lambda g, p: torch.round(g, decimals=1),
    "alpha": lambda g, p: torch.add(g, p, alpha=2),
}


def own(function: Callable[[Tensor, Tensor], Tensor]) -> type[descend.Optimizer]:
    """A user's rule."""

    class Own(descend.Optimizer):
        def __init__(self, params: Any, lr: float = 0.1, **common: Any) -> None:
            super().__init__(params, {"lr": lr}, **common)

        @staticmethod
        def direction(p: Any, g: Any, s: Any, k: Any) -> Any:
            return function(g, p)

    return Own


@pytest.mark.parametrize("operation", WRITTEN)
def test_operations(operation: str, gpu: VirtualGpu, triton: object) -> None:
    """An operation gives what torch gives, infinities and NaNs included."""

    def moved(place: Place, **ways: Any) -> Tensor:
        p = Parameter(place(small.noise((40,), F32, 0, 0)))
        p.grad = place(small.noise((40,), F32, 0, 1) * (torch.arange(40) % 8 > 0))
        own(WRITTEN[operation])([p], **ways).step()
        return virtual.to_host(p.detach())

    with interpreted():
        ours = moved(virtual.to_gpu, fused=True)
    torch.testing.assert_close(ours, moved(torch.clone, fused=False, foreach=False), equal_nan=True)


@pytest.mark.parametrize("operation", UNWRITTEN)
def test_operations_without_a_form(operation: str, gpu: VirtualGpu, triton: object) -> None:
    """What no form stands for goes to the compiler rather than being written wrong."""
    p = Parameter(virtual.to_gpu(torch.ones(40)))
    rule = own(UNWRITTEN[operation])
    (job,) = trial_jobs(rule([p], fused=True))
    assert not tiled.is_written(kernels.signature_of(job.rule, job))
