"""The jobs of an optimizer, kept from step to step as long as what they depend on stays."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from descend.engine.counters import Counters
from descend.engine.job import Job
from descend.engine.offload import is_far, on_host
from descend.engine.options import moves
from descend.engine.resolved import Resolved
from descend.engine.sharding.layout import fresh, layout_of, local
from descend.engine.storage import rest

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer


class Plan:
    """Which parameters a step moves, with their state at hand.

    Args:
        places: group and position of the parameters that are moved; None: all that have a gradient.
        process_group: over which sums over all tensors go besides.

    Attributes:
        counters: how often each of them has moved.
        memory: what executors keep between steps, dropped with the jobs.
    """

    def __init__(self, places: Collection[tuple[int, int]] | None = None, process_group: Any = None) -> None:
        self.process_group = process_group
        self.counters = Counters()
        self.memory: dict[str, Any] = {}
        self._groups: dict[int, tuple[Any, dict[int, Job]]] = {}
        self._states: list[Any] = []
        self._places = places
        self._checked: list[Tensor] = []
        self._homeless: list[tuple[Any, Job]] = []

    @property
    def is_of_all(self) -> bool:
        """Whether it is about all parameters of the optimizer."""
        return self._places is None

    def jobs(self, optimizer: Optimizer) -> list[Job]:
        """One job a parameter with a gradient; everything that can be wrong is found before any state is made."""
        moved = optimizer._in_backward or ()
        placed = list(self._params(optimizer))
        self._check(optimizer, placed)
        found = [(i, j, p, g) for i, j, p in placed if (g := p.grad) is not None or (awaited(p) and p not in moved)]
        for index, position, _, g in found:
            if g is not None and g.layout is not torch.strided:
                raise RuntimeError(
                    f"{type(optimizer).__name__}: the gradient of parameter {_name(optimizer, index, position)} is "
                    f"sparse ({g.layout}); make it dense (sparse=False in nn.Embedding), or use torch.optim.SparseAdam"
                )
        held = self._held(optimizer)
        if not (len(held) == len(self._states) and all(map(operator.is_, held, self._states))):
            self.memory.clear()
            self._groups.clear()
            self._states = []
        resolved: dict[int, tuple[Resolved, dict[int, Job]]] = {}
        jobs, on_host = [], []
        for index, position, p, g in found:
            if index not in resolved:
                resolved[index] = self._group(optimizer, index)
            r, kept = resolved[index]
            job = kept.get(position)
            if job is None or job.leaf is not p or "step" not in job.home or (job.layout and has_other_pieces(job)):
                home = optimizer.state[p] if g is not None or p in optimizer.state else {}
                job = kept[position] = new_job(p, r, home, (index << 32) + position)
            job.group, job.done = r.group, False
            if job.layout is None and g is not None:
                job.grad = g
            elif job.layout is not None:
                job.grad, job.present = job.layout.gradient(p), g is not None
                if p not in optimizer.state:
                    self._homeless.append((optimizer.state, job))
            if job.rests.master is not None:
                forget_compensation(job)
            jobs.append(job)
            if r.group["capturable"]:
                tell_on_device(job, r)
            else:
                on_host.append((job, r))
        for (job, r), step in zip(on_host, self.counters.read([job for job, _ in on_host]), strict=True):
            tell(job, r, step + 1)
        if self._places is not None or len(self._states) != len(optimizer.state):
            self._states = self._held(optimizer)
        return jobs

    def _check(self, optimizer: Optimizer, placed: list[tuple[int, int, Tensor]]) -> None:
        """Check the parameters again where some are not those of the last step: wrappers exchange them."""
        now = [p for _, _, p in placed]
        if not (len(now) == len(self._checked) and all(map(operator.is_, now, self._checked))):
            for index, position, _ in placed:
                optimizer.check_parameter(index, position)
            self._checked = [p for p in now if not is_lazy(p)]

    def _params(self, optimizer: Optimizer) -> Iterator[tuple[int, int, Tensor]]:
        """Group, position and parameter of all that the plan is about."""
        if self._places is not None:
            return ((i, j, optimizer.param_groups[i]["params"][j]) for i, j in self._places)
        groups = enumerate(optimizer.param_groups)
        return ((i, j, p) for i, group in groups for j, p in enumerate(group["params"]))

    def _held(self, optimizer: Optimizer) -> list[Any]:
        """The state dicts that the jobs are to hold."""
        if self._places is None:
            return list(optimizer.state.values())
        return [optimizer.state.get(p) for _, _, p in self._params(optimizer)]

    def let_go(self, jobs: list[Job]) -> None:
        """Keep nothing of a step that is not taken: gradients are the user's to free."""
        for job in jobs:
            del job.grad
        self._homeless.clear()

    def settle(self) -> None:
        """Give the optimizer the state of parameters that had a gradient elsewhere only, and moved."""
        for states, job in self._homeless:
            if job.done:
                states[job.leaf] = job.home
                self._states.append(job.home)
        self._homeless.clear()

    def restored(self, versions: Mapping[Tensor, int]) -> None:
        """Parameters that others moved since our last step are again what they were at these versions."""
        for _, kept in self._groups.values():
            for job in kept.values():
                if job.leaf in versions and job.version == versions[job.leaf]:
                    job.version = job.leaf._version

    def _group(self, optimizer: Optimizer, index: int) -> tuple[Resolved, dict[int, Job]]:
        group = optimizer.param_groups[index]
        r = Resolved(optimizer, group)
        first = next(p for p in group["params"] if moves(p))
        key = (*r.flags.items(), r.decay, *r.numbers, *optimizer.slots(r.h, first))
        before, kept = self._groups.get(index, (None, {}))
        if before != key:
            kept = {}
            self._groups[index] = key, kept
        return r, kept


