"""Compiled execution: the same text as one pass over memory, in kernels that no schedule ever recompiles.

Parameters go in as flat views, eight to a call, with dynamic lengths; scalars as one small table, a row a parameter.
A text that asks for sums is compiled once for every round, up to where it asks, on copies of the state that the
compiler optimises away, and last as a whole: no direction is ever stored.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.executors import loop
from descend.engine.executors.profile import Profile, Scope, flags, profile, scalars
from descend.engine.job import Job, count, flatten, is_dense, real
from descend.engine.known import Across, Dims, Known, State
from descend.engine.slots import Slot
from descend.engine.text import advance, advance_stored, cast_scalars

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer

# Parameters a call. A compiled function takes a fixed number; fewer are filled up with scratch.
BUNDLE = 8
_PATIENCE = 2.0  # seconds of silence before a compile announces itself


@dataclass(frozen=True)
class Signature:
    """All that a kernel depends on, and so its key: its guards are switched off."""

    rule: type[Optimizer]
    flags: tuple[tuple[str, Any], ...]
    scalars: tuple[str, ...]
    slots: tuple[tuple[str, Slot, torch.dtype], ...]
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    maths: torch.dtype
    device: torch.device
    rounds: tuple[tuple[Scope, int], ...]
    order: tuple[int, ...] | None

    @property
    def shaped(self) -> bool:
        """Whether parameters go in with their shape; the order of their dimensions in memory is then fixed."""
        return self.order is not None

    def describe(self, stage: int) -> str:
        """A line for people: the rule, the pass, the dtype and the device."""
        passes = f", pass {stage + 1} of {len(self.rounds) + 1}" if self.rounds else ""
        return f"{self.rule.__name__} for {str(self.param_dtype).removeprefix('torch.')} on {self.device}{passes}"

    @property
    def bundle(self) -> int:
        """Parameters a call: one where the text needs their shapes."""
        return 1 if self.shaped else BUNDLE


def run(rule: type[Optimizer], jobs: Sequence[Job], totals: list[tuple[Tensor, ...]]) -> list[tuple[Any, ...]]:
    """Carry the jobs over one step, or as far as the first sum over all tensors that `totals` lacks."""
    tiny = [job for job in jobs if not compiles(rule, job)]
    partials = loop.run(rule, tiny, totals) if tiny else []
    bundles = list(_bundles(rule, [job for job in jobs if compiles(rule, job)]))
    for signature in dict.fromkeys(signature for signature, _ in bundles):
        for stage in range(len(signature.rounds) + 1):
            kernel(signature, stage)
    tables = _Tables()
    for signature, bundle in bundles:
        stopped = _carry(signature, bundle, totals, tables)
        if stopped is not None:
            partials.append(stopped)
            continue
        count(bundle)
    return partials


def compiles(rule: type[Optimizer], job: Job) -> bool:
    """Whether a kernel serves this parameter: lengths of 0 and 1 would be compiled for themselves."""
    return job.param.numel() > 1 and rule.reach != "matrix"


def check(kind: str, name: str, p: Tensor) -> None:
    """Raise unless a parameter can be compiled for: dtype and layout, and a compiler on this machine."""
    if p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise RuntimeError(
            f"{kind}: `fused=True` requires all the params to be floating point Tensors; parameter {name} is {p.dtype}"
        )
    if not is_dense(p):
        raise RuntimeError(
            f"{kind}: fused=True needs parameters that fill their memory without gaps; parameter {name} has strides "
            f"{p.stride()} for shape {tuple(p.shape)}: use p.contiguous(), or fused=False"
        )
    missing = _missing_compiler(p.device.type)
    if missing:
        raise RuntimeError(f"{kind}: fused=True compiles for {p.device.type}, and there is no {missing}; foreach=True works without")


def _missing_compiler(device: str) -> str | None:
    if device == "cpu":
        candidates = [os.environ.get("CXX"), "g++", "clang++", "c++", "cl"]
        if not any(shutil.which(candidate) for candidate in candidates if candidate):
            return "C++ compiler: install one (Debian: apt-get install g++, macOS: xcode-select --install)"
    elif find_spec("triton") is None and device != "mps":
        return "Triton: install it (pip install triton)"
    return None


def signature_of(rule: type[Optimizer], job: Job) -> Signature:
    """The kernel that serves this job."""
    needs: Profile = profile(rule, job)
    value = real(job.param)
    slots = tuple((name, slot, job.state[name].dtype) for name, slot in job.slots.items())
    dtypes = job.param.dtype, job.grad.dtype, job.maths
    order = _memory_order(value) if needs.shaped else None
    return Signature(rule, flags(job), scalars(job), slots, *dtypes, job.param.device, needs.rounds, order)


def _memory_order(x: Tensor) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory."""
    if x.is_contiguous():
        return tuple(range(x.dim()))
    return tuple(sorted(range(x.dim()), key=lambda d: -x.stride(d)))


