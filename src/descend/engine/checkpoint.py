"""Saving and loading optimizer state: named, versioned, in the dtypes that were asked for."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from descend.engine.counters import new_counters
from descend.engine.options import EXECUTION_DEFAULTS, plain_group
from descend.engine.placing import placed
from descend.engine.plan import Owner
from descend.engine.resolved import Resolved
from descend.engine.slots import Slot

FORMAT = 1
_FORMAT_KEY = "descend_format"
_NAME_KEY = "descend_optimizer"
_MOST_LISTED = 20


class Loads(Owner, Protocol):
    """What loading needs of an optimizer."""

    defaults: dict[str, Any]
    extra_state: Mapping[str, Slot | float]
    _optimizer_load_state_dict_pre_hooks: Any
    _optimizer_load_state_dict_post_hooks: Any

    def resolve_for(self, param: Tensor, group: Mapping[str, Any]) -> Resolved:
        """The rule of one parameter, and its options."""

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options of a group that the constructor would not take."""

    def _reference_lr(self, group: Mapping[str, Any]) -> dict[str, float]: ...

    def check_state(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a parameter that cannot have its state as the group asks for it."""

    def __setstate__(self, state: dict[str, Any]) -> None: ...


class IncompatibleKeys(NamedTuple):
    """What an optimizer and a state_dict do not share, under the names that ``nn.Module.load_state_dict`` returns it.

    Attributes:
        missing_keys: parameters that the state_dict lacks; their state stays as it was.
        unexpected_keys: parameters that the optimizer lacks, and state that its rule does not keep, as
            "parameter.state".
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


@dataclass(frozen=True)
class _Source:
    """Where the state of one parameter comes from.

    Attributes:
        name: the parameter's own name, or its number.
        index: the key of its state in the state_dict.
        group: the saved group that it was in.
    """

    name: str
    index: Any
    group: Mapping[str, Any]


@dataclass(frozen=True)
class _Match:
    """Which part of a state_dict belongs to which part of an optimizer.

    Attributes:
        groups: for each own group the number of the saved group whose options it takes; None: it keeps its own.
        sources: for each parameter with a counterpart, where its state comes from.
        differing: names that one side has and the other lacks.
    """

    groups: list[int | None]
    sources: dict[Tensor, _Source]
    differing: IncompatibleKeys


def stamped(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state_dict with the optimizer's name, the version of the format, and what others keep in the state."""
    groups = [plain_group(group) for group in state_dict["param_groups"]]
    saved = {**state_dict, "param_groups": groups, _FORMAT_KEY: FORMAT, _NAME_KEY: _names_of(type(optimizer))[-1]}
    resolve = getattr(optimizer, "resolve", None)
    if resolve is not None:
        found = ((resolve(group), group["params"]) for group in optimizer.param_groups)
        derived = dict(enumerate(r.rule.foreign_state(r.h, p) for r, params in found for p in params))
        state = saved.get("state", {}).items()
        saved["state"] = {key: {**kept, **derived[key]} if kept and derived.get(key) else kept for key, kept in state}
    return saved


def _names_of(kind: type) -> list[str]:
    """The names that state_dicts of a class may bear; the last is the one that they are given.

    What has to match is the state, not the class: a subclass of a user's, and a wrapper that a framework derives, bear
    the name of the class that declares their state. Every class of descend bears its own.
    """
    names = []
    rules = [base for base in kind.__mro__ if issubclass(base, torch.optim.Optimizer) and hasattr(base, "slots")]
    for base in rules[:-1]:  # the last declares no state
        names.append(base.__name__)
        if base.__module__.startswith("descend.") or not vars(base).keys().isdisjoint(("slots", "carried")):
            break
    return names or [kind.__name__]


def _is_wrapper_of(stamp: str, kind: type) -> bool:
    """Whether a stamp is that of a framework's wrapper class, "LightningAdamW": descend 0.1 gave state_dicts that name."""
    base = next(
        (base for base in reversed(kind.__mro__) if hasattr(base, "slots") and "state_dict" in vars(base)), kind
    )
    known, left = set[str](), [base]
    while left:
        one = left.pop()
        left += one.__subclasses__()
        if one.__module__.startswith("descend."):
            known.add(one.__name__)
    return stamp.endswith(kind.__name__) and stamp not in known


def load(optimizer: Loads, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
    """Load a state_dict of ours, of timm's or of torch's; see ``Optimizer.load_state_dict``."""
    given = _given(optimizer, state_dict)
    # One by one: a tensor that groups share, their lr for example, becomes each group's own.
    saved = [copy.deepcopy(group) for group in given["param_groups"]]
    match = _match(optimizer, saved, strict)
    groups, refusals = [], []
    for group, i in zip(optimizer.param_groups, match.groups, strict=True):
        groups.append(group if i is None else _merged(optimizer, group, saved[i]))
        try:
            with _told_of(i):
                optimizer.check_group(groups[-1])
        except ValueError as error:
            refusals.append(error)
    # State first: it tells better than an option that a file is another optimizer's.
    try:
        state, unknown = _states(optimizer, groups, match, given["state"], strict)
    except (ArithmeticError, AttributeError, TypeError):
        if not refusals:
            raise
    if refusals:
        raise refusals[0]
    taken = {index for group in saved for index in group["params"]}
    others = {key: value for key, value in given["state"].items() if key not in taken and not isinstance(key, int)}
    optimizer.__setstate__({"state": defaultdict(dict, {**state, **others}), "param_groups": groups})
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)
    missing, unexpected = match.differing
    return IncompatibleKeys(missing, unexpected + unknown)


def _given(optimizer: Loads, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict after the hooks that may change it, if it is one of this optimizer's."""
    kind = type(optimizer).__name__
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{kind}: state_dict is a {type(state_dict).__name__}, expected a dict of state and param_groups"
        )
    given = dict(state_dict)
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = hook(optimizer, given)
        if changed is not None:
            given = changed
    for key in ("state", "param_groups"):
        if key not in given:
            raise ValueError(f"{kind}: state_dict has no {key!r} but {_listed(given)}; is it a model's?")
    if not all(isinstance(group, Mapping) and "params" in group for group in given["param_groups"]):
        raise ValueError(f"{kind}: a group of the state_dict has no 'params'")
    if given.get(_FORMAT_KEY, FORMAT) > FORMAT:
        raise ValueError(f"{kind}: state_dict has format {given[_FORMAT_KEY]}, this version reads up to {FORMAT}")
    names = _names_of(type(optimizer))
    stamp = given.get(_NAME_KEY, kind)
    if stamp not in (kind, *names) and not _is_wrapper_of(stamp, type(optimizer)):
        raise ValueError(f"{kind}: state_dict is one of {given[_NAME_KEY]}, expected one of {names[-1]}")
    return given


# ---------------------------------------------------------------- which parameter is which


def _match(optimizer: Loads, saved: Sequence[Mapping[str, Any]], strict: bool) -> _Match:
    kind = type(optimizer).__name__
    own = optimizer.param_groups
    mine, theirs = _names(kind, "the optimizer", own), _names(kind, "the state_dict", saved)
    keys = [list(group["params"]) for group in saved]
    if mine is not None and all(isinstance(key, str) for key in _flat(keys)):
        # torch.distributed.checkpoint has names for keys. It has brought them into our order, and left param_names.
        theirs = keys if set(_flat(_renamed(keys, mine))) == set(_flat(mine)) else None
    if mine is not None and theirs is not None and mine != theirs:
        return _match_names(optimizer, saved, mine, theirs, strict)
    hint = "" if strict else "; strict=False needs names on both sides, as named_parameters() gives"
    if len(own) != len(saved):
        raise ValueError(f"{kind}: state_dict has {len(saved)} parameter groups, expected {len(own)}{hint}")
    sources = {}
    for i, (group, other) in enumerate(zip(own, saved, strict=True)):
        if len(group["params"]) != len(other["params"]):
            raise ValueError(
                f"{kind}: group {i} of the state_dict has {len(other['params'])} parameters, "
                f"expected {len(group['params'])}{hint}"
            )
        names = group.get("param_names") or [f"{j} of group {i}" for j in range(len(group["params"]))]
        for name, p, index in zip(names, group["params"], other["params"], strict=True):
            sources[p] = _Source(name, index, other)
    return _Match(list(range(len(own))), sources, IncompatibleKeys([], []))


def _match_names(
    optimizer: Loads,
    saved: Sequence[Mapping[str, Any]],
    mine: list[list[str]],
    theirs: list[list[str]],
    strict: bool,
) -> _Match:
    """The same by names, wherever these stand."""
    kind, own = type(optimizer).__name__, optimizer.param_groups
    for side, named in (("the optimizer", mine), ("the state_dict", theirs)):
        for name, count in Counter(_flat(named)).most_common(1):
            if count > 1:
                raise ValueError(
                    f"{kind}: {side} has {count} parameters of the name {name!r}, which names cannot match"
                )
    theirs = _renamed(theirs, mine)
    home = {name: (i, j) for i, group in enumerate(theirs) for j, name in enumerate(group)}
    known = set(_flat(mine))
    differing = IncompatibleKeys(
        [name for name in _flat(mine) if name not in home], [name for name in _flat(theirs) if name not in known]
    )
    if strict and any(differing):
        raise ValueError(
            f"{kind}: the names of the parameters differ. The state_dict lacks {_listed(differing.missing_keys)}; "
            f"the optimizer lacks {_listed(differing.unexpected_keys)}. strict=False loads what both have"
        )
    if strict and len(own) != len(saved):
        raise ValueError(f"{kind}: state_dict has {len(saved)} parameter groups, expected {len(own)}")
    groups = [next((home[name][0] for name in names if name in home), None) for names in mine]
    for i, names in enumerate(mine):
        if not names and i < len(theirs) and not theirs[i]:
            groups[i] = i
    sources = {}
    for own_group, names in zip(own, mine, strict=True):
        for name, p in zip(names, own_group["params"], strict=True):
            if name in home:
                i, j = home[name]
                sources[p] = _Source(name, saved[i]["params"][j], saved[i])
    return _Match(groups, sources, differing)


def _names(kind: str, side: str, groups: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """The names of the parameters of each group; None where they have none."""
    if not all("param_names" in group for group in groups):
        return None
    for i, group in enumerate(groups):
        if len(group["param_names"]) != len(group["params"]):
            raise ValueError(
                f"{kind}: group {i} of {side} has {len(group['params'])} parameters and {len(group['param_names'])} names"
            )
    return [list(group["param_names"]) for group in groups]


def _renamed(theirs: list[list[str]], mine: list[list[str]]) -> list[list[str]]:
    """The saved names as the optimizer has them, where one prefix, as wrappers of modules add it, is all the difference."""
    added, taken = _prefix(mine, theirs), _prefix(theirs, mine)
    return [[added + name.removeprefix(taken) for name in group] for group in theirs]


def _prefix(longer: list[list[str]], shorter: list[list[str]]) -> str:
    """What all names of one side have before those of the other; empty if that is not all the difference."""
    long, short = set(_flat(longer)), set(_flat(shorter))
    prefix = min(long, default="").removesuffix(min(short, default=""))
    return prefix if prefix.endswith(".") and long == {prefix + name for name in short} else ""


def _flat(groups: Iterable[Iterable[str]]) -> list[str]:
    return [name for group in groups for name in group]


def _listed(names: Iterable[Any]) -> str:
    names = list(names)
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (", ".join(map(repr, names[:_MOST_LISTED])) or "none") + more


# ---------------------------------------------------------------- options


def _merged(optimizer: Loads, group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """An own group with the options of a saved one; how it runs and how its state is stored are its own choice."""
    if saved.get("rule", group.get("rule")) != group.get("rule"):
        i = next(i for i, own in enumerate(optimizer.param_groups) if own is group)
        raise ValueError(
            f"{type(optimizer).__name__}: group {i} of the state_dict is moved by {saved['rule']!r}, "
            f"expected {group.get('rule')!r}"
        )
    others = ("params", "param_names", "step", *EXECUTION_DEFAULTS)
    merged = {**group, **{name: value for name, value in saved.items() if name not in others}}
    return merged | optimizer._reference_lr(merged)


@contextmanager
def _told_of(i: int | None) -> Iterator[None]:
    """Errors say in which group of the state_dict they are."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} (group {i} of the state_dict)") from None


# ---------------------------------------------------------------- state


def _states(
    optimizer: Loads, groups: list[dict[str, Any]], match: _Match, saved: Mapping[Any, Any], strict: bool
) -> tuple[dict[Tensor, dict[str, Any]], list[str]]:
    """The state of each parameter that has any, and the names of state that the rule does not keep."""
    state: dict[Tensor, dict[str, Any]] = {}
    unknown: list[str] = []
    for group, i in zip(groups, match.groups, strict=True):
        with _told_of(i):
            optimizer.check_state(group)
        for p in group["params"]:
            source = match.sources.get(p)
            if source is None and p in optimizer.state:
                state[p] = optimizer.state[p]
            elif source is not None and source.index in saved:
                r = optimizer.resolve(group)
                names = {**r.rule.foreign_names, **r.of(p).rule.foreign_names}
                entry = _adopted(type(optimizer).__name__, names, source, saved[source.index])
                try:
                    extra = optimizer.extra_state
                    state[p], others = placed(r.of(p), p, entry, f"parameter {source.name}", extra, strict)
                except ValueError as error:
                    raise ValueError(f"{type(optimizer).__name__}: {error}") from None
                unknown += [f"{source.name}.{name}" for name in others]
    on_host = [one for one in state.values() if "step" in one and one["step"].device.type == "cpu"]
    for one, counter in zip(on_host, new_counters([float(one["step"]) for one in on_host]), strict=True):
        one["step"] = counter
    return state, unknown


def _adopted(kind: str, foreign_names: Mapping[str, str | None], source: _Source, entry: Any) -> dict[str, Any]:
    """State as we name it: steps counted for the group or not at all, lists, and names that timm or torch has for it."""
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{kind}: the state of parameter {source.name} is a {type(entry).__name__}, expected a dict of tensors"
        )
    adopted: dict[str, Any] = {}
    for name, value in entry.items():
        ours = foreign_names.get(name, name)
        if ours is None or value is None:
            continue
        adopted |= {f"{ours}_{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {ours: value}
    if adopted and "step" not in adopted:
        adopted["step"] = source.group.get("step", 1)
    return adopted
