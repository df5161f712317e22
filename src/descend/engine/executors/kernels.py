"""Kernels: the text of a step, compiled for many parameters a call, so that no schedule ever recompiles it.

Parameters go in as flat views with dynamic lengths, scalars as one small table, a row a parameter. A text that asks for
sums is compiled once for every round, up to where it asks, on copies of the state that the compiler optimises away, and
last as a whole: no direction is ever stored.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from descend.engine.context import Dims, Known, Reducer, State
from descend.engine.executors.profile import Profile, Scope, flags, profile, scalars
from descend.engine.job import Job
from descend.engine.rule import Rule
from descend.engine.slots import Slot
from descend.engine.storage import ElementRng, StorageSpec
from descend.engine.torch_private import Compiled, compiled
from descend.engine.update import apply_update, cast_scalars, commit, compute_update_in_lanes

# Parameters a call, twice as many on GPUs where a text takes several. A compiled function takes a fixed number;
# fewer are filled up with scratch.
BUNDLE = 8
# What GPUs load at once: where all lengths are multiples of it, kernels load and store 16 bytes at a time.
_VECTOR = 16
# Example lengths: from longer ones the compiler takes that a sum is worth many blocks of threads.
_SHORT, _LONG = 1031, 1 << 20
_PATIENCE = 2.0  # seconds of silence before a compile announces itself


@dataclass(frozen=True)
class Signature:
    """All that a kernel depends on, and so its key: it has no guards.

    Attributes:
        bundle: parameters a call: one where the text needs their shapes, but on GPUs.
        aligned: whether lengths, or those of rows, are multiples of what a GPU loads at once.
        in_pieces: whether others have the rest of the parameters; the table then tells what the pieces belong to.
    """

    rule: type[Rule]
    flags: tuple[tuple[str, Any], ...]
    scalars: tuple[str, ...]
    slots: tuple[tuple[str, Slot, torch.dtype], ...]
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    compute_dtype: torch.dtype
    device: torch.device
    rounds: tuple[tuple[Scope, tuple[Dims, ...]], ...]
    small: tuple[bool, ...]
    order: tuple[int, ...] | None
    bundle: int
    storage: StorageSpec
    in_pieces: bool = False
    aligned: bool = False

    @property
    def columns(self) -> int:
        """The length of a row of the table: the scalars, and where a piece belongs."""
        return len(self.scalars) + (3 + len(self.order or (0,)) if self.in_pieces else 0)

    @property
    def asks(self) -> int:
        """How often it needs sums from elsewhere."""
        return sum(scope == "global" or self.in_pieces for scope, _ in self.rounds)

    @property
    def shaped(self) -> bool:
        """Whether parameters go in with their shape; the order of their dimensions in memory is then fixed."""
        return self.order is not None

    def describe(self, stage: int) -> str:
        """A line for people: the rule, the pass, the dtype and the device."""
        passes = f", pass {stage + 1} of {len(self.rounds) + 1}" if self.rounds else ""
        return f"{self.rule.__name__} for {str(self.param_dtype).removeprefix('torch.')} on {self.device}{passes}"


def signature_of(rule: type[Rule], job: Job) -> Signature:
    """The kernel that serves this job."""
    needs: Profile = profile(rule, job)
    value = job.view
    slots = tuple((name, slot, job.local_state[name].dtype) for name, slot in job.stored.items())
    dtypes = job.local_param.dtype, job.grad.dtype, job.compute_dtype
    order = _memory_order(value) if needs.shaped else None
    on_gpu = job.local_param.device.type == "cuda"
    usual = BUNDLE * 2 if on_gpu and needs.rounds else BUNDLE
    if needs.shaped:  # on a host a loop of calls costs less than what larger texts take to compile
        usual = BUNDLE if on_gpu and not job.crosses else 1
    bundle = usual // 2 if job.storage.lanes > 1 else usual
    length = value.numel() if job.storage.length is None else job.storage.length // job.storage.lanes
    aligned = on_gpu and not needs.shaped and length % _VECTOR == 0
    text = flags(job), scalars(job), slots
    rounds = needs.rounds, needs.small
    return Signature(
        rule, *text, *dtypes, job.local_param.device, *rounds, order, bundle, job.storage, job.crosses, aligned
    )


def _memory_order(x: Tensor) -> tuple[int, ...]:
    """The dimensions from the slowest to the fastest in memory."""
    if x.is_contiguous():
        return tuple(range(x.dim()))
    return tuple(sorted(range(x.dim()), key=lambda d: -x.stride()[d]))


def blank(signature: Signature, shapes: Sequence[tuple[int, ...]]) -> tuple[list[Any], list[Any], list[list[Any]]]:
    """Zeros for parameters of these shapes, their gradients and their state."""
    if signature.storage.length:
        shapes = [(*shape, signature.storage.length) for shape in shapes]
    order = signature.order or tuple(range(len(shapes[0])))

    def zeros(shape: Sequence[int], dtype: torch.dtype) -> Any:
        if signature.storage.lanes > 1:
            half = shape[0], shape[1] // 2
            made = [torch.empty_strided(half, (shape[1], 1), dtype=dtype, device=signature.device) for _ in range(2)]
            return tuple(one.zero_() for one in made)
        value = torch.zeros([shape[d] for d in order], dtype=_real(dtype), device=signature.device)
        return value.permute([order.index(d) for d in range(len(order))])

    params = [zeros(shape, signature.param_dtype) for shape in shapes]
    grads = [zeros(shape, signature.grad_dtype) for shape in shapes]
    state = [
        [
            zeros(shape, dtype)
            if slot.like_parameter
            else torch.zeros(_beside(slot, shape), dtype=dtype, device=signature.device)
            for shape in shapes
        ]
        for _, slot, dtype in signature.slots
    ]
    return params, grads, state


def _beside(slot: Slot, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a slot that is not like its parameter."""
    if slot.per_block:
        return shape[0], shape[1] // slot.per_block
    return slot.shape_for(torch.empty(tuple(shape), device="meta")) or (1,)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


