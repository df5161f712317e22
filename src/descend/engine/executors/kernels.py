"""Kernels: the text of a step, compiled for many parameters a call, so that no schedule ever recompiles it.

Parameters go in as flat views with dynamic lengths, scalars as one small table, a row a parameter. A text that asks for
sums is compiled once for every round, up to where it asks, on copies of the state that the compiler optimises away, and
last as a whole: no direction is ever stored.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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
from descend.engine.update import apply_update, cast_scalars, commit, compute_update, compute_update_in_halves

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
        aligned: whether lengths are multiples of what a GPU loads at once.
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
    def in_halves(self) -> bool:
        """Whether every parameter goes in as two views: the halves of its blocks, which share bytes of state."""
        return self.storage.in_halves

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
    bundle = usual // 2 if job.storage.in_halves else usual
    aligned = on_gpu and not needs.shaped and not job.storage.length and value.numel() % _VECTOR == 0
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
        if signature.in_halves:
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


def _text(signature: Signature, stage: int) -> Callable[..., Any]:
    """The function that is compiled: stage by stage up to the sums that it asks for, last of all the whole step."""
    rule, compute_dtype, names, shaped = signature.rule, signature.compute_dtype, signature.scalars, signature.shaped
    fixed = dict(signature.flags)
    final = stage == len(signature.rounds)
    slot_names = tuple(name for name, _, _ in signature.slots)
    # A double of no dimension is a constant to the compiler, so single numbers of state go in as vectors of one.
    single = frozenset(name for name, slot, _ in signature.slots if slot.reduce == "all")
    shared = frozenset(name for name, slot, _ in signature.slots if not slot.like_parameter)
    count, storage, seed = signature.bundle, signature.storage, int(fixed.get("seed", 0) or 0)
    in_pieces, in_halves = signature.in_pieces, signature.in_halves

    def knows(p: Tensor, row: Any, answers: Any) -> tuple[Known, _Replay, ElementRng | None]:
        across = _Replay(answers, signature.small)
        numel = p.numel() * 2 if in_halves else p.numel()
        k = Known({**fixed, "numel": numel, "ndim": p.dim(), "shape": p.shape}, across)
        for name, value in zip(names, row, strict=False):
            setattr(k, name, value)
        first: Any = 0
        slices: Any = None
        if in_pieces:
            first, here, there, *sizes = row[len(names) :]
            slices = here, there
            k.shape = tuple(size.to(compute_dtype) for size in sizes)
            k.numel = k.count(tuple(range(len(sizes))))
        cast_scalars(k, compute_dtype)
        exact = dict(zip(names, row, strict=False))  # in double precision, which places need
        rng = ElementRng(seed, exact["t"], exact["place"], first, slices) if "place" in names else None
        return k, across, rng

    def of_one(total: Any, dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        return tuple(x[0] if d is None else x for x, d in zip(total, dims, strict=True))

    def step(params: Any, state: Any, grads: Any, table: Any, sums: Any) -> Any:
        found: list[Any] = []
        for i in range(count):
            p, g = params[i], grads[i]
            row = table[i].unbind(0)
            s = {n: column[i][0] if n in single else column[i] for n, column in zip(slot_names, state, strict=True)}
            answers = [
                total[0].unbind(0)
                if scope == "global"
                else of_one(total[i * len(dims) :][: len(dims)], dims)
                if shaped
                else total[0][i].unbind(0)
                for (scope, dims), total in zip(signature.rounds[:stage], sums, strict=True)
            ]
            if in_halves:
                each = [{n: t if n in shared else t[half] for n, t in s.items()} for half in range(2)]
                known = [knows(part, row, answers) for part in p]
                (k, _, rng), ks = known[0], [one for one, _, _ in known]
                if final:
                    commit(
                        compute_update_in_halves(rule, storage, compute_dtype, p, g, each, ks, rng, apart=k.skips), k
                    )
                    continue
                for half in range(2):
                    value, copies = storage.load_half(half, p[half], each[half], compute_dtype)
                    copies = {name: t.clone() for name, t in copies.items()}
                    apply_update(rule, value.clone(), g[half].to(compute_dtype), State(copies), ks[half])
                partials = [across.partials or () for _, across, _ in known]
                found.append(tuple(x + y for x, y in zip(*partials, strict=True)))
                continue
            k, across, rng = knows(p, row, answers)
            if final:
                commit(compute_update(rule, storage, compute_dtype, p, g, s, k, rng, apart=k.skips), k)
            else:
                value, copies = storage.load(p, s, compute_dtype)
                copies = {name: t.clone() for name, t in copies.items()}
                apply_update(rule, value.clone(), g.to(compute_dtype), State(copies), k)
                found.append(across.partials)
        if final:
            return ()
        if shaped:
            return tuple(chain.from_iterable(found))
        return (torch.stack([torch.stack(list(partials or ())) for partials in found]),)

    return step


@cache
def kernel(signature: Signature, stage: int) -> Compiled:
    """The compiled text, having run once on scratch of distinct lengths so that the compiler ties none together.

    It takes the leaves of parameters, state, gradients, table and sums in a list.
    """
    what = signature.describe(stage)
    with _announced(what), torch.no_grad():
        try:
            return _compiled(signature, stage)
        except Exception as error:
            raise RuntimeError(
                f"torch {torch.__version__} did not compile {what}: {type(error).__name__}: {error}; "
                "foreach=True works without a compiler"
            ) from error


def _compiled(signature: Signature, stage: int) -> Compiled:
    text, arguments = _text(signature, stage), _example(signature, stage)

    def on_leaves(*tensors: Tensor) -> Any:
        tree = _regrown(arguments, iter(tensors))
        for p in leaves(tree[0]):
            _settle(signature, p)
        return text(*tree)

    code = compiled(on_leaves, list(leaves(arguments)), to_sums=stage < len(signature.rounds))
    code(list(leaves(arguments)))
    return code


def _settle(signature: Signature, p: Tensor) -> None:
    """Tell the compiler what always holds: the length of blocks, and of what lengths are multiples."""
    if signature.storage.length and not signature.shaped:
        int(p.size(1)), int(p.stride(0))
    if signature.aligned:
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


def _example(signature: Signature, stage: int) -> tuple[Any, ...]:
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
        partial = _text(signature, earlier)(params, state, grads, table, sums)
        if not signature.shaped and scope == "global":
            partial = (partial[0].sum(0),)
        if signature.shaped:
            partial = (torch.stack(over_bundle(partial, signature.bundle)),) if scope == "global" else vectors(partial)
        sums.append(partial)
    return params, state, grads, table, sums


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
