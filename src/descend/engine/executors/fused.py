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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.executors import loop
from descend.engine.executors.profile import Profile, Scope, flags, profile, scalars
from descend.engine.job import Job, flatten, is_dense, real
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


def run(
    rule: type[Optimizer], jobs: list[Job], totals: list[tuple[Tensor, ...]], memory: dict[str, Any]
) -> list[tuple[Any, ...]]:
    """Carry the jobs over one step, or as far as the first sum over all tensors that `totals` lacks."""
    if not jobs:
        return []
    tiny, bundles = _planned(rule, jobs, memory)
    partials = loop.run(rule, tiny, totals)
    tables = _Tables()
    for bundle in bundles:
        stopped = bundle.carry(totals, tables)
        if stopped is not None:
            partials.append(stopped)
    return partials


def _planned(rule: type[Optimizer], jobs: list[Job], memory: dict[str, Any]) -> tuple[list[Job], list[Bundle]]:
    """The jobs in bundles, as before where they are the same, with all their kernels made."""
    dtypes = [job.grad.dtype for job in jobs]
    kept = memory.get("fused")
    if kept is not None and kept[0] == jobs and kept[1] == dtypes:
        return kept[2], kept[3]
    tiny = [job for job in jobs if not compiles(rule, job)]
    kinds: dict[Signature, list[Job]] = {}
    for job in jobs:
        if compiles(rule, job):
            kinds.setdefault(signature_of(rule, job), []).append(job)
    for signature in kinds:
        for stage in range(len(signature.rounds) + 1):
            kernel(signature, stage)
    bundles = [
        Bundle(signature, members[start : start + signature.bundle])
        for signature, members in kinds.items()
        for start in range(0, len(members), signature.bundle)
    ]
    memory["fused"] = jobs, dtypes, tiny, bundles
    return tiny, bundles


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
        raise RuntimeError(
            f"{kind}: fused=True compiles for {p.device.type}, and there is no {missing}; foreach=True works without"
        )


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
    return tuple(sorted(range(x.dim()), key=lambda d: -x.stride()[d]))


class _Tables:
    """The scalars of this step as tensors, one row a parameter; each combination is made once."""

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}

    def table(self, signature: Signature, jobs: Sequence[Job]) -> Tensor:
        """One row of scalars for each place in a bundle."""
        key = (signature, *{id(job.known): None for job in jobs}) if _uniform(jobs) else None
        made = self._made.get(key) if key is not None else None
        if made is None:
            made = _table(signature, jobs)
            if key is not None:
                self._made[key] = made
        return made


def _uniform(jobs: Sequence[Job]) -> bool:
    first = jobs[0].known
    return all(job.known is first for job in jobs)


