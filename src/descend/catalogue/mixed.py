"""Several rules in one optimizer: every parameter group names its own."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from descend.catalogue.default import default_registry
from descend.catalogue.registry import group_model
from descend.engine import options
from descend.engine.optimizer import Optimizer
from descend.engine.options import COMMON_DEFAULTS
from descend.optimizers.schedule_free import TwoPoints

Pattern = str | re.Pattern[str] | Callable[[str, Tensor], bool]
#: A pattern of parameter names, the rule of the parameters that it meets, and that rule's options.
PatternRule = tuple[Pattern, str] | tuple[Pattern, str, Mapping[str, Any]]


class Mixed(TwoPoints):
    """An optimizer whose parameter groups name their own rules: one ``step``, one ``state_dict``, one scheduler.

    Results are those of separate optimizers, one for each rule. Groups of one rule share what that rule sums over all
    of its tensors (Lamb's clipping, Prodigy's distance), as groups of one optimizer do.

    Args:
        params: parameter groups, each a dict with ``params`` and ``rule``; its other keys are options of that rule.
        rule: the rule of groups that name none: a name of :func:`~descend.list_optimizers`, or an optimizer class.
        **given: options of all groups.

    Raises:
        ValueError: if a group names no rule, or one that does not exist; if two groups have the same parameter.
        TypeError: for an option that a group's rule does not have.

    Example:
        >>> import torch
        >>> from descend import Mixed
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
        >>> optimizer = Mixed(
        ...     [
        ...         {"params": [model[0].weight], "rule": "muon", "lr": 0.02},
        ...         {"params": [model[0].bias, *model[1].parameters()], "rule": "adamw", "lr": 1e-3},
        ...     ]
        ... )
        >>> model(torch.ones(8)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(self, params: Any, rule: str | type[Optimizer] | None = None, **given: Any) -> None:
        self._kinds: dict[str, type[Optimizer]] = {}
        self._names: dict[str, tuple[str, ...]] = {}
        self._bounds: dict[str, Mapping[str, Any]] = {}
        self._given = {**given, "rule": rule}
        common = {name: value for name, value in given.items() if name in COMMON_DEFAULTS}
        super().__init__(params, {}, **common)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; ``rule`` and its options are checked as that rule's own optimizer checks them."""
        if not isinstance(param_group, dict):
            raise TypeError(f"Mixed: a parameter group must be a dict, got {type(param_group).__name__}")
        group = {**self._given, **param_group}
        rule = group.pop("rule")
        if rule is None:
            raise ValueError(
                f"Mixed: group {len(self.param_groups)} names no rule; give it one, such as 'rule': 'adamw'"
            )
        name, kind, bound = _find(rule)
        takes = {*inspect.signature(kind).parameters, *COMMON_DEFAULTS} - {"params"}
        own = {key: value for key, value in group.items() if key in takes or key in self._given}
        others = {key: value for key, value in group.items() if key not in own}
        options.reject_misspelt(f"Mixed, {name}", others, takes)
        single = kind.named(None, [others], **{**bound, **own})
        made = single.param_groups[0]
        self._reject_known(made)
        self._kinds[name], self._names[name], self._bounds[name] = kind, tuple(single.defaults), bound
        super().add_param_group({**made, "rule": name})

    def _reject_known(self, group: Mapping[str, Any]) -> None:
        known = {p: (i, j) for i, before in enumerate(self.param_groups) for j, p in enumerate(before["params"])}
        names = group.get("param_names")
        for j, p in enumerate(group["params"]):
            if p in known:
                what = repr(names[j]) if names else f"{j} of shape {tuple(p.shape)}"
                raise ValueError(
                    f"Mixed: parameter {what} of group {len(self.param_groups)} is in group {known[p][0]} too; "
                    "every parameter has one rule"
                )

    def rule_of(self, group: Mapping[str, Any]) -> type[Optimizer]:
        """The rule that moves the parameters of a group."""
        return self._kinds[group["rule"]]

    def bound_of(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options of a group that came with its rule's name."""
        return self._bounds[group["rule"]]

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise ValueError for options of a group that its rule's own optimizer would not take."""
        kind = self.rule_of(group)
        takes = inspect.signature(kind).parameters.keys() | COMMON_DEFAULTS.keys()
        own = {name: value for name, value in group.items() if name in takes - {"params"}}
        kind.named(None, [torch.nn.Parameter(torch.zeros(4, 4, device="cpu"))], **own)

    def option_names(self, group: Mapping[str, Any]) -> Iterable[str]:
        """The names of the options of a group's rule."""
        return self._names[group["rule"]]

    def __getstate__(self) -> dict[str, Any]:
        own = {name: vars(self)[name] for name in ("_kinds", "_names", "_bounds", "_given")}
        return {**super().__getstate__(), **own}


def _find(rule: Any) -> tuple[str, type[Optimizer], Mapping[str, Any]]:
    """A rule's name, its class, and the options that the name binds."""
    if isinstance(rule, type) and issubclass(rule, Optimizer):
        return rule.__name__.lower(), rule, {}
    if not isinstance(rule, str):
        raise ValueError(f"Mixed: rule={rule!r}, expected a name such as 'adamw', or an optimizer class of descend")
    info = default_registry().get_optimizer_info(rule)
    kind = info.load()
    if not (isinstance(kind, type) and issubclass(kind, Optimizer)):
        raise ValueError(f"Mixed: rule={rule!r} is not one of descend's own, which a mixture needs")
    # As in the factory, whose names these are.
    momentum = {"momentum": 0.9} if info.has_momentum else {}
    return info.name, kind, {**momentum, **(info.defaults or {})}


def create_mixed(
    model_or_params: Any,
    rules: Sequence[PatternRule],
    lr: float | Tensor | None,
    weight_decay: float,
    grouping: Mapping[str, Any],
    layer_decay_as_lr: bool,
    allow_empty: bool,
    **given: Any,
) -> Mixed:
    """A mixture by patterns; the arguments are those of :func:`descend.create_optimizer_v2`."""
    frozen: list[nn.Parameter] = []
    if isinstance(model_or_params, nn.Module):
        found = group_model(model_or_params, 1.0, **grouping)
        groups, frozen = found.groups, found.frozen
    else:
        pairs = list(model_or_params)
        if not all(isinstance(pair, tuple) for pair in pairs):
            raise ValueError("rules go by names: pass the nn.Module, or (name, parameter) pairs")
        names, params = zip(*pairs, strict=True) if pairs else ((), ())
        groups = [{"params": list(params), "param_names": list(names), "weight_decay": 1.0}]
    named = [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]
    index = rules_by_pattern(named, rules, allow_empty)
    mixed: list[tuple[dict[str, Any], list[tuple[str, Tensor]]]] = []
    for group in groups:
        for i, (_, rule, *rest) in enumerate(rules):
            mine = [(n, p) for n, p in zip(group["param_names"], group["params"], strict=True) if index[n] == i]
            if mine:
                options_of_rule = {"weight_decay": weight_decay, **({} if lr is None else {"lr": lr}), **dict(*rest)}
                own = _options_of(rule, options_of_rule, group, layer_decay_as_lr)
                alike = next((params for known, params in mixed if known == {"rule": rule, **own}), None)
                if alike is None:
                    mixed.append(({"rule": rule, **own}, mine))
                else:
                    alike += mine
    optimizer = Mixed(
        [{**own, "params": params} for own, params in mixed],
        **{name: value for name, value in given.items() if value is not None},
    )
    for p in frozen:
        p.requires_grad_(False)
    _warn_of_left_matrices(optimizer)
    return optimizer


def _warn_of_left_matrices(optimizer: Mixed) -> None:
    """Warn where a pattern gives a matrix to a rule that by its shape leaves it to another rule, at its own lr."""
    for group in optimizer.param_groups:
        r = optimizer.resolve(group)
        if r.fallback is None or group.get("use_fallback") or r.fallback.h.lr != r.h.lr:
            continue
        named = zip(group["param_names"], group["params"], strict=True)
        left = [f"{name!r} of shape {tuple(p.shape)}" for name, p in named if p.dim() > 1 and r.of(p) is r.fallback]
        if left:
            rule, other = group["rule"], r.fallback.rule.__name__
            warnings.warn(
                f"rules: {rule!r} leaves {', '.join(left[:3])}{', ...' if len(left) > 3 else ''} to {other} at its own "
                f"lr={group['lr']!r}, since it takes no matrix of such a shape; give what is left a pattern of its own, or set "
                "fallback_lr_scale",
                stacklevel=4,
            )


def _options_of(rule: Any, own: dict[str, Any], group: Mapping[str, Any], layer_decay_as_lr: bool) -> dict[str, Any]:
    """A rule's options for its parameters of a group, which says whether these decay, and how much their layer slows down."""
    _, kind, bound = _find(rule)
    takes = inspect.signature(kind).parameters
    if "weight_decay" not in takes:
        del own["weight_decay"]
    elif not group["weight_decay"]:
        own["weight_decay"] = 0.0
    if group.get("use_fallback") and "use_fallback" in takes:
        own["use_fallback"] = True
    scale = group.get("lr_scale")
    if scale is not None and layer_decay_as_lr:
        base = own.get("lr", bound.get("lr", takes["lr"].default))
        if base is None:
            raise ValueError(f"{rule!r} has no learning rate of its own for layer_decay to scale: pass lr")
        own |= {"lr": base * scale, "layer_scale": scale}
    elif scale is not None:
        own["lr_scale"] = scale
    return own


def rules_by_pattern(
    named: Iterable[tuple[str, Tensor]], rules: Sequence[PatternRule], allow_empty: bool = False
) -> dict[str, int]:
    """For each parameter's name the index of the first rule whose pattern meets it.

    Args:
        named: names and parameters.
        rules: shell patterns (``"*.mlp.*"``), compiled regular expressions (found anywhere in the name), or predicates
            ``(name, parameter) -> bool``, each with a rule's name and its options.
        allow_empty: let a pattern meet no parameter.

    Raises:
        ValueError: if a parameter meets no pattern, or a pattern no parameter.
    """
    found: dict[str, int] = {}
    missed: list[str] = []
    for name, p in named:
        index = next((i for i, rule in enumerate(rules) if _meets(rule[0], name, p)), None)
        if index is None:
            missed.append(name)
        else:
            found[name] = index
    if missed:
        raise ValueError(
            f"rules: no pattern meets {', '.join(map(repr, missed[:5]))}{' ...' if len(missed) > 5 else ''}; "
            "end the list with a rule for all others, such as ('*', 'adamw')"
        )
    unused = [rules[i][0] for i in range(len(rules)) if i not in found.values()]
    if unused and not allow_empty:
        raise ValueError(
            f"rules: pattern {unused[0]!r} meets no parameter that an earlier one does not; "
            "mend or remove it, or pass allow_empty=True"
        )
    return found


def _meets(pattern: Pattern, name: str, p: Tensor) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    return bool(pattern.search(name)) if isinstance(pattern, re.Pattern) else bool(pattern(name, p))
