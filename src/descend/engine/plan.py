"""The jobs of an optimizer, kept from step to step as long as what they depend on stays."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from descend.engine.counters import Counters, as_counter, new_counters
from descend.engine.host import is_far, on_host
from descend.engine.job import Job
from descend.engine.options import moves
from descend.engine.placing import placed
from descend.engine.resolved import Resolved
from descend.engine.sharding.layout import fresh, layout_of, local
from descend.engine.slots import Slot, state_dtype
from descend.engine.storage import MASTERS_STATE, plan_storage


class Owner(Protocol):
    """What a plan needs of an optimizer: groups and state as torch has them, and the rule of every group."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]

    def resolve(self, group: dict[str, Any]) -> Resolved:
        """The rule of a group, and its options for this step."""

    def name_of(self, index: int, position: int) -> str:
        """A parameter's name, for messages."""

    def check_parameter(self, index: int, position: int) -> None:
        """Raise ValueError for a parameter that cannot be moved, or cannot have its state as its group asks for it."""


class Plan:
    """Which parameters a step moves, with their state at hand.

    Args:
        places: group and position of the parameters that are moved; None: all that have a gradient.

    Attributes:
        counters: how often each of them has moved.
    """

    def __init__(self, places: Collection[tuple[int, int]] | None = None) -> None:
        self.counters = Counters()
        self._remembered: tuple[list[Job], dict[Any, Any]] = [], {}
        self._groups: dict[int, tuple[Any, dict[int, Job]]] = {}
        self._states: list[Any] = []
        self._places = places
        self._homeless: list[tuple[Any, Job]] = []
        self._captured: list[dict[Any, Any]] = []

    @property
    def is_of_all(self) -> bool:
        """Whether it is about all parameters of the optimizer."""
        return self._places is None

    def jobs(self, owner: Owner, moved: Collection[Tensor] = ()) -> list[Job]:
        """One job for each parameter with a gradient; all that can be wrong is found before any state is made.

        Args:
            owner: the optimizer.
            moved: parameters without a gradient that have moved in this step already.
        """
        found = self._with_gradients(owner, moved)
        held = self._held(owner)
        if not (len(held) == len(self._states) and all(map(operator.is_, held, self._states))):
            self._groups.clear()
            self._states = []
        resolved: dict[int, tuple[Resolved, dict[int, Job]]] = {}
        jobs: list[Job] = []
        current: list[Job | None] = []
        for index, position, p, _ in found:
            if index not in resolved:
                resolved[index] = self._group(owner, index)
            job = resolved[index][1].get(position)
            current.append(job if job is not None and job.is_current(p) else None)
        for (index, position, _, _), job in zip(found, current, strict=True):
            if job is None:
                owner.check_parameter(index, position)
        if None in current:
            self._begin_counting(owner, [one for one, job in zip(found, current, strict=True) if job is None])
        on_host: list[tuple[Job, Resolved]] = []
        on_device: list[tuple[Job, Resolved]] = []
        for (index, position, p, g), job in zip(found, current, strict=True):
            r, kept = resolved[index]
            if job is None:
                job = kept[position] = self._bind(owner, r.of(p), index, position)
            r = r if r.fallback is None or job.rule is r.rule else r.fallback
            job.group, job.done = r.group, False
            if job.layout is None and g is not None:
                job.grad = g
            elif job.layout is not None:
                job.grad, job.present = job.layout.gradient(p), g is not None
                if p not in owner.state:
                    self._homeless.append((owner.state, job))
            jobs.append(job)
            (on_device if r.group["capturable"] else on_host).append((job, r))
        tell_on_device(on_device)
        for (job, r), step in zip(on_host, self.counters.read([job for job, _ in on_host]), strict=True):
            made = None if job.carries else r.made.get((step + 1, (), job.traits))
            if made is None:
                tell(job, r, step + 1)
            else:
                job.known, job.carried = made
        if self._places is not None or len(self._states) != len(owner.state):
            self._states = self._held(owner)
        return jobs

    def memory(self, jobs: list[Job]) -> dict[Any, Any]:
        """What executors keep from step to step, as long as these are the jobs."""
        if self._remembered[0] != jobs:
            self._remembered = jobs, {}
        return self._remembered[1]

    def keep_captured(self, memory: dict[Any, Any]) -> None:
        """Keep what executors remember for good where a CUDA graph is being captured, which reads it at each replay."""
        if torch.cuda.is_current_stream_capturing() and not any(memory is kept for kept in self._captured):
            self._captured.append(memory)

    def _with_gradients(self, owner: Owner, moved: Collection[Tensor]) -> list[tuple[int, int, Tensor, Tensor | None]]:
        """Group, position, parameter and gradient of all that move, here or on another process."""
        groups = owner.param_groups
        if self._places is None:
            places = [(i, j, p) for i, group in enumerate(groups) for j, p in enumerate(group["params"])]
        else:
            places = [(i, j, groups[i]["params"][j]) for i, j in self._places]
        found: list[tuple[int, int, Tensor, Tensor | None]] = []
        for i, j, p in places:
            g = p.grad
            if g is None:
                if awaited(p) and p not in moved:
                    found.append((i, j, p, None))
                continue
            if g.layout is not torch.strided:
                raise RuntimeError(
                    f"{type(owner).__name__}: the gradient of parameter {owner.name_of(i, j)} is "
                    f"sparse ({g.layout}); make it dense (sparse=False in nn.Embedding), or use torch.optim.SparseAdam"
                )
            found.append((i, j, p, g))
        return found

    def _bind(self, owner: Owner, r: Resolved, index: int, position: int) -> Job:
        """The job of a parameter that has none, or is not what it was."""
        p = owner.param_groups[index]["params"][position]
        state = owner.state[p] if p.grad is not None or p in owner.state else {}
        try:
            match_storage(r, p, state, f"parameter {owner.name_of(index, position)}")
        except ValueError as error:
            raise ValueError(f"{type(owner).__name__}: {error}") from None
        return new_job(p, r, state, (index << 32) + position)

    def _begin_counting(self, owner: Owner, unbound: Iterable[tuple[int, int, Tensor, Tensor | None]]) -> None:
        """Give parameters that have not moved yet their counters, all of them views of one tensor."""
        fresh = [
            owner.state[p]
            for i, _, p, g in unbound
            if g is not None and not owner.param_groups[i]["capturable"] and "step" not in owner.state[p]
        ]
        for state, counter in zip(fresh, new_counters([0.0] * len(fresh)), strict=True):
            state["step"] = counter

    def _held(self, owner: Owner) -> list[Any]:
        """The state dicts that the jobs are to hold."""
        if self._places is None:
            return list(owner.state.values())
        return [owner.state.get(owner.param_groups[i]["params"][j]) for i, j in self._places]

    def let_go(self, jobs: list[Job]) -> None:
        """Keep nothing of a step that is not taken: gradients are the user's to free."""
        for job in jobs:
            del job.grad
        self._homeless.clear()

    def settle(self) -> None:
        """Give the optimizer the state of parameters that had a gradient elsewhere only, and moved."""
        for states, job in self._homeless:
            if job.done:
                states[job.param] = job.state
                self._states.append(job.state)
        self._homeless.clear()

    def _group(self, owner: Owner, index: int) -> tuple[Resolved, dict[int, Job]]:
        group = owner.param_groups[index]
        r = owner.resolve(group)
        position, first = next((i, p) for i, p in enumerate(group["params"]) if moves(p))
        try:
            key = r.key(first)
        except ValueError:  # it has become what the rule does not take, for example a lazy parameter its shape
            owner.check_parameter(index, position)
            raise
        before, kept = self._groups.get(index, (None, {}))
        if before != key:
            kept = {}
            self._groups[index] = key, kept
        return r, kept


