"""The base of every optimizer: torch's conventions on one side, a rule's few lines on the other."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import MappingProxyType, SimpleNamespace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import Self, Unpack

from descend.engine import checkpoint, executors, options
from descend.engine.backward_hooks import BackwardHooks
from descend.engine.executors import fused
from descend.engine.executors.profile import profile
from descend.engine.job import Job
from descend.engine.options import COMMON_DEFAULTS, Common
from descend.engine.plan import Plan, trial_job
from descend.engine.ranges import declared
from descend.engine.resolved import Resolved
from descend.engine.rule import Decay, Reach, Rule
from descend.engine.sharding.agreement import agree
from descend.engine.sharding.collectives import anywhere
from descend.engine.sharding.layout import check_layout, fresh, is_flat, layout_of, local, processes
from descend.engine.slots import Slot
from descend.engine.storage import plan_storage
from descend.engine.torch_private import outside_graphs
from descend.engine.unwrapped import Unwrappable, unwrap, unwrapped

__all__ = ["Decay", "Optimizer", "Reach"]


class Optimizer(Unwrappable, Rule):
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

    #: State that a wrapper (Lookahead) keeps here beside the rule's: tensors as slots, numbers with their start.
    extra_state: Mapping[str, Slot | float] = {}
    #: Options that came with the name it was asked for by. None: it is a part of a mixture, which judges what acts.
    _bound: Mapping[str, Any] | None = MappingProxyType({})
    #: What moves parameters as their gradients come, after step_in_backward().
    _in_backward: BackwardHooks | None = None
    #: Over which processes sums over all tensors go besides, and how many groups these are known to agree about.
    _process_group: Any = None
    _agreed: int = 0
    #: How many dimensions the parameters of each group had when it was built, by the parameter's id.
    _dims_when_built: tuple[dict[int, int], ...] = ()

    def __init__(self, params: Any, defaults: Mapping[str, Any], **common: Unpack[Common]) -> None:
        kind = type(self).__name__
        options.reject_module(kind, params)
        options.reject_unknown(kind, common, (*defaults, *COMMON_DEFAULTS))
        merged = {name: options.plain(v) for name, v in {**COMMON_DEFAULTS, **common, **defaults}.items()}
        self._check(merged, merged)
        super().__init__(params, merged)
        self.defaults = {name: v.clone() if isinstance(v, Tensor) else v for name, v in merged.items()}
        self._check_trains()
        if self._bound is not None:
            self._check_effects()
        if isinstance(self.defaults["state_dtype"], Mapping):
            self._check_state_names(self.defaults["state_dtype"], self.param_groups)

    # ------------------------------------------------------------------ torch's interface

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its options are checked like the constructor's, before anything changes."""
        kind = type(self).__name__
        if not isinstance(param_group, dict):
            raise TypeError(f"{kind}: a parameter group must be a dict, got {type(param_group).__name__}")
        options.check_params(kind, param_group)
        names = list(self.option_names(param_group))
        options.reject_misspelt(kind, param_group, names)
        group = {name: options.plain(v) if name in names else v for name, v in param_group.items()}
        merged = {**self.defaults, **group}
        self._check(merged, self.defaults)
        params = group["params"]
        group["params"] = [params] if isinstance(params, Tensor) else list(params)
        for i, entry in enumerate(group["params"]):
            name, p = entry if isinstance(entry, tuple) else (str(i), entry)
            options.check_parameter(kind, name, p)
            if merged.get("fused") and isinstance(p, Tensor) and options.moves(p):
                fused.check(kind, name, p)
        self._name_like_the_others(group)
        group |= self._reference_lr(merged)
        super().add_param_group(group)
        self._own_tensors(self.param_groups[-1])
        try:
            for position in range(len(group["params"])):
                self.check_parameter(len(self.param_groups) - 1, position)
            if isinstance(param_group.get("state_dtype"), Mapping):
                self._check_state_names(param_group["state_dtype"], self.param_groups[-1:])
        except ValueError:
            self.param_groups.pop()
            raise
        built = {id(p): 1 if is_lazy(p) else p.dim() for p in group["params"]}
        self._dims_when_built = (*self._dims_when_built, built)

    def _reference_lr(self, group: Mapping[str, Any]) -> dict[str, float]:
        """What corrected weight decay refers to, where a group has this option and no reference yet."""
        needs = group.get("corrected_weight_decay") and "max_lr_snapshot" not in group
        return {"max_lr_snapshot": float(self.defaults["lr"])} if needs else {}

    def _own_tensors(self, group: dict[str, Any]) -> None:
        """Options that are tensors are each group's own: schedulers write into them."""
        others = (*self.param_groups[:-1], self.defaults) if len(self.param_groups) > 1 else ()
        taken = {id(v) for other in others for v in other.values() if isinstance(v, Tensor)}
        group.update({name: v.clone() for name, v in group.items() if isinstance(v, Tensor) and id(v) in taken})

    def _check_trains(self) -> None:
        """Raise where there is no parameter at all, and warn where none takes gradients as yet."""
        params = self._all_params()
        if not params and processes() == 1:  # among several, each may have some of the parameters, and one none
            raise ValueError(
                f"{type(self).__name__}: optimizer got an empty parameter list: none of its "
                f"{len(self.param_groups)} groups has a parameter"
            )
        if params and all(isinstance(p, nn.Parameter) and not p.requires_grad for p in params):
            warnings.warn(
                f"{type(self).__name__}: all {len(params)} parameters are frozen (requires_grad=False), so nothing moves "
                "until some are not",
                stacklevel=4,
            )

    @classmethod
    def named(cls, bound: Mapping[str, Any] | None, params: Any, **given: Any) -> Self:
        """An optimizer as a name of the catalogue gives it.

        Args:
            bound: what the name binds, which may be without effect; None: the groups are some of a mixture's, and what
                acts in none of them may act in others.
            params: as for the class.
            **given: all options.
        """
        made = cls.__new__(cls)
        made._bound = bound
        cls.__init__(made, params, **given)
        del made._bound
        return made

    def bound_of(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of a group that came with a name of the catalogue, not from the caller."""
        return self._bound or {}

    def _check_effects(self) -> None:
        """Raise, or warn, where an option was given and acts in none of the groups that have it."""
        kind = type(self).__name__
        groups: dict[type[Rule], list[tuple[SimpleNamespace, Mapping[str, Any]]]] = {}
        for group in self.param_groups:
            rule = self.rule_of(group)
            h = SimpleNamespace(**{**group, "decay": rule.decay(SimpleNamespace(**group))})
            groups.setdefault(rule, []).append((h, self.bound_of(group)))
        for rule, pairs in groups.items():
            for name, option in declared(rule).items():
                default = COMMON_DEFAULTS.get(name, option.default)
                given = [h for h, bound in pairs if _differs(vars(h).get(name, default), bound.get(name, default))]
                for need in (*rule.acts_with.get(name, ()), *option.needs):
                    unmet = [need.unmet(h) for h in given]
                    if given and all(unmet):
                        message = f"{kind}: {name}={getattr(given[0], name)!r} has no effect{unmet[0]}"
                        if need.raises:
                            raise ValueError(message)
                        warnings.warn(message, stacklevel=_users_level())

    def check_parameter(self, index: int, position: int) -> None:
        """Raise for a parameter that cannot be moved, or cannot have its state as its group asks for it.

        It is called when a group is built, and by a step that finds other parameters than the last one did.

        Args:
            index: of the group.
            position: in the group.

        Raises:
            ValueError: naming the parameter.
        """
        group, kind = self.param_groups[index], type(self).__name__
        p, names = group["params"][position], group.get("param_names")
        name = names[position] if names and position < len(names) else str(position)
        options.check_parameter(kind, name, p)
        if not options.moves(p):
            return
        try:
            r = self.resolve_for(p, group)
            _check_storage(r, p)
            by_shape = self.rule_of(group).reach in ("rows", "matrix")  # which a flat piece hides from its fallback too
            if self._is_flattened(index, p) and (by_shape or _sees_shapes(r, p)):
                raise ValueError(
                    "it is a flat piece of parameters (FSDP1's FlatParameter, DeepSpeed's ZeRO), which have lost their "
                    "shapes, and this rule or its options need whole tensors; use torch.distributed.fsdp.fully_shard"
                )
        except ValueError as error:
            raise ValueError(f"{kind}: parameter {name}: {error}") from None

    def check_state(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a parameter that cannot have its state as the group asks for it, or where it lies."""
        resolved, names = self.resolve(group), group.get("param_names") or ()
        for i, p in enumerate(group["params"]):
            try:
                if options.moves(p):
                    _check_storage(resolved.of(p), p)
            except ValueError as error:
                name = names[i] if i < len(names) else i
                raise ValueError(f"{type(self).__name__}: parameter {name}: {error}") from None

    def _is_flattened(self, index: int, p: Tensor) -> bool:
        """Whether p is a flat piece, by what it says or because it alone has taken the place of a group's matrices."""
        if is_flat(p):
            return True
        built = self._dims_when_built[index] if index < len(self._dims_when_built) else {}
        alone = len(self.param_groups[index]["params"]) == 1 and p.dim() == 1 and id(p) not in built
        return alone and max(built.values(), default=0) > 1

    def _check_state_names(self, chosen: Mapping[str, Any], groups: list[dict[str, Any]]) -> None:
        """Raise for a storage of a state that none of the parameters has."""
        moved = [(p, group) for group in groups for p in group["params"] if options.moves(p)]
        known = {name for p, group in moved for name in self.slots_of(p, group)}
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

    def _name_what_was_appended(self) -> None:
        """Name parameters that were put into a group's list by hand, where the group has names."""
        for index, group in enumerate(self.param_groups):
            names, count = group.get("param_names"), len(group["params"])
            if names is not None and len(names) < count:
                group["param_names"] = [*names, *(f"group{index}.{i}" for i in range(len(names), count))]

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
        rehearsal = closure is None and self.rehearses()
        if not rehearsal:
            self._check_mode()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._agree()
        self._read_scaling()
        jobs = self._plan.jobs(self, self._moved)
        self._moved.clear()
        self._skipped = not rehearsal and (self._overflows() or self._is_to_skip(jobs))
        if rehearsal or self._skipped:
            self._plan.let_go(jobs)
            return loss
        with self._without_autocast():
            self._carry_out(jobs, self._plan)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free the gradients, or set them to zero; after an error inside backward, begin the step again."""
        super().zero_grad(set_to_none)
        self._moved.clear()

    @unwrapped
    def to(self, device: torch.device | str) -> Self:
        """Move the state to a device, as ``model.to(device)`` moves the parameters; step counters stay on the host.

        A step does the same by itself for parameters that have moved. State with ``offload_state`` comes back to the host.

        Args:
            device: where the parameters are.
        """
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state.get(p, {})
                rule = self.resolve_for(p, group).rule
                here = () if group["capturable"] else ("step", *rule.carried)
                moved = {n: t.to(device) for n, t in state.items() if isinstance(t, Tensor) and n not in here}
                state.update(moved)
        return self

    def remove_backward_hooks(self) -> None:
        """Let all parameters move in step() again, where step_in_backward() has them move inside backward."""
        if self._in_backward is not None:
            self._in_backward.remove()
            self._in_backward = None

    @property
    def _moved(self) -> set[Tensor]:
        """The parameters that have moved inside backward since the last step."""
        return set() if self._in_backward is None else self._in_backward.moved

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last call of :meth:`step` left everything as it was, since a gradient was not finite."""
        return bool(vars(unwrap(self)).get("_skipped", False))

    def _without_autocast(self) -> ExitStack:
        """The maths has its own dtypes, also where a step runs inside autocast."""
        stack = ExitStack()
        for kind in {group["params"][0].device.type for group in self.param_groups if group["params"]}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        return stack

    def _read_scaling(self) -> None:
        """Read what a GradScaler leaves on the device, all of it at once, where the host has to know it."""
        scale, found_inf = vars(self).get("grad_scale"), vars(self).get("found_inf")
        capturable = any(group["capturable"] for group in self.param_groups)
        if scale is not None and found_inf is not None and not capturable and found_inf.device.type != "cpu":
            both = torch.stack([x.reshape(()).to(found_inf.device) for x in (scale, found_inf)])
            self.grad_scale, self.found_inf = both.cpu()

    def _overflows(self) -> bool:
        """Whether a GradScaler that leaves the check to us found an infinity; with `capturable` the kernels see to it."""
        found_inf = getattr(self, "found_inf", None)
        on_device = all(group["capturable"] for group in self.param_groups)
        return found_inf is not None and not on_device and bool(found_inf.item())

    def _is_to_skip(self, jobs: list[Job]) -> bool:
        """Whether a gradient of the groups with `skip_nonfinite` is not finite, here or on another process."""
        if not any(group["skip_nonfinite"] for group in self.param_groups):
            return False
        watched = [job.grad for job in jobs if job.group["skip_nonfinite"]]
        return anywhere(not _all_finite(watched), self._all_params(), self._process_group)

    def _agree(self) -> None:
        """Before the first step, and after a new group: all processes are about the same parameters and options."""
        if self._agreed != len(self.param_groups):
            names = [(*self.option_names(group), "rule") for group in self.param_groups]
            agree(type(self).__name__, self.param_groups, names, self._process_group)
            self._agreed = len(self.param_groups)

    @unwrapped
    def sum_over(self, process_group: Any) -> None:
        """Let sums over all tensors go over a group of processes, each of which has other parameters.

        ``torch.distributed.optim.ZeroRedundancyOptimizer`` gives its processes whole parameters, each some of them;
        :func:`~descend.engine.zero.partitioned` calls this for it.

        Args:
            process_group: of torch.distributed.
        """
        self._process_group = process_group

    def _all_params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def rehearses(self) -> bool:
        """Whether this is the step that distributed checkpoints fake to have the state made: it must count nothing."""
        return rehearses(self)

    @unwrapped
    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, with the optimizer's name and the version of the format."""
        self._name_what_was_appended()
        return checkpoint.stamped(super().state_dict(), self)

    @unwrapped
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> checkpoint.IncompatibleKeys:  # type: ignore[override]
        """Load what :meth:`state_dict` gave, or a checkpoint of the same optimizer from timm or torch.

        Parameters are matched by ``param_names`` where both sides have them, else by position. Options come with the
        state, checked as the constructor checks them; ``foreach``, ``fused``, ``capturable``, ``state_dtype``,
        ``master`` and ``offload_state`` stay this optimizer's, and state takes the dtype that they ask for. Everything
        is checked before anything is changed.

        Args:
            state_dict: of this optimizer; it is left as it is.
            strict: raise where the names of the parameters differ, or state is none of this rule's. False: load what
                both sides have; parameters that the state_dict lacks stay as they are.

        Returns:
            What the sides do not share, as ``missing_keys`` and ``unexpected_keys``.

        Raises:
            ValueError: if the groups, the names of parameters or state, shapes or options are not this optimizer's.
        """
        self._name_what_was_appended()
        return checkpoint.load(self, state_dict, strict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it there; it is no option of ours, nor a kernel's
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def state_bytes(self, param: Tensor, group: dict[str, Any] | None = None) -> int:
        """Bytes of state that this optimizer keeps for one parameter, or for its piece, without making any.

        Args:
            param: one of its parameters.
            group: whose options count. None: the parameter's own.

        Raises:
            ValueError: without `group`, if the parameter is in none.
        """
        if not options.moves(param):
            return 0
        r = self.resolve_for(param, self._group_of(param) if group is None else group)
        slots, _ = plan_storage(r.rule.slots(r.h, param), r.h, param)
        meta = torch.empty_like(local(param), device="meta")
        tensors = [local(fresh(slot, param, meta)) for slot in slots.values()]
        return sum(t.numel() * t.element_size() for t in tensors) + 4 + 8 * len(r.rule.carried)

    def _group_of(self, param: Tensor) -> dict[str, Any]:
        for group in self.param_groups:
            if any(p is param for p in group["params"]):
                return group
        raise ValueError(
            f"{type(self).__name__}: the parameter of shape {tuple(param.shape)} is in none of the groups; pass the group "
            "whose options count"
        )

    # ------------------------------------------------------------------ what a step works on

    def _check(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        kind, known = type(self).__name__, declared(type(self))
        for name in defaults:
            if name in self.refused and values[name]:
                raise ValueError(f"{kind}: {name}={values[name]!r} is not possible: {self.refused[name]}")
            if name in known and (wrong := known[name].fault(values[name])):
                raise ValueError(f"{kind}: {wrong}")
        if values.get("foreach") and values.get("fused"):
            raise ValueError(f"{kind}: foreach=True and fused=True exclude each other, set at most one")
        if values.get("capturable") and values.get("offload_state"):
            raise ValueError(
                f"{kind}: capturable=True and offload_state=True exclude each other: copies end on the host"
            )
        if values.get("corrected_weight_decay") and "lr" in values and not float(values["lr"] or 0.0) > 0:
            raise ValueError(f"{kind}: lr={values['lr']!r}, corrected_weight_decay needs a positive lr to refer to")
        try:
            self.check(SimpleNamespace(**values))
            if values.get("fallback") is not None or values.get("fallback_options"):
                self._check_fallback(values)
        except ValueError as error:
            raise ValueError(f"{kind}: {error}") from None

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options of a group that the constructor would not take."""
        self._check(group, self.defaults)

    def _check_fallback(self, values: Mapping[str, Any]) -> None:
        """Raise as the fallback's own optimizer does, and where it needs parameter groups of its own."""
        found = self.fallback(SimpleNamespace(**values))
        if found is not None:
            rule, own = found
            rule.named(None, [torch.nn.Parameter(torch.zeros(1, device="cpu"))], **own)  # type: ignore[attr-defined]
            for name in ("before_step", "after_step", "check_mode"):
                if getattr(rule, name).__func__ is not getattr(Rule, name).__func__:
                    raise ValueError(
                        f"fallback={values['fallback']!r} keeps numbers in its parameter groups, or looks at them; give it "
                        "groups of its own in descend.Mixed"
                    )

    @property
    def _plan(self) -> Plan:
        """The jobs kept between steps; it is no state, and is made again after a copy or a load."""
        kept = vars(unwrap(self))
        if "_kept_plan" not in kept:
            kept["_kept_plan"] = Plan()
        plan: Plan = kept["_kept_plan"]
        return plan

    def _check_mode(self) -> None:
        for group in self.param_groups:
            self.rule_of(group).check_mode(group)

    def _carry_out(self, jobs: list[Job], plan: Plan) -> None:
        """Move the parameters of a plan, each rule with what it does before and after."""
        groups: dict[type[Rule], list[dict[str, Any]]] = {}
        for group in self.param_groups:
            for rule in self.rules_of(group):
                groups.setdefault(rule, []).append(group)
        for rule, mine in groups.items():
            rule.before_step([job for job in jobs if job.rule is rule], mine)
        totals = executors.run(groups, jobs, plan, self._process_group)
        for rule, mine in groups.items():
            rule.after_step(mine, totals[rule], getattr(self, "found_inf", None))

    def rules_of(self, group: Mapping[str, Any]) -> tuple[type[Rule], ...]:
        """The rules that move parameters of a group: its own, and what that falls back on."""
        rule = self.rule_of(group)
        own = {name: options.plain(group[name]) for name in self.option_names(group) if name in group}
        found = rule.fallback(SimpleNamespace(**own))
        return (rule,) if found is None else (rule, found[0])

    def rule_of(self, group: Mapping[str, Any]) -> type[Rule]:
        """The rule that moves the parameters of a group."""
        return type(unwrap(self))

    def resolve(self, group: dict[str, Any]) -> Resolved:
        """The rule of a group, and its options for this step."""
        scaling = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        r = Resolved(self.rule_of(group), self.option_names(group), group, scaling)
        found = r.rule.fallback(r.h)
        if found is not None:
            rule, own = found
            common = {name: group[name] for name in COMMON_DEFAULTS}
            other = {**_defaults_of(rule), **common, **own}  # type: ignore[arg-type]
            if group.get("max_lr_snapshot") is not None:  # what the fallback's own lr was, when the group's was that
                _, at_first = r.rule.fallback(SimpleNamespace(**{**vars(r.h), "lr": group["max_lr_snapshot"]})) or found
                other["max_lr_snapshot"] = at_first.get("lr", other["lr"])
            r.fallback = Resolved(rule, other, {**other, "params": group.get("params", [])}, scaling)
        return r

    def resolve_for(self, param: Tensor, group: Mapping[str, Any]) -> Resolved:
        """The rule of one parameter, and its options; what the group lacks is the optimizer's default."""
        return self.resolve({**self.defaults, **group}).of(param)

    def slots_of(self, param: Tensor, group: Mapping[str, Any]) -> dict[str, Slot]:
        """The state that one parameter of a group has, as its rule declares it."""
        r = self.resolve_for(param, group)
        return r.rule.slots(r.h, param)

    def option_names(self, group: Mapping[str, Any]) -> Iterable[str]:
        """The names of the options that a group has; what else users put into it is their own."""
        return self.defaults

    def rule_name(self, param: Tensor, group: Mapping[str, Any]) -> str:
        """Which rule moves this parameter of this group."""
        return self.resolve_for(param, group).rule.__name__

    def name_of(self, index: int, position: int) -> str:
        """A parameter's name, for messages."""
        names = self.param_groups[index].get("param_names")
        return repr(names[position]) if names and position < len(names) else f"{position} of group {index}"

    @torch.no_grad()
    def _step_alone(self, plan: Plan) -> None:
        """Move the parameters of another plan, by the same options and state."""
        self._check_mode()
        self._agree()
        with self._without_autocast():
            self._carry_out(plan.jobs(self, self._moved), plan)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks this: fused kernels divide by the scale themselves."""
        if self._in_backward is not None:
            raise RuntimeError(
                "step_in_backward() has moved the parameters inside backward already: by gradients that a GradScaler scaled, "
                "if there is one (train without, in bfloat16, which needs no scaling), and before they could be clipped "
                "(switch clipping off; update_clip and adaptive_grad_clip look at one parameter)"
            )
        return any(group["fused"] for group in self.param_groups)


@functools.cache
def _defaults_of(kind: Any) -> Mapping[str, Any]:
    """The options of a rule that nobody was told anything about."""
    defaults: dict[str, Any] = kind([torch.nn.Parameter(torch.zeros(1, device="cpu"))]).defaults
    return defaults


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite; the host waits for each device once."""
    kinds: dict[torch.device, dict[torch.dtype, list[Tensor]]] = {}
    for x in tensors:
        if x.numel():
            kinds.setdefault(x.device, {}).setdefault(x.dtype, []).append(x)
    for alike in kinds.values():
        finite = [torch.isfinite(torch.stack(torch._foreach_norm(xs, math.inf))) for xs in alike.values()]
        if not bool(torch.cat(finite).all()):
            return False
    return True


def _users_level() -> int:
    """How many calls up from the caller the user's own line is, for warnings."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("descend."):
        frame, level = frame.f_back, level + 1
    return level


def _differs(value: Any, default: Any) -> bool:
    """Whether an option was given."""
    return isinstance(value, Tensor) or bool(value != default)


def rehearses(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of any optimizer is the one that distributed checkpoints fake to have its state made.

    They call it on an optimizer without state, with every lr 0 and every gradient zero.
    """
    one_among_others = getattr(optimizer, "_process_group", None)  # who may have gradients where this process has none
    groups = optimizer.param_groups
    if optimizer.state or one_among_others is not None or not all(_is_zero(group.get("lr")) for group in groups):
        return False
    params = [p for group in groups for p in group["params"]]
    grads = [local(p.grad) for p in params if p.grad is not None]
    moves = not grads or any(bool(torch.any(g)) for g in grads if g.layout == torch.strided)
    return not anywhere(moves, params)


def _check_storage(r: Resolved, p: Tensor) -> None:
    _, storage = plan_storage(r.rule.slots(r.h, p), r.h, p)
    check_layout(p, storage.length, storage.random, r.rule.needs_whole(r.h))
    if r.h.offload_state and layout_of(p) is not None:
        raise ValueError("offload_state=True is for whole parameters; use fully_shard's CPUOffloadPolicy()")


def _sees_shapes(r: Resolved, p: Tensor) -> bool:
    """Whether a step of this parameter depends on more than one element at a time."""
    if r.rule.reach in ("rows", "matrix") or r.h.centralize_grad or r.h.skip_nonfinite:
        return True
    return bool(profile(r.rule, trial_job(p, r)).rounds)


def _is_zero(lr: Any) -> bool:
    if isinstance(lr, Tensor):
        return type(lr) is Tensor and lr.device.type == "cpu" and float(lr) == 0
    return lr is not None and lr == 0
