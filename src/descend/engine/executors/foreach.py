"""Multi-tensor execution: the same text on lists of tensors, in batches that are bounded in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from descend.engine.context import AnsweredReducer, Known, NeedSums, State
from descend.engine.executors import loop
from descend.engine.executors.profile import profile
from descend.engine.executors.sums import StepGenerator, Totals, over_all
from descend.engine.job import Job, real, values_of
from descend.engine.rule import Rule
from descend.engine.slots import Slot
from descend.engine.tensorlist import Numbers, TensorList
from descend.engine.update import apply_update

# What a batch's parameters may weigh; temporaries are a few times that, and never grow with the model.
BATCH_BYTES = 32 << 20
# The same of parameters of one shape that move as one stack; on a GPU small stacks leave most of it idle.
STACK_BYTES = 128 << 20
# Elements of a tensor whose calls cost more than its numbers.
FEW = 1 << 12


def run(jobs: Sequence[Job], memory: dict[str, Any], totals: Totals = ()) -> list[StepGenerator]:
    """Carry the jobs of a rule over one step; generators of the batches that need sums over all tensors."""
    generators: list[StepGenerator] = []
    for batch in _batches(jobs, memory):
        if profile(batch[0].rule, batch[0]).overall > len(totals):
            generators.append(_steps(batch, totals))
        else:
            _move(batch, totals)
    return generators


def _steps(batch: Sequence[Job], totals: Totals) -> StepGenerator:
    """Ask for the sums over all tensors, then move the batch."""
    while profile(batch[0].rule, batch[0]).overall > len(totals):
        totals = [*totals, tuple((yield over_all(batch[0], [_partial_sums(batch, totals)])))]
    _move(batch, totals)


def _batches(jobs: Sequence[Job], memory: dict[str, Any]) -> list[list[Job]]:
    """The jobs in batches, as before where what a batch has in common still is."""
    batches: list[list[Job]] | None = memory.get("batches")
    if batches is None or not all(map(_agrees, batches)):
        batches = memory["batches"] = list(_cut(jobs))
    return batches


def _agrees(batch: Sequence[Job]) -> bool:
    known, dtype = batch[0].known, batch[0].grad.dtype
    return not [job for job in batch if job.known is not known or job.grad.dtype is not dtype]


def _cut(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that one call can serve: the same scalars, device, dtypes; in order, up to the bytes of a batch."""
    kinds: dict[Any, list[Job]] = {}
    for job in jobs:
        key = (
            id(job.known),
            job.device,
            job.dtype,
            job.grad.dtype,
            tuple(job.slots),
            job.storage,
            job.is_plain,
            _is_small(job),
            is_stacked(job) and tuple(job.local_param.shape),
        )
        kinds.setdefault(key, []).append(job)
    for kind in kinds.values():
        batch: list[Job] = []
        weight = 0
        for job in kind:
            copies = 2 if _is_small(job) else 1
            size = job.local_param.numel() * job.local_param.element_size() * copies
            if batch and weight + size > (STACK_BYTES if is_stacked(job) else BATCH_BYTES):
                yield batch
                batch, weight = [], 0
            batch.append(job)
            weight += size
        yield batch


def is_stacked(job: Job) -> bool:
    """Whether parameters of one shape move as one stack: lines that need shapes, where each call costs a launch."""
    if job.device.type != "cuda" or job.layout is not None:
        return False
    needs, stacks = profile(job.rule, job), job.rule.stacks
    return (
        needs.shaped
        and not needs.overall
        and (job.rule.reach != "matrix" if stacks is None else stacks)
        and not job.storage.random
        and job.local_param.is_contiguous()
    )


def _is_small(job: Job) -> bool:
    """Whether copies of the numbers cost less than calls for them."""
    return job.numel <= FEW and job.device.type == "cpu"


def _move(batch: Sequence[Job], totals: Totals) -> None:
    _advance(batch, totals)
    for job in batch:
        job.done = True