def trial_jobs(owner: Owner) -> list[Job]:
    """A job for every parameter, as a step with all gradients would have it, without touching any state."""
    resolved = [owner.resolve(group) for group in owner.param_groups]
    return [trial_job(p, r.of(p)) for r in resolved for p in r.group["params"] if p.requires_grad]


def trial_job(p: Tensor, r: Resolved) -> Job:
    """A parameter's job at its first step, without any memory."""
    job = new_job(p, r, {}, like=torch.empty_like(local(p), device="meta"))
    job.grad = torch.empty_like(local(p), device="meta")
    if r.group["capturable"]:
        tell_on_device([(job, r)])
    else:
        tell(job, r, 1.0)
    return job


def new_job(p: Tensor, r: Resolved, state: dict[str, Any], place: int = 0, like: Tensor | None = None) -> Job:
    """A parameter's job; what its state lacks is made, on the device of `like` if given."""
    device = p.device if r.group["capturable"] else torch.device("cpu")
    slots, traits = r.rule.slots(r.h, p), r.rule.traits(r.h, p)
    stored, storage = plan_storage(slots, r.h, p)
    if storage.random:
        traits = {**traits, "place": float(place)}
    state["step"] = as_counter(state.get("step", 0.0), device)
    for name, start in r.rule.carried.items():
        value = state.get(name, start)
        state[name] = torch.as_tensor(value, dtype=torch.float64, device=device).reshape(())
    layout, offloaded = layout_of(p), bool(r.h.offload_state) and is_far(p)
    for name in MASTERS_STATE - stored.keys():
        state.pop(name, None)
    for name, slot in stored.items():
        if name not in state:
            state[name] = fresh(slot, p, like)
        if layout is None and like is None:
            state[name] = on_host(state[name]) if offloaded else state[name].to(p.device)
    units = r.rule.reach in ("elementwise", "tensor") or r.rule.by_units
    units = units and all(slot.like_parameter for slot in slots.values())
    here = state if layout is None else {name: local(state[name]) for name in stored}
    return Job(
        rule=r.rule,
        param=p,
        state=state,
        local_param=local(p),
        local_state=here,
        slots=slots,
        stored=stored,
        storage=storage,
        group=r.group,
        traits=tuple(traits.items()),
        units=units,
        layout=layout,
        offloaded=offloaded,
    )