def _table(signature: Signature, jobs: Sequence[Job]) -> Tensor:
    filled = [*jobs, *[jobs[0]] * (signature.bundle - len(jobs))]
    if not jobs[0].group["capturable"]:
        rows = [[job.known[name] for name in signature.scalars] for job in filled]
        return torch.tensor(rows, dtype=torch.float64).to(signature.device, non_blocking=True)

    def number(value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(torch.float64)
        return torch.full((), value, dtype=torch.float64, device=signature.device)

    return torch.stack([torch.stack([number(job.known[name]) for name in signature.scalars]) for job in filled])


class Bundle:
    """Parameters that one call of a kernel serves, with the views of them that it takes."""

    def __init__(self, signature: Signature, jobs: list[Job]) -> None:
        self.signature = signature
        self.jobs = jobs
        self.kernels = [kernel(signature, stage) for stage in range(len(signature.rounds) + 1)]
        self._look()

    def _look(self) -> None:
        """View parameters and state flat, or in the parameter's shape where the text needs it."""
        flat = not self.signature.shaped
        self._pointers = [job.param.data_ptr() for job in self.jobs]
        values = [real(job.param.detach()) for job in self.jobs]
        self._params = [flatten(p) if flat else p for p in values]
        self._strides = [p.stride() for p in values]
        self._held: list[Tensor] = []
        self._state: list[list[Tensor]] = []
        for name, slot, _ in self.signature.slots:
            column = []
            for job, p in zip(self.jobs, values, strict=True):
                t = real(job.state[name])
                if slot.like_parameter and t.stride() != p.stride():
                    job.state[name] = torch.empty_like(job.param, dtype=job.state[name].dtype).copy_(job.state[name])
                    t = real(job.state[name])
                self._held.append(job.state[name])
                column.append(flatten(t) if (slot.like_parameter and flat) or t.dim() == 0 else t)
            self._state.append(column)
        missing = self.signature.bundle - len(self.jobs)
        self._spare_grads: list[Tensor] = []
        if missing:
            params, grads, state = _scratch(self.signature)
            self._params += params[:missing]
            self._spare_grads = grads[:missing]
            for column, spare in zip(self._state, state, strict=True):
                column += spare[:missing]

    def _stale(self) -> bool:
        """Whether somebody exchanged a tensor since the views were taken."""
        for job, pointer in zip(self.jobs, self._pointers, strict=True):
            if job.param.data_ptr() != pointer:
                return True
        held = iter(self._held)
        return any(job.state[name] is not next(held) for name, _, _ in self.signature.slots for job in self.jobs)

    def _grads(self) -> list[Tensor]:
        grads = []
        for job, stride in zip(self.jobs, self._strides, strict=True):
            g = job.grad.detach() if job.grad.requires_grad else job.grad
            if g.is_complex():
                g = real(g)
            if g.stride() != stride:
                g = torch.empty_like(real(job.param), dtype=g.dtype).copy_(g)
            grads.append(g if self.signature.shaped else flatten(g))
        return grads + self._spare_grads

    def carry(self, totals: list[tuple[Tensor, ...]], tables: _Tables) -> tuple[Any, ...] | None:
        """Run the passes; the partial sums where the bundle has to wait for the other tensors."""
        if self._stale():
            self._look()
        inputs = self._params, self._grads(), self._state, tables.table(self.signature, self.jobs)
        sums: list[Any] = []
        overall = 0
        for stage, (scope, _) in enumerate(self.signature.rounds):
            if scope == "overall" and overall < len(totals):
                sums.append(torch.stack([total.to(self.signature.maths) for total in totals[overall]]))
                overall += 1
                continue
            partial = self.kernels[stage](*inputs, tuple(sums))
            if scope == "overall":
                return tuple(partial[: len(self.jobs)].sum(0).unbind(0))
            sums.append(partial)
        self.kernels[-1](*inputs, tuple(sums))
        for job in self.jobs:
            job.done = True
        return None


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
            s = {n: column[i][0] if n in single else column[i] for n, column in zip(slot_names, state, strict=True)}
            answers = [
                (total if scope == "overall" or shaped else total[i]) for scope, total in zip(scopes, sums, strict=True)
            ]
            answers = [list(a) if isinstance(a, (tuple, list)) else a.unbind(0) for a in answers]
            across = _Replay(answers)
            k = Known({**fixed, "numel": p.numel(), "ndim": p.dim(), "shape": p.shape}, across)
            for name, value in zip(names, row, strict=True):
                setattr(k, name, value)
            cast_scalars(k, maths)
            if final:
                advance_stored(rule, maths, p, g, s, k)
            else:
                copies = State({name: t.to(maths, copy=True) for name, t in s.items()})
                advance(rule, p.to(maths, copy=True), g.to(maths), copies, k)
                found.append(across.partials)
        if final:
            return None
        if shaped:
            return found[0]
        return torch.stack([torch.stack(list(partials or ())) for partials in found])

    # A code object of its own: the compiler counts its entries, and limits them, by code object.
    code = step.__code__.replace(co_name=f"{rule.__name__}_{stage}")
    return types.FunctionType(code, step.__globals__, code.co_name, None, step.__closure__)


@cache
def kernel(signature: Signature, stage: int) -> Callable[..., Any]:
    """The compiled text, having run once on scratch of distinct lengths so that the compiler ties none together."""
    text = _text(signature, stage)
    captured: list[tuple[Callable[..., Any], list[str]]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        inner: Any = compile_fx(graph, inputs)
        captured.append((inner, _sources(graph)))
        return inner

    if signature.shaped:
        no_guards: dict[str, Any] = {"guard_filter_fn": lambda guards: [False for _ in guards]}
        compiled = torch.compile(text, fullgraph=True, dynamic=True, options=no_guards)
    else:
        compiled = torch.compile(text, fullgraph=True, dynamic=True, backend=backend)
    with _announced(signature.describe(stage)):
        compiled(*_example(signature, stage))
    return compiled if signature.shaped else _direct(*captured[0], stage < len(signature.rounds))


def _sources(graph: torch.fx.GraphModule) -> list[str]:
    """Where each input of the graph comes from, as an expression over the arguments L of the text."""
    inputs = graph.graph.find_nodes(op="placeholder")
    return [node.meta["grapharg"].source.name for node in inputs]


def _direct(inner: Callable[..., Any], sources: list[str], returns: bool) -> Callable[..., Any]:
    """The compiled graph called with its inputs at once.

    Dynamo's own entry checks guards and looks up every size through Python helpers, 8 µs a tensor; the signature
    already carries what guards would protect.
    """
    gather = eval(f"lambda L: [{', '.join(sources)}]")

    def call(params: Any, grads: Any, state: Any, table: Any, sums: Any) -> Any:
        outputs = inner(*gather({"params": params, "grads": grads, "state": state, "table": table, "sums": sums}))
        return outputs[0] if returns else None

    return call


def _example(signature: Signature, stage: int) -> tuple[Any, ...]:
    """Inputs whose sizes all differ, with the sums that the stages before give."""
    shapes: list[tuple[int, ...]]
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