def _bundles(rule: type[Optimizer], jobs: Sequence[Job]) -> Iterator[tuple[Signature, list[Job]]]:
    kinds: dict[Any, tuple[Signature, list[Job]]] = {}
    quick: dict[Any, Signature] = {}
    for job in jobs:
        shaped = rule.reach == "rows" or job.known["centralize_grad"] or job.known["adaptive_grad_clip"] is not None
        shape = job.param.stride() if shaped else None
        hint = (id(job.known), job.param.dtype, job.grad.dtype, job.param.device, shape)
        signature = quick.get(hint)
        if signature is None:
            signature = quick[hint] = signature_of(rule, job)
        kinds.setdefault(signature, (signature, []))[1].append(job)
    for signature, members in kinds.values():
        for start in range(0, len(members), signature.bundle):
            yield signature, members[start : start + signature.bundle]


class _Tables:
    """The scalars of this step as tensors, one row a parameter; each combination is made once."""

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}

    def table(self, signature: Signature, bundle: Sequence[Job]) -> Tensor:
        key = (signature, *(id(job.known) for job in bundle))
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(signature, bundle)
        return made

    def _make(self, signature: Signature, bundle: Sequence[Job]) -> Tensor:
        filled = [*bundle, *[bundle[0]] * (signature.bundle - len(bundle))]
        if bundle[0].group["capturable"]:
            def number(value: Any) -> Tensor:
                if isinstance(value, Tensor):
                    return value.to(torch.float64)
                return torch.full((), value, dtype=torch.float64, device=signature.device)

            rows = [torch.stack([number(job.known[name]) for name in signature.scalars]) for job in filled]
            return torch.stack(rows)
        rows = [[job.known[name] for name in signature.scalars] for job in filled]
        return torch.tensor(rows, dtype=torch.float64).to(signature.device, non_blocking=True)


def _carry(
    signature: Signature, bundle: Sequence[Job], totals: list[tuple[Tensor, ...]], tables: _Tables
) -> tuple[Any, ...] | None:
    """Run a bundle's passes; the partial sums where it has to wait for the other tensors."""
    inputs = _inputs(signature, bundle)
    table = tables.table(signature, bundle)
    sums: list[Any] = []
    overall = 0
    for stage, (scope, _) in enumerate(signature.rounds):
        if scope == "overall" and overall < len(totals):
            sums.append(torch.stack([total.to(signature.maths) for total in totals[overall]]))
            overall += 1
            continue
        partial = kernel(signature, stage)(*inputs, table, tuple(sums))
        if scope == "overall":
            return tuple(partial[: len(bundle)].sum(0).unbind(0))
        sums.append(partial)
    kernel(signature, len(signature.rounds))(*inputs, table, tuple(sums))
    return None


def _inputs(signature: Signature, bundle: Sequence[Job]) -> tuple[Any, ...]:
    """Parameters, gradients and, slot by slot, the state: flat, or in the parameter's shape where the text needs it."""
    params, grads = [], []
    state: list[list[Tensor]] = [[] for _ in signature.slots]
    for job in bundle:
        p, g = real(job.param.detach()), real(job.grad.detach())
        if g.stride() != p.stride():
            g = torch.empty_like(p, dtype=g.dtype).copy_(g)
        flat = not signature.shaped
        params.append(flatten(p) if flat else p)
        grads.append(flatten(g) if flat else g)
        for column, (name, slot, _) in zip(state, signature.slots, strict=True):
            t, like = real(job.state[name]), slot.like_parameter
            if like and t.stride() != p.stride():
                job.state[name] = torch.empty_like(job.param, dtype=job.state[name].dtype).copy_(job.state[name])
                t = real(job.state[name])
            column.append(flatten(t) if (like and flat) or t.dim() == 0 else t)
    missing = signature.bundle - len(bundle)
    if missing:
        scratch = _scratch(signature)
        params += scratch[0][:missing]
        grads += scratch[1][:missing]
        for column, spare in zip(state, scratch[2], strict=True):
            column += spare[:missing]
    return params, grads, state