def match_storage(r: Resolved, p: Tensor, state: dict[str, Any], parameter: str) -> None:
    """Bring state that is stored otherwise than its options and its parameter's dtype say to where they say.

    Raises:
        ValueError: if the parameter has another shape now, for which the state is none.
    """
    stored, _ = plan_storage(r.rule.slots(r.h, p), r.h, p)
    if any(name in state and not _is_stored(state[name], slot, p) for name, slot in stored.items()):
        own = {name: value for name, value in state.items() if name not in ("step", *r.rule.carried)}
        found, others = placed(r, p, own, parameter, {}, strict=False)
        for name in own.keys() - found.keys() - set(others):
            del state[name]
        state.update(found)


def _is_stored(value: Tensor, slot: Slot, p: Tensor) -> bool:
    return value.dtype == (slot.dtype or state_dtype(p)) and tuple(value.shape) == slot.shape_for(p)


def awaited(p: Tensor) -> bool:
    """Whether a parameter without a gradient takes part in a step: another process may have a gradient for its piece."""
    layout = layout_of(p) if p.requires_grad else None
    return layout is not None and bool(layout.sharded)


def tell(job: Job, r: Resolved, t: float) -> None:
    """Give a job what its rule knows at step t."""
    before = tuple(job.state[name].item() for name in r.rule.carried) if r.rule.carried else ()
    job.known, job.carried = r.at(t, before, job.traits)


def tell_on_device(found: Iterable[tuple[Job, Resolved]]) -> None:
    """The same where steps and carried scalars are tensors: all of a group at once, and no number is read back."""
    alike: dict[Any, list[tuple[Job, Resolved]]] = {}
    for job, r in found:
        alike.setdefault((id(r), job.device, _without_place(job)), []).append((job, r))
    for (_, _, traits), some in alike.items():
        r, jobs = some[0][1], [job for job, _ in some]
        carried = {name: torch.stack([job.state[name] for job in jobs]) for name in r.rule.carried}
        steps = torch.stack([job.state["step"] for job in jobs]).double() + 1
        known, after = r.known(steps, carried, dict(traits))
        for job, mine, later in zip(jobs, _unbound(known, len(jobs)), _unbound(after, len(jobs)), strict=True):
            job.known, job.carried = {**mine, **dict(job.traits)}, later


def _without_place(job: Job) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in job.traits if name != "place")


def _unbound(values: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """The numbers of each parameter, where they are vectors of one for each."""
    rows = {name: v.unbind() if isinstance(v, Tensor) and v.dim() else [v] * count for name, v in values.items()}
    return ({name: row[i] for name, row in rows.items()} for i in range(count))