class _Replay(Reducer):
    """Answers the rounds that are known; notes what the first unknown one asks for, and lets the text run out.

    Sums of what are sums themselves are taken at once: the numbers are all in hand.
    """

    def __init__(self, known: Sequence[Any], small: Sequence[bool]) -> None:
        self.known = known
        self.asked = 0
        self.small = iter(small)
        self.partials: tuple[Any, ...] | None = None

    def tensor_sum(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        return partials if next(self.small) else self.global_sum(lambda: partials)

    def square(self, x: Any, dims: tuple[int, ...] | None = None) -> Any:
        return self.sum(x * x, dims)

    def global_sum(self, begin: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        if self.asked < len(self.known):
            self.asked += 1
            return tuple(self.known[self.asked - 1])
        partials = begin()
        if self.partials is None:
            self.partials = partials
        return partials


class _Text:
    """The function that is compiled: stage by stage up to the sums that it asks for, last of all the whole step."""

    def __init__(self, signature: Signature, stage: int) -> None:
        self.signature = signature
        self.stage = stage
        # A double of no dimension is a constant to the compiler, so single numbers of state go in as vectors of one.
        self._single = frozenset(name for name, slot, _ in signature.slots if slot.reduce == "all")
        self._shared = frozenset(name for name, slot, _ in signature.slots if not slot.like_parameter)

    def __call__(self, params: Any, state: Any, grads: Any, table: Any, sums: Any) -> tuple[Tensor, ...]:
        found = [
            self._one(params[i], [column[i] for column in state], grads[i], table[i].unbind(0), self._answers(i, sums))
            for i in range(self.signature.bundle)
        ]
        if self.stage == len(self.signature.rounds):
            return ()
        if self.signature.shaped:
            return tuple(chain.from_iterable(found))
        return (torch.stack([torch.stack(list(partials)) for partials in found]),)

    def _one(self, p: Any, state: Sequence[Tensor], g: Any, row: Any, answers: Sequence[Any]) -> tuple[Any, ...]:
        """One parameter: its step, or its part of the sums of this stage."""
        signature, storage, dtype = self.signature, self.signature.storage, self.signature.compute_dtype
        names = [name for name, _, _ in signature.slots]
        s = {name: t[0] if name in self._single else t for name, t in zip(names, state, strict=True)}
        lanes = range(storage.lanes)
        p, g = (p, g) if len(lanes) > 1 else ((p,), (g,))
        each = [
            {name: t if len(lanes) == 1 or name in self._shared else t[lane] for name, t in s.items()} for lane in lanes
        ]
        known = [self._known(part, row, answers) for part in p]
        ks = [k for k, _, _ in known]
        if self.stage == len(signature.rounds):
            rng, skips = known[0][2], ks[0].skips
            commit(compute_update_in_lanes(signature.rule, storage, dtype, p, g, each, ks, rng, apart=skips), ks[0])
            return ()
        for lane, k in zip(lanes, ks, strict=True):
            value, copies = storage.load_lane(lane, p[lane], each[lane], dtype)
            copies = {name: t.clone() for name, t in copies.items()}
            apply_update(signature.rule, value.clone(), g[lane].to(dtype), State(copies), k)
        first, *others = [replay.partials or () for _, replay, _ in known]
        return first if not others else tuple(x + y for x, y in zip(first, others[0], strict=True))

    def _answers(self, i: int, sums: Any) -> list[tuple[Any, ...]]:
        """The sums of the stages before, as one parameter gets them."""
        found: list[tuple[Any, ...]] = []
        for (scope, dims), total in zip(self.signature.rounds[: self.stage], sums, strict=True):
            if scope == "global":
                found.append(total[0].unbind(0))
            elif self.signature.shaped:
                mine = total[i * len(dims) :][: len(dims)]
                found.append(tuple(x[0] if d is None else x for x, d in zip(mine, dims, strict=True)))
            else:
                found.append(total[0][i].unbind(0))
        return found

    def _known(self, p: Tensor, row: Any, answers: Sequence[Any]) -> tuple[Known, _Replay, ElementRng | None]:
        """What the text knows of one lane, its sums, and its random numbers."""
        signature, replay = self.signature, _Replay(answers, self.signature.small)
        fixed, numel = dict(signature.flags), p.numel() * signature.storage.lanes
        k = Known({**fixed, "numel": numel, "ndim": p.dim(), "shape": p.shape}, replay)
        exact = dict(zip(signature.scalars, row, strict=False))  # in double precision, which places need
        for name, value in exact.items():
            setattr(k, name, value)
        first: Any = 0
        slices: Any = None
        if signature.in_pieces:
            first, here, there, *sizes = row[len(signature.scalars) :]
            slices = here, there
            k.shape = tuple(size.to(signature.compute_dtype) for size in sizes)
            k.numel = k.count(tuple(range(len(sizes))))
        cast_scalars(k, signature.compute_dtype)
        if "place" not in exact:
            return k, replay, None
        seed = int(fixed.get("seed", 0) or 0)
        return k, replay, ElementRng(seed, exact["t"], exact["place"], first, slices)


@cache
def kernel(signature: Signature, stage: int) -> Compiled:
    """The compiled text, having run once on scratch of distinct lengths so that the compiler ties none together.

    It takes the leaves of parameters, state, gradients, table and sums in a list.
    """
    with compiling(signature.describe(stage)), torch.no_grad():
        return _compiled(signature, stage)


def _compiled(signature: Signature, stage: int) -> Compiled:
    arguments = example(signature, stage)
    code = compiled(text(signature, stage, arguments), list(leaves(arguments)), to_sums=stage < len(signature.rounds))
    code(list(leaves(arguments)))
    return code


def text(signature: Signature, stage: int, arguments: tuple[Any, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The function of a pass, which takes the leaves of its arguments one by one."""
    function = _Text(signature, stage)

    def on_leaves(*tensors: Tensor) -> Any:
        tree = _regrown(arguments, iter(tensors))
        for p in leaves(tree[0]):
            _settle(signature, p)
        return function(*tree)

    return on_leaves


def _settle(signature: Signature, p: Tensor) -> None:
    """Tell the compiler what always holds: the length of blocks, and of what lengths are multiples."""
    if signature.storage.length and not signature.shaped:
        int(p.size(1)), int(p.stride(0))
    if signature.aligned and not signature.storage.length:
        torch._check(p.size(0) % _VECTOR == 0)  # type: ignore[no-untyped-call]


def vectors(sums: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Sums as kernels take them: single numbers as vectors of one."""
    return tuple(x.reshape(1) if x.dim() == 0 else x for x in sums)


def over_bundle(sums: Sequence[Tensor], count: int) -> list[Tensor]:
    """Sums over `count` parameters, of sums that a text that needs shapes gives one parameter after another."""
    each = len(sums) // count
    return [torch.stack([*sums[i::each]]).sum(0) if count > 1 else sums[i] for i in range(each)]


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested lists and tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for branch in tree:
            yield from leaves(branch)


def _regrown(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same lists and tuples of other tensors."""
    return next(tensors) if isinstance(tree, Tensor) else [_regrown(branch, tensors) for branch in tree]


def example(signature: Signature, stage: int) -> tuple[Any, ...]:
    """Inputs whose sizes all differ, with the sums that the stages before give."""
    shapes: list[tuple[int, ...]]
    if signature.order is None:
        start = _LONG if signature.rounds and signature.device.type == "cuda" else _SHORT
        step = _VECTOR if signature.aligned else 34
        shapes = [(start - start % _VECTOR * signature.aligned + step * i,) for i in range(signature.bundle)]
    else:
        side = _SHORT if signature.device.type == "cuda" and len(signature.order) == 2 else 37
        shapes = [tuple(side + 34 * i + 2 * d for d in range(len(signature.order))) for i in range(signature.bundle)]
    params, grads, state = blank(signature, shapes)
    table = torch.full((signature.bundle, signature.columns), 0.5, dtype=torch.float64, device=signature.device)
    sums: list[tuple[Tensor, ...]] = []
    for earlier, (scope, _) in enumerate(signature.rounds[:stage]):
        partial = _Text(signature, earlier)(params, state, grads, table, sums)
        if not signature.shaped and scope == "global":
            partial = (partial[0].sum(0),)
        if signature.shaped:
            partial = (torch.stack(over_bundle(partial, signature.bundle)),) if scope == "global" else vectors(partial)
        sums.append(partial)
    return params, state, grads, table, sums


@contextmanager
def compiling(what: str) -> Iterator[None]:
    """A time of compiling, which is said on stderr once it takes longer than a moment. Errors name what works without."""

    def say() -> None:
        print(f"descend: compiling {what} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(_PATIENCE, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            f"torch {torch.__version__} did not compile {what}: {type(error).__name__}: {error}; "
            "foreach=True works without a compiler"
        ) from error
    finally:
        timer.cancel()