def _advance(batch: Sequence[Job], totals: Totals) -> None:
    rule, first, k = batch[0].rule, batch[0], _known(batch, totals)
    if is_stacked(first):
        joined = _Joined(batch, *_gather(batch))
        _advance_stacked(rule, joined, first, k)
        _put(joined.updated(), k)
        return
    if first.is_plain and not k.skips and first.grad.dtype is first.compute_dtype and _lie_alike(batch):
        params, grads = [job.local_param for job in batch], [job.grad for job in batch]
        slots = {name: [job.local_state[name] for job in batch] for name in first.slots}
        if len(batch) > 1 and _is_small(first) and not profile(rule, first).rounds:
            _advance_joined(rule, params, grads, slots, k)
            return
        lists = {name: _listed(tensors, first.slots[name]) for name, tensors in slots.items()}
        _advance_lists(rule, params, grads, State(lists), k)
        for name, of_slot in lists.items():
            if isinstance(of_slot, Numbers):
                torch._foreach_copy_(slots[name], of_slot.tensors)
        return
    params, grads, stored = _gather(batch)
    converts = not first.storage.is_plain or {x.dtype for x in (params[0], grads[0], *stored[0].values())} != {
        first.compute_dtype
    }
    if (converts or k.skips) and not first.storage.random and all(x.is_contiguous() for x in params):
        joined = _Joined(batch, params, grads, stored)
        _advance_lists(rule, *joined.listed(), k)
        updated = joined.updated()
    else:
        compute_dtype = first.compute_dtype
        p, s = _load(batch, params, stored)
        if k.skips:
            p, s = [x.clone() for x in p], {name: [x.clone() for x in tensors] for name, tensors in s.items()}
        g = [g.to(compute_dtype) for g in grads]
        _advance_lists(rule, p, g, State({name: TensorList(tensors) for name, tensors in s.items()}), k)
        updated = [
            ([t], t, value)
            for i, job in enumerate(batch)
            for t, value in job.storage.store(
                params[i], stored[i], p[i], {name: tensors[i] for name, tensors in s.items()}, job.rng()
            )
            if t is not value
        ]
    _put(updated, k)


def _put(updated: Iterable[tuple[Sequence[Tensor], Tensor, Tensor]], k: Known) -> None:
    """Write what is stored back, unless a GradScaler skips the step."""
    for tensors, before, value in updated:
        value = value.to(before.dtype).reshape(-1)
        if k.skips:
            value = torch.where(k.found_inf > 0, _joined(tensors), value)
        torch._foreach_copy_(list(tensors), _parts(value, tensors))


def _advance_stacked(rule: type[Rule], joined: _Joined, first: Job, k: Known) -> None:
    """The text on parameters of one shape as on one of them; ``torch.vmap`` makes each operation one of the stack."""
    seen = first.view.shape
    k.measure(tuple(seen))
    params, grads, state = joined.stacked(seen)

    def one(p: Tensor, g: Tensor, s: dict[str, Tensor]) -> Tensor:
        apply_update(rule, p, g, State.of(s), k)
        return p

    with _OutOfPlace():
        torch.vmap(one)(params, grads, state)


class _OutOfPlace(TorchFunctionMode):
    """Operations in place that ``torch.vmap`` would carry out tensor by tensor become ones that it batches, and a copy."""

    batched: ClassVar[Mapping[Any, Callable[..., Tensor]]] = {
        Tensor.lerp_: torch.lerp,
        Tensor.addcmul_: torch.addcmul,
        Tensor.addcdiv_: torch.addcdiv,
    }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        batched = self.batched.get(func)
        if batched is None:
            return func(*args, **(kwargs or {}))
        return args[0].copy_(batched(*args, **(kwargs or {})))