@lru_cache(maxsize=256)
def _scratch(signature: Signature) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Tensors that nobody reads, to fill up a bundle."""
    return _blank(signature, [(2,)] * signature.bundle)


def _blank(
    signature: Signature, shapes: Sequence[tuple[int, ...]]
) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """Zeros for parameters of these shapes, their gradients and their state."""
    order = signature.order or tuple(range(len(shapes[0])))

    def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        value = torch.zeros([shape[d] for d in order], dtype=_real(dtype), device=signature.device)
        return value.permute([order.index(d) for d in range(len(order))])

    params = [zeros(shape, signature.param_dtype) for shape in shapes]
    grads = [zeros(shape, signature.grad_dtype) for shape in shapes]
    state = [
        [
            zeros(p.shape, dtype)
            if slot.like_parameter
            else torch.zeros(slot.shape_for(p) or (1,), dtype=dtype, device=signature.device)
            for p in params
        ]
        for _, slot, dtype in signature.slots
    ]
    return params, grads, state


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


class _Replay(Across):
    """Answers the rounds that are known; notes what the first unknown one asks for, and lets the text run out."""

    def __init__(self, known: Sequence[Any]) -> None:
        self.known = known
        self.asked = 0
        self.partials: tuple[Any, ...] | None = None

    def own(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        return self.overall(partials)

    def overall(self, partials: tuple[Any, ...]) -> tuple[Any, ...]:
        if self.asked < len(self.known):
            self.asked += 1
            return tuple(self.known[self.asked - 1])
        if self.partials is None:
            self.partials = partials
        return partials


def _text(signature: Signature, stage: int) -> Callable[..., Any]:
    """The function that is compiled: stage by stage up to the sums that it asks for, last of all the whole step."""
    rule, maths, names, shaped = signature.rule, signature.maths, signature.scalars, signature.shaped
    fixed = dict(signature.flags)
    final = stage == len(signature.rounds)
    scopes = tuple(scope for scope, _ in signature.rounds[:stage])
    slot_names = tuple(name for name, _, _ in signature.slots)
    # A double of no dimension is a constant to the compiler, so single numbers of state go in as vectors of one.
    single = frozenset(name for name, slot, _ in signature.slots if slot.reduce == "all")
    count = signature.bundle

    def step(params: Any, grads: Any, state: Any, table: Any, sums: Any) -> Any:
        found = []
        for i in range(count):
            p, g = params[i], grads[i]
            row = table[i].unbind(0)
            s = {n: column[i][0] if n in single else column[i] for n, column in zip(slot_names, state)}
            answers = [
                (total if scope == "overall" or shaped else total[i]) for scope, total in zip(scopes, sums)
            ]
            answers = [list(a) if isinstance(a, (tuple, list)) else a.unbind(0) for a in answers]
            across = _Replay(answers)
            k = Known({**fixed, "numel": p.numel(), "ndim": p.dim(), "shape": p.shape}, across)
            for name, value in zip(names, row):
                setattr(k, name, value)
            if final:
                advance_stored(rule, maths, p, g, s, k)
            else:
                copies = State({name: t.to(maths, copy=True) for name, t in s.items()})
                advance(rule, p.to(maths, copy=True), g.to(maths), copies, cast_scalars(k, maths))
                found.append(across.partials)
        if final:
            return None
        if shaped:
            return found[0]
        return torch.stack([torch.stack(partials) for partials in found])

    # A code object of its own: the compiler counts its entries, and limits them, by code object.
    code = step.__code__.replace(co_name=f"{rule.__name__}_{stage}")
    return types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)


@lru_cache(maxsize=None)
def kernel(signature: Signature, stage: int) -> Callable[..., Any]:
    """The compiled text, having run once on scratch of distinct lengths so that the compiler ties none together."""
    text = _text(signature, stage)
    compiled = torch.compile(
        text, fullgraph=True, dynamic=True, options={"guard_filter_fn": lambda guards: [False for _ in guards]}
    )
    with _announced(signature.describe(stage)):
        compiled(*_example(signature, stage))
    return compiled


def _example(signature: Signature, stage: int) -> tuple[Any, ...]:
    """Inputs whose sizes all differ, with the sums that the stages before give."""
    if signature.order is None:
        shapes = [(1031 + 34 * i,) for i in range(signature.bundle)]
    else:
        shapes = [tuple(37 + 2 * d for d in range(len(signature.order)))]
    inputs = _blank(signature, shapes)
    table = torch.full((signature.bundle, len(signature.scalars)), 0.5, dtype=torch.float64, device=signature.device)
    sums: list[Any] = []
    for earlier, (scope, _) in enumerate(signature.rounds[:stage]):
        partial = _text(signature, earlier)(*inputs, table, tuple(sums))
        sums.append(partial.sum(0) if scope == "overall" else partial)
    return *inputs, table, tuple(sums)


class _announced:
    """Says on stderr what is being compiled once it takes longer than a moment."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.timer = threading.Timer(_PATIENCE, self._say)
        self.timer.daemon = True
        self.timer.start()

    def _say(self) -> None:
        print(f"descend: compiling {self.what} ...", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
