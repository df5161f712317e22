"""Written kernels, interpreted on the virtual GPU inside real steps, give what the loop gives on the host."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import virtual
from helpers import small
from helpers.cases import ROWS
from interpreter import interpreted
from torch import Tensor
from torch.nn import Parameter
from virtual import VirtualGpu

import descend
from descend.engine.executors import fused

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
LR = {row.name: row.lr for row in ROWS}
SHAPES = ((), (5,), (6, 64), (40, 256), (4, 3, 3, 3))
Place = Callable[[Tensor], Tensor]


@dataclass
class Course:
    """Some steps of an optimizer; a case overrides what is special about it.

    Attributes:
        steps: how many.
    """

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
        optimizer = getattr(descend, self.rule)(
            self.groups(params), **{"lr": LR[self.rule], **self.options, **ways}
        )
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
        launched = sum(count for what, count in gpu.account.launches.items() if "tiled.py" in what)
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


class Now_and_then(Course):  # noqa: N801
    """Some gradients are late, or missing in between."""

    def gradient(self, place: Place, p: Parameter, step: int, i: int) -> Tensor | None:
        if (i == 2 and step == 0) or (i == 3 and step == 1):
            return None
        return super().gradient(place, p, step, i)


class Loaded(Course):
    """State comes from a checkpoint between steps."""

    def before(self, place: Place, optimizer: Any, params: list[Parameter], step: int) -> None:
        if step == 1:
            kept = copy.deepcopy(optimizer.state_dict())
            optimizer.load_state_dict(kept)


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


class Half_capturable(Course):  # noqa: N801
    """One of two groups has its scalars on the device."""

    def groups(self, params: list[Parameter]) -> Any:
        gpu = params[0].device.type == "cuda"
        return [{"params": params[::2]}, {"params": params[1::2], "capturable": gpu, "lr": 0.02}]


class Tensor_lr(Course):  # noqa: N801
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


CAP = {"capturable": True}
TINY = ((), (0,), (1,), (1, 1), (7,), (0, 3), (2, 8))
EDGES = [
    Course(shapes=TINY),
    Course("Lamb", shapes=TINY),
    Course(options={"state_dtype": "int8"}, shapes=TINY),
    Course(options=CAP, shapes=TINY),
    Unaligned(), Unaligned(dtype=BF16), Unaligned("Lamb"), Unaligned(options={"state_dtype": "int8"}, shapes=((16, 256), (5,))),
    UnalignedGradients(), UnalignedGradients(options={"state_dtype": "int8"}, shapes=((16, 256), (5,))),
    Turned(), Turned("Lamb"), Turned(options={"state_dtype": "int8"}), Turned(options={"state_dtype": "int4"}),
    TurnedParameters(), TurnedParameters("Lamb"), TurnedParameters(options={"state_dtype": "int8"}),
    TurnedParameters(options={"state_dtype": "int4"}),
    Course(dtype=torch.complex64), Turned(dtype=torch.complex64), Course("Lamb", dtype=torch.complex64),
    Now_and_then(), Now_and_then("Lamb"), Now_and_then(options=CAP),
    Loaded(), Loaded("Lamb"), Loaded(dtype=BF16), Loaded(options={"state_dtype": "int8"}), Loaded(options=CAP),
    Exchanged(), Exchanged("MADGRAD"), Exchanged(options={"state_dtype": "int8"}), Exchanged(options=CAP),
    Groups(), Groups("Lamb"), Groups(options=CAP), Groups(options={"state_dtype": "int8"}),
    Half_capturable(), Tensor_lr(), Tensor_lr(options=CAP),
    Scaled(), Scaled("Lamb"), Scaled(options=CAP), Scaled(dtype=BF16, options=CAP), Scaled("Prodigy", CAP), Scaled(options={"state_dtype": "int8"}),
    Infinite(options={"skip_nonfinite": True}), Infinite(options={"skip_nonfinite": True, **CAP}),
    Wide(), Wide(dtype=BF16), Wide("Lamb"),
    Course(options=CAP, shapes=((7,), (16,)) * 100),
    Course("Lamb", CAP, shapes=((7,), (16,)) * 40),
    Course("Lamb", shapes=((70000,), (8192,), (8193,))),
    Course(options={"offload_state": True}), Course("Lamb", {"offload_state": True}),
]  # fmt: skip


@pytest.mark.parametrize("course", EDGES, ids=lambda course: f"{type(course).__name__}-{course}")
def test_edges(course: Course, gpu: VirtualGpu) -> None:
    apart = compared(course, gpu)
    assert apart < (2e-2 if course.dtype is BF16 or "state_dtype" in course.options else 1e-5), apart