class _Joined:
    """A batch whose tensors lie end to end, a row a block, so that storage converts all of them at once."""

    def __init__(
        self,
        batch: Sequence[Job],
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        stored: Sequence[Mapping[str, Tensor]],
    ) -> None:
        first = batch[0]
        self._storage, self._params = first.storage, params
        self._rows = sum(p.numel() for p in params) // (self._storage.length or 1)
        self._stored = {name: [s[name] for s in stored] for name in first.stored}
        self._param = self._join(params)
        self._long = {
            name: self._join(tensors)
            for name, tensors in self._stored.items()
            if first.stored[name].like_parameter or first.stored[name].per_block
        }
        self._value, self._values = self._storage.load(self._param, self._long, first.compute_dtype)
        self._short = {
            name: [x.to(first.compute_dtype, copy=True) for x in self._stored[name]]
            for name in first.slots
            if name not in self._values
        }
        self._grad = self._join(grads).to(first.compute_dtype)

    def listed(self) -> tuple[list[Tensor], list[Tensor], State]:
        """Parameters, gradients and state as lists of parts in the tensors' shapes."""
        parts = {name: _parts(value, self._params) for name, value in self._values.items()}
        state = State({name: TensorList(tensors) for name, tensors in {**parts, **self._short}.items()})
        return _parts(self._value, self._params), _parts(self._grad, self._params), state

    def stacked(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The same as one tensor each of tensors that have one shape."""
        values = {name: value.view(-1, *shape) for name, value in self._values.items()}
        short = {name: torch.stack(tensors) for name, tensors in self._short.items()}
        self._short = {name: list(tensors.unbind()) for name, tensors in short.items()}
        return self._value.view(-1, *shape), self._grad.view(-1, *shape), {**values, **short}

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        flat = _joined(tensors)
        return flat.view(self._rows, -1) if self._storage.length else flat

    def updated(self) -> list[tuple[Sequence[Tensor], Tensor, Tensor]]:
        """What is stored, as the batch's tensors and joined, with what it becomes."""
        homes = {id(self._param): self._params, **{id(x): self._stored[name] for name, x in self._long.items()}}
        long = self._storage.store(self._param, self._long, self._value, self._values, None)
        short = [
            ([t], t, value)
            for name, values in self._short.items()
            for t, value in zip(self._stored[name], values, strict=True)
        ]
        return [*((homes[id(joined)], joined, value) for joined, value in long), *short]


def _parts(joined: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a joined tensor, in the shapes of the tensors that it was joined of."""
    pieces = torch.split(joined.reshape(-1), [x.numel() for x in tensors])
    return [piece if x.dim() == 1 else piece.view(x.shape) for piece, x in zip(pieces, tensors, strict=True)]


def _advance_lists(rule: type[Rule], params: Sequence[Tensor], grads: Sequence[Tensor], state: State, k: Known) -> None:
    """The text on lists that answer as one tensor."""
    p: Any = TensorList(params)
    g: Any = TensorList(grads)
    apply_update(rule, p, g, state, k)


def _listed(tensors: list[Tensor], slot: Slot) -> TensorList:
    return Numbers(torch.stack(tensors)) if slot.reduce == "all" else TensorList(tensors)


def _advance_joined(
    rule: type[Rule], params: list[Tensor], grads: list[Tensor], slots: dict[str, list[Tensor]], k: Known
) -> None:
    """The text on copies of the tensors, end to end: each operation is one call for all of them."""
    p, state = _joined(params), {name: _joined(tensors) for name, tensors in slots.items()}
    apply_update(rule, p, _joined(grads), State.of(state), k)
    changed: list[Tensor] = []
    values: list[Tensor] = []
    for tensors, value in ((params, p), *((slots[name], state[name]) for name in slots)):
        changed += tensors
        values += _parts(value, tensors)
    torch._foreach_copy_(changed, values)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t if t.dim() == 1 else t.reshape(-1) for t in tensors])


def _lie_alike(batch: Sequence[Job]) -> bool:
    """Whether gradients lie in memory as their parameters do."""
    pairs = [(job.local_param, job.grad) for job in batch]
    return not [p for p, g in pairs if not (g.is_contiguous() and p.is_contiguous()) and g.stride() != p.stride()]


def _partial_sums(batch: Sequence[Job], totals: Totals) -> list[Tensor]:
    """The batch's part of the first sums over all tensors that are not known yet; nothing is changed."""
    rule, compute_dtype = batch[0].rule, batch[0].compute_dtype
    params, grads, stored = _gather(batch)
    p = [job.storage.parameter(p, s, compute_dtype) for job, p, s in zip(batch, params, stored, strict=True)]
    g = [g.to(compute_dtype) for g in grads]

    def slot(name: str) -> TensorList:
        each = zip(batch, params, stored, strict=True)
        return TensorList(job.storage.slot(name, p, s, compute_dtype) for job, p, s in each)

    state = loop.Scratch(batch[0].slots, slot)
    try:
        _advance_lists(rule, p, g, state, _known(batch, totals))
    except NeedSums as need:
        return list(need.partials)
    raise AssertionError(f"{rule.__name__} asks for fewer sums than it did on trial")


def _gather(batch: Sequence[Job]) -> tuple[list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
    """The batch's parameters, gradients and state, as they are stored."""
    values = [values_of(job) for job in batch]
    stored = [{name: real(job.local_state[name]) for name in job.stored} for job in batch]
    return [p for p, _ in values], [g for _, g in values], stored


def _load(
    batch: Sequence[Job], params: Sequence[Tensor], stored: Sequence[dict[str, Tensor]]
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """The values of the parameters, and slot by slot those of their state."""
    loaded = [job.storage.load(p, s, job.compute_dtype) for job, p, s in zip(batch, params, stored, strict=True)]
    return [p for p, _ in loaded], {name: [s[name] for _, s in loaded] for name in batch[0].slots}


def _known(batch: Sequence[Job], totals: Totals) -> Known:
    first = batch[0]
    there = [tuple(total.to(first.local_param.device) for total in sums) for sums in totals]
    known = {name: v.to(first.compute_dtype) if isinstance(v, Tensor) else v for name, v in first.known.items()}
    numel = tuple(float(real(job.local_param).numel()) for job in batch)
    return Known({**known, "numel": numel, "ndim": 1, "shape": ()}, AnsweredReducer(there))