def trial_jobs(optimizer: Optimizer) -> list[Job]:
    """A job for every parameter, as a step with all gradients would have it, without touching any state."""
    resolved = [Resolved(optimizer, group) for group in optimizer.param_groups]
    return [trial_job(p, r) for r in resolved for p in r.group["params"] if p.requires_grad]


def trial_job(p: Tensor, r: Resolved) -> Job:
    """A parameter's job at its first step, without any memory."""
    job = new_job(p, r, {}, like=torch.empty_like(local(p), device="meta"))
    job.grad = torch.empty_like(local(p), device="meta")
    if r.group["capturable"]:
        tell_on_device(job, r)
    else:
        tell(job, r, 1.0)
    return job


def new_job(p: Tensor, r: Resolved, state: dict[str, Any], place: int = 0, like: Tensor | None = None) -> Job:
    """A parameter's job; what its state lacks is made, on the device of `like` if given."""
    device = p.device if r.group["capturable"] else torch.device("cpu")
    slots, traits = r.rule.slots(r.h, p), r.rule.traits(r.h, p)
    resting, rests = rest(slots, r.h, p)
    if rests.random:
        traits = {**traits, "place": float(place)}
    if "step" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=device)
    for name, start in r.rule.carried.items():
        if name not in state:
            state[name] = torch.full((), start, dtype=torch.float64, device=device)
    for name in ("step", *r.rule.carried):
        if state[name].device != device:
            state[name] = state[name].to(device)
    layout, offloaded = layout_of(p), bool(r.h.offload_state) and is_far(p)
    for name, slot in resting.items():
        if name not in state:
            state[name] = fresh(slot, p, like)
        if layout is None and like is None:
            state[name] = on_host(state[name]) if offloaded else state[name].to(p.device)
    units = r.rule.reach in ("elementwise", "tensor") or r.rule.by_units
    units = units and all(slot.like_parameter for slot in slots.values())
    here = state if layout is None else {name: local(state[name]) for name in resting}
    given = tuple(traits.items())
    return Job(
        p, state, local(p), here, slots, resting, rests, r.group, given, units, layout=layout, offloaded=offloaded
    )


def awaited(p: Tensor) -> bool:
    """Whether a parameter without a gradient takes part in a step: another process may have a gradient for its piece."""
    layout = layout_of(p) if p.requires_grad else None
    return layout is not None and bool(layout.sharded)


def has_other_pieces(job: Job) -> bool:
    """Whether somebody exchanged the memory of a DTensor, or of its state."""
    return job.param is not local(job.leaf) or any(t is not local(job.home[name]) for name, t in job.state.items())


def forget_compensation(job: Job) -> None:
    """What a parameter lacked before somebody else changed it is no part of what it is now."""
    if job.version is not None and job.leaf._version != job.version:
        for name in job.rests.master.beside if job.rests.master else ():
            job.state[name].zero_()


def tell(job: Job, r: Resolved, t: float) -> None:
    """Give a job what its rule knows at step t."""
    before = tuple(job.home[name].item() for name in r.rule.carried) if r.rule.carried else ()
    job.known, job.carried = r.at(t, before, job.traits)


def tell_on_device(job: Job, r: Resolved) -> None:
    """The same where step and carried scalars are tensors, and no number is read back."""
    carried = {name: job.home[name] for name in r.rule.carried}
    job.known, job.carried = r.known(job.home["step"].double() + 1, carried, dict(job.traits))


def _name(optimizer: Optimizer, index: int, position: int) -> str:
    names = optimizer.param_groups[index].get("param_names") or ()
    return repr(names[position]) if position < len(names) else f"{position} of group {index}"
