"""One parameter's part of one step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from descend.engine.context import State
from descend.engine.rule import Rule
from descend.engine.sharding.layout import Dims, Layout, local
from descend.engine.slots import Slot
from descend.engine.storage import ElementRng, StorageSpec


@dataclass(eq=False)
class Job:
    """A parameter with its gradient and state, and what its rule knows at this step.

    Attributes:
        rule: what moves it.
        param: the optimizer's own parameter, which may be spread over processes.
        state: the optimizer's own state dict of it.
        local_param: the parameter, or the shard of this process; complex ones appear as pairs of reals in `view`.
        grad: its gradient, which is read only.
        local_state: the tensors of the state that belong to `local_param`; the optimizer's own dict unless it is a shard.
        layout: where the piece lies; None: the parameter is whole.
        present: whether there is a gradient here; where it is spread, another process may have one.
        offloaded: whether the state is stored on the host and the parameter does not.
        traits: its flags that depend on its shape.
        units: whether all dimensions but the first count as one for the rule, which saves a compiler many loops.
        held: the state with its names, as it was when the job was made.
        carries: whether its rule carries scalars from step to step.
        crosses: whether sums over the parameter go over other processes.
        compute_dtype: the dtype that this parameter's arithmetic is done in.
        is_plain: whether values rest as the rule takes them, so that it can work on the tensors themselves.
        live: the state as the rule sees it where it is plain.
        slots: what the rule declared for it.
        stored: the tensors of the state as they are stored, of which there may be several for a slot.
        storage: how values are made of them.
        dtype: the parameter's when the job was made; with `device` and `shape` what state and step depend on.
        group: the parameter group.
        known: scalars and flags for the text; jobs with the same dict can run as one batch.
        carried: the carried scalars after this step, written back once it is done.
    """

    rule: type[Rule]
    param: Tensor
    state: dict[str, Any]
    local_param: Tensor
    local_state: dict[str, Any]
    slots: dict[str, Slot]
    stored: dict[str, Slot]
    storage: StorageSpec
    group: dict[str, Any]
    traits: tuple[tuple[str, Any], ...]
    units: bool = False
    grad: Tensor = field(init=False)
    known: dict[str, Any] = field(init=False)
    carried: dict[str, Any] = field(init=False)
    done: bool = False
    layout: Layout | None = None
    present: bool = True
    offloaded: bool = False

    def __post_init__(self) -> None:
        p = self.local_param
        self.dtype, self.device, self.shape = self.param.dtype, self.param.device, self.param.shape
        self.ndim, self.numel = p.dim(), float(p.numel())
        self.held = tuple((name, self.state[name]) for name in ("step", *self.rule.carried, *self.stored))
        self.carries = bool(self.rule.carried)
        self.crosses = self.layout is not None and bool(self.layout.sharded)
        self.compute_dtype = torch.float64 if p.dtype in (torch.float64, torch.complex128) else torch.float32
        whole = self.layout is None and not self.offloaded and type(self.param) in (Tensor, torch.nn.Parameter)
        alike = p.dtype == self.compute_dtype and all(
            self.local_state[name].dtype == self.compute_dtype for name in self.stored
        )
        self.is_plain = (
            whole and alike and self.storage.is_plain and (p.dim() < 3 or not (self.units and self.rule.by_units))
        )
        self.live = State.of(self.local_state)

    def is_current(self, p: Tensor) -> bool:
        """Whether the job holds still: it is about this parameter, which is what it was, with the state that it had."""
        if self.param is not p or p.dtype is not self.dtype or p.shape != self.shape or p.device != self.device:
            return False
        state = self.state
        for name, tensor in self.held:
            if state.get(name) is not tensor:
                return False
        return self.layout is None or (
            self.local_param is local(p) and all(t is local(state[name]) for name, t in self.local_state.items())
        )

    @property
    def view(self) -> Tensor:
        """The parameter as its rule sees it: real, and of two dimensions at most where only units count."""
        return self.seen(self.local_param.detach())

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of the whole parameter as its rule sees it."""
        if self.layout is None:
            return tuple(self.view.shape)
        shape = (*self.layout.shape, 2) if self.local_param.is_complex() else self.layout.shape
        return shape if self.view.dim() == len(shape) else (shape[0], math.prod(shape[1:]))

    def crossed(self, dims: Dims) -> tuple[int, ...]:
        """The dimensions of the mesh over which sums go along dimensions that the rule sees."""
        if self.layout is None:
            return ()
        flat = dims is not None and self.view.dim() < len(self.layout.shape) and 1 in dims
        return self.layout.crossed((*(dims or ()), *range(2, len(self.layout.shape))) if flat else dims)

    def rng(self, start: int = 0) -> ElementRng | None:
        """Random bits for the elements from `start` on, where the parameter is rounded at random."""
        if "place" not in self.known:
            return None
        seed, slices, first = int(self.group.get("seed", 0)), None, 0
        if self.layout is not None:
            lengths = self.layout.slice_lengths()
            slices = lengths if lengths[0] != lengths[1] else None
            first = self.layout.first
        return ElementRng(seed, self.known["t"], self.known["place"], first, slices, start=start)

    def hold(self, name: str, value: Tensor) -> None:
        """Exchange a tensor of the state for one with other strides."""
        if self.layout is None:
            self.local_state[name] = value
            return
        slot = self.stored[name]
        self.state[name] = self.layout.wrap(value, self.layout.placed(slot), slot.shape_for(self.param))
        self.local_state[name] = local(self.state[name])

    def seen(self, x: Tensor) -> Tensor:
        """The parameter, or a tensor that lies in memory as it does, in the shape that the rule sees."""
        x = real(x)
        if not self.units or x.dim() < 3 or not is_dense(x):
            return x
        length = math.prod(x.shape[1:])
        return x.as_strided((x.size(0), length), (length, 1)) if x.stride(0) == length or x.size(0) == 1 else x


def real(x: Tensor) -> Tensor:
    """The tensor itself; a complex one as pairs of reals in the same memory."""
    return torch.view_as_real(x) if x.is_complex() else x


def is_plain(x: Tensor) -> bool:
    """Whether a tensor is what its memory says: of no class with a dispatch of its own, not lazily changed."""
    return type(x).__torch_dispatch__ is Tensor.__torch_dispatch__ and not (x.is_conj() or x.is_neg())


def resolved(x: Tensor) -> Tensor:
    """A tensor whose lazy conjugation or negation, if there is one, is carried out on a copy."""
    return x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x


def values_of(job: Job) -> tuple[Tensor, Tensor]:
    """The parameter and its gradient as reals, the gradient in the parameter's memory layout."""
    p, g = job.local_param.detach(), resolved(job.grad.detach() if job.grad.requires_grad else job.grad)
    if p.is_complex():
        p, g = real(p), real(g)
    if not (g.is_contiguous() and p.is_contiguous()) and g.stride() != p.stride():
        g = torch.empty_like(p, dtype=g.dtype).copy_(g)
    return p, g


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill one stretch of memory without gaps or overlaps, in any order of dimensions."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def flatten(x: Tensor) -> Tensor:
    """A dense tensor's elements in storage order, without a copy."""
    return x if x.dim() == 1 else x.as_strided((x.numel(),), (1,))
