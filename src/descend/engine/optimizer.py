"""The base of every optimizer: torch's conventions on one side, a rule's few lines on the other."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine import executors, options, serial
from descend.engine.executors import fused
from descend.engine.job import Job
from descend.engine.known import Known, State
from descend.engine.options import COMMON_DEFAULTS, Common
from descend.engine.plan import Plan
from descend.engine.sharding.agreement import agree
from descend.engine.sharding.collectives import anywhere
from descend.engine.sharding.layout import check_layout, fresh, layout_of, local
from descend.engine.slots import Slot
from descend.engine.storage import rest
from descend.engine.text import take
from descend.engine.torch_private import outside_graphs
from descend.terms import Quotient

Reach = Literal["elementwise", "tensor", "rows", "matrix"]
Decay = Literal["none", "coupled", "decoupled", "fixed", "own"]


class Optimizer(torch.optim.Optimizer):
    """A rule, carried out by the engine.

    A subclass states its state (:meth:`slots`), its scalars (:meth:`scalars`) and its direction
    (:meth:`direction`), all static methods, for a rule sees values and never the optimizer.

    Args:
        params: tensors, (name, tensor) pairs, or dicts that are parameter groups, as in torch.
        defaults: the optimizer's own options.
        **common: the options of :class:`~descend.engine.options.Common`.

    Raises:
        TypeError: for an option that the optimizer does not have.
        ValueError: for an option out of its range, in a group or for all; the message says what would be right.
    """

    reach: ClassVar[Reach] = "elementwise"
    #: Whether a rule of reach "rows" tells no dimensions apart but the first: its sums go over units and over all.
    by_units: ClassVar[bool] = False
    #: State names that checkpoints of timm or torch use for ours.
    foreign_names: ClassVar[Mapping[str, str]] = {}
    #: State that is kept beside the slots, loaded as it is.
    extra_state: ClassVar[frozenset[str]] = frozenset(("lookahead_slow_buff",))
    #: Scalars that a parameter carries from step to step on the host, with their start.
    carried: ClassVar[Mapping[str, float]] = {}
    #: Numeric options that shape the text (iteration counts), and so are flags rather than scalars.
    structural: ClassVar[frozenset[str]] = frozenset()
    #: Common options that the rule cannot honour, with the reason.
    refused: ClassVar[Mapping[str, str]] = {}
    #: What to change where a step must not wait for the gradients of all parameters.
    waits_for_all: ClassVar[str] = ""
    #: Where parameters move as their gradients come, whether one has moved since the last call of step().
    _in_backward: set[Tensor] | None = None
    _plans_in_backward: tuple[Plan, ...] = ()
    #: Over which processes sums over all tensors go besides, and how many groups these are known to agree about.
    _process_group: Any = None
    _agreed: int = 0

    def __init__(self, params: Any, defaults: Mapping[str, Any], **common: Unpack[Common]) -> None:
        kind = type(self).__name__
        options.reject_unknown(kind, common, (*defaults, *COMMON_DEFAULTS))
        merged = {**COMMON_DEFAULTS, **common, **defaults}
        self._check(merged, merged)
        super().__init__(params, merged)
        if isinstance(self.defaults["state_dtype"], Mapping):
            self._check_state_names(self.defaults["state_dtype"], self.param_groups)

    # ------------------------------------------------------------------ the rule, as subclasses write it

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        """The state that the rule keeps for parameter `p` under the options `h`."""
        return {}

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        """Flags that depend on the parameter's shape: which way of a rule with several ways it goes."""
        return {}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        """The scalars of step `t` (1 at a parameter's first), from the options `h` and what is carried, `c`.

        Arithmetic only, so that the same lines run on Python floats and, with ``capturable``, on 0-d tensors. Every
        numeric option is known to the text anyway. ``gain`` multiplies the lr; carried scalars are assigned on `c`.
        """
        return {}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor | Quotient:
        """Move the state `s` by the gradient `g` and return the direction in which the parameter descends."""
        raise NotImplementedError("an optimizer defines direction(p, g, s, k), or move(p, g, s, k)")

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        """Change `p` itself: the door for rules whose step is more than lr times a direction."""
        take(p, cls.direction(p, g, s, k), g, k)

    @staticmethod
    def decay(h: Any) -> Decay:
        """How weight decay enters: into the gradient, onto the parameter, or by the rule's own lines."""
        return "decoupled"

    @staticmethod
    def check(h: Any) -> None:
        """Raise ValueError where options contradict each other."""

    @staticmethod
    def needs_whole(h: Any) -> str:
        """Why no parameter may be spread over processes, and what to do; empty where they may."""
        return ""

    # ------------------------------------------------------------------ torch's interface

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its options are checked like the constructor's, before anything changes."""
        kind = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(f"{kind}: a parameter group must be a dict, got {type(param_group).__name__}")
        options.reject_misspelt(kind, param_group, self.defaults)
        merged = {**self.defaults, **param_group}
        self._check(merged, self.defaults)
        group = dict(param_group)
        params = group.get("params", [])
        group["params"] = [params] if isinstance(params, Tensor) else list(params)
        for i, entry in enumerate(group["params"]):
            name, p = entry if isinstance(entry, tuple) else (str(i), entry)
            options.check_parameter(kind, name, p)
            if merged.get("fused") and isinstance(p, Tensor):
                fused.check(kind, name, p)
        self._name_like_the_others(group)
        if merged.get("corrected_weight_decay") and "max_lr_snapshot" not in group:
            group["max_lr_snapshot"] = float(self.defaults["lr"])
        super().add_param_group(group)
        try:
            self._check_state(self.param_groups[-1])
            if isinstance(param_group.get("state_dtype"), Mapping):
                self._check_state_names(param_group["state_dtype"], self.param_groups[-1:])
        except ValueError:
            self.param_groups.pop()
            raise

    def _check_state(self, group: dict[str, Any]) -> None:
        """Raise for a parameter that cannot have its state as the group asks for it, or where it lies."""
        h, names = SimpleNamespace(**group), group.get("param_names")
        for i, p in enumerate(group["params"]):
            try:
                _, rests = rest(self.slots(h, p), h, p)
                check_layout(p, rests.length, rests.random, self.needs_whole(h))
                if h.offload_state and layout_of(p) is not None:
                    raise ValueError("offload_state=True is for whole parameters; use fully_shard's CPUOffloadPolicy()")
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}: parameter {names[i] if names else i}: {error}") from None

    def _check_state_names(self, chosen: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
        """Raise for a storage of a state that none of the parameters has."""
        known = {name for group in groups for p in group["params"] for name in self.slots(SimpleNamespace(**group), p)}
        for name in chosen:
            if known and name not in known:
                raise ValueError(
                    f"{type(self).__name__}: state_dtype names {name!r}, but the state is {', '.join(sorted(known))}"
                )

    def _name_like_the_others(self, group: dict[str, Any]) -> None:
        """Give an unnamed group names where the groups before have them: torch takes all with names or none."""
        named = bool(self.param_groups) and "param_names" in self.param_groups[0]
        if named and "param_names" not in group and all(isinstance(entry, Tensor) for entry in group["params"]):
            index = len(self.param_groups)
            group["param_names"] = [f"group{index}.{i}" for i in range(len(group["params"]))]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @outside_graphs
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient by one step.

        Args:
            closure: re-evaluates the model and returns the loss; it runs with gradients enabled.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rehearsal = self.rehearses()
        self._agree()
        jobs = self._plan.jobs(self)
        if self._in_backward is not None:
            self._in_backward.clear()
        if rehearsal or self._overflows() or self._is_to_skip(jobs):
            self._plan.let_go(jobs)
            return loss
        with self._without_autocast():
            self._run(jobs)
        return loss

    def _without_autocast(self) -> ExitStack:
        """The maths has its own dtypes, also where somebody steps inside autocast."""
        stack = ExitStack()
        for kind in {group["params"][0].device.type for group in self.param_groups if group["params"]}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        return stack

    def _overflows(self) -> bool:
        """Whether a GradScaler that leaves the check to us found an infinity; with `capturable` the kernels see to it."""
        found_inf = getattr(self, "found_inf", None)
        on_device = all(group["capturable"] for group in self.param_groups)
        return found_inf is not None and not on_device and bool(found_inf.item())

    def _check_mode(self) -> None:
        """Raise RuntimeError where the parameters are not what gradients belong to."""

    def _is_to_skip(self, jobs: list[Job]) -> bool:
        """Whether a gradient of the groups with `skip_nonfinite` is not finite, here or on another process."""
        if not any(group["skip_nonfinite"] for group in self.param_groups):
            return False
        watched = [job.grad for job in jobs if job.group["skip_nonfinite"]]
        bad = not all(bool(torch.isfinite(g).all()) for g in watched)
        return anywhere(bad, self._all_params(), self._process_group)

    def _agree(self) -> None:
        """Before the first step, and after a new group: all processes are about the same parameters and options."""
        if self._agreed != len(self.param_groups):
            agree(type(self).__name__, self.param_groups, tuple(self.defaults), self._process_group)
            self._agreed = len(self.param_groups)

    def sum_over(self, process_group: Any) -> None:
        """Let sums over all tensors go over a group of processes, each of which has other parameters.

        ``torch.distributed.optim.ZeroRedundancyOptimizer`` gives its processes whole parameters, each some of them;
        :func:`~descend.engine.in_pieces.partitioned` calls this for it.

        Args:
            process_group: of torch.distributed.
        """
        self._process_group = process_group
        self.__dict__.pop("_kept_plan", None)

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def rehearses(self) -> bool:
        """Whether this is the step that distributed checkpoints fake to have the state made: it must count nothing.

        They call it on an optimizer without state, with every lr 0 and every gradient zero.
        """
        one_among_others = self._process_group is not None  # who may have gradients where this process has none
        if self.state or one_among_others or not all(_is_zero(group["lr"]) for group in self.param_groups):
            return False
        params = self._all_params()
        grads = [local(p.grad) for p in params if p.grad is not None]
        moves = not grads or any(bool(torch.any(g)) for g in grads if g.layout == torch.strided)
        return not anywhere(moves, params)

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, with the optimizer's name and the version of the format."""
        return serial.stamped(super().state_dict(), type(self).__name__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave, or a checkpoint of the same optimizer from timm or torch.

        Parameters are matched by ``param_names`` where both sides have them, else by position. State keeps the dtype
        that the options ask for. Everything is checked before anything is changed.

        Raises:
            ValueError: if the groups, the names of the state or its shapes are not this optimizer's.
        """
        serial.load(self, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it there; it is no option of ours, nor a kernel's
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def state_bytes(self, param: Tensor, group: dict[str, Any] | None = None) -> int:
        """Bytes of state that this optimizer keeps for one parameter, or for its piece, without making any."""
        h = SimpleNamespace(**(group or self.defaults))
        slots, _ = rest(self.slots(h, param), h, param)
        meta = torch.empty_like(local(param), device="meta")
        tensors = [local(fresh(slot, param, meta)) for slot in slots.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + 4 + 8 * len(self.carried)

    # ------------------------------------------------------------------ what a step works on

    def _check(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        kind = type(self).__name__
        for name, default in defaults.items():
            if name in self.refused and values[name]:
                raise ValueError(f"{kind}: {name}={values[name]!r} is not possible: {self.refused[name]}")
            fallback = COMMON_DEFAULTS.get(name, default)
            class_default, optional = _signature(type(self)).get(name, (fallback, fallback is None))  # type: ignore[arg-type]
            options.check_option(kind, name, values[name], class_default, optional)
        if values.get("foreach") and values.get("fused"):
            raise ValueError(f"{kind}: foreach=True and fused=True exclude each other, set at most one")
        if values.get("capturable") and values.get("offload_state"):
            raise ValueError(
                f"{kind}: capturable=True and offload_state=True exclude each other: copies end on the host"
            )
        if values.get("corrected_weight_decay") and not float(values["lr"] or 0.0) > 0:
            raise ValueError(f"{kind}: lr={values['lr']!r}, corrected_weight_decay needs a positive lr to refer to")
        try:
            self.check(SimpleNamespace(**values))
        except ValueError as error:
            raise ValueError(f"{kind}: {error}") from None

    @property
    def _plan(self) -> Plan:
        """The jobs kept between steps; it is no state, and is made anew after a copy or a load."""
        plan: Plan | None = self.__dict__.get("_kept_plan")
        if plan is None:
            plan = self.__dict__["_kept_plan"] = Plan(process_group=self._process_group)
        return plan

    def _run(self, jobs: list[Job]) -> executors.Totals:
        return executors.run(type(self), jobs, self._plan)

    @torch.no_grad()
    def _step_alone(self, plan: Plan) -> None:
        """Move the parameters of another plan, by the same options and state."""
        self._check_mode()
        self._agree()
        with self._without_autocast():
            executors.run(type(self), plan.jobs(self), plan)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks this: fused kernels divide by the scale themselves."""
        if self._in_backward is not None:
            raise RuntimeError(
                "step_in_backward() has moved the parameters by gradients that a GradScaler scaled; train without one, "
                "in bfloat16, which needs no scaling"
            )
        return any(group["fused"] for group in self.param_groups)


@functools.cache
def _signature(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The default of each of the constructor's arguments (NaN if there is none), and whether it may be None."""
    found: dict[str, tuple[Any, bool]] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, Optimizer) and "__init__" in vars(base):
            for p in inspect.signature(base.__init__).parameters.values():
                default = math.nan if p.default is p.empty else p.default
                found[p.name] = default, "None" in str(p.annotation)
    return found


def _is_zero(lr: Any) -> bool:
    if isinstance(lr, Tensor):
        return type(lr) is Tensor and lr.device.type == "cpu" and float(lr) == 0
    return lr is not None and lr == 0
