"""Parameter groups: which parameters decay, and how much slower the early layers learn."""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from descend.catalogue.modules import (
    Kinds,
    clean,
    last_linear,
    layers_of_blocks,
    output_layers,
    owner_of,
    parameters_of,
    unwrap,
)
from descend.catalogue.table import param_groups_table

Matcher = Mapping[str, Any] | Callable[[str], Any]

# The ordinal by which a group matcher says: same layer as the one before.
_JOINS_PREVIOUS = 99999

# What no orthogonalisation is for, though it is a matrix: what a model reads by, and what it answers by.
_NOT_HIDDEN = ("norm", "embedding", "bias", "router", "patch", "pooler")


@dataclass(frozen=True)
class Grouping:
    """Parameter groups, and the parameters that are to be frozen because their layer's scale is too small."""

    groups: list[dict[str, Any]]
    frozen: list[nn.Parameter]


def param_groups_weight_decay(
    model: nn.Module,
    weight_decay: float | None = 1e-5,
    weight_decay_exclude_1d: bool = True,
    no_weight_decay_list: Collection[str] = (),
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
    *,
    no_weight_decay_kinds: Kinds = (),
    fallback_kinds: Kinds = (),
) -> list[dict[str, Any]]:
    """Group a model's trainable parameters into those that decay and those that don't.

    Names are those inside ``DistributedDataParallel``, ``torch.compile`` and the like. A tied parameter is grouped
    once, and matches by any of its names.

    Args:
        model: the model.
        weight_decay: decay of the parameters that decay. >= 0; 0 or None: nothing decays.
        weight_decay_exclude_1d: leave out scalars, vectors and everything called bias.
        no_weight_decay_list: wildcard patterns of names to leave out.
        fallback_list: wildcard patterns of names that a hybrid optimizer (Muon) hands to its fallback; their groups
            have ``use_fallback=True``.
        fallback_no_weight_decay: `no_weight_decay_list` goes to the fallback, too.
        no_weight_decay_kinds: leave out by kind: "norm" (normalisation layers: torch's own and every class with Norm
            in its name), "embedding", "bias", "head", "router", "patch", "pooler", "experts", or module classes.
        fallback_kinds: what goes to the fallback, by kind.

    Returns:
        Up to four groups (``params``, ``param_names``, ``weight_decay`` and, only if true, ``use_fallback``): without
        and with decay, then both for the fallback.

    Raises:
        ValueError: for an unknown kind.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        >>> groups = param_groups_weight_decay(model, 0.05, no_weight_decay_kinds=["embedding"])
        >>> [(group["weight_decay"], group["param_names"]) for group in groups]
        [(0.0, ['0.weight', '1.weight', '1.bias', '2.bias']), (0.05, ['2.weight'])]
    """
    return group_by_decay(
        model,
        weight_decay=weight_decay,
        weight_decay_exclude_1d=weight_decay_exclude_1d,
        no_weight_decay_list=no_weight_decay_list,
        fallback_list=fallback_list,
        fallback_no_weight_decay=fallback_no_weight_decay,
        no_weight_decay_kinds=no_weight_decay_kinds,
        fallback_kinds=fallback_kinds,
    ).groups


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Collection[str] = (),
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
    weight_decay_exclude_1d: bool = True,
    layer_decay: float = 0.75,
    min_scale: float = 0.0,
    no_opt_scale: float | None = None,
    verbose: bool = False,
    *,
    no_weight_decay_kinds: Kinds = (),
    fallback_kinds: Kinds = (),
    group_matcher: Matcher | None = None,
    layers: Literal["auto"] | None = None,
) -> list[dict[str, Any]]:
    r"""Group a model's trainable parameters by layer, each with its share of the learning rate under ``lr_scale``.

    Layer i of n learns at layer_decay^(n - 1 - i) of the rate. Layers come from `group_matcher`, else from the model's
    ``group_matcher()``, also inside a wrapper such as PeftModel; else, if the model has ``pretrained_cfg``, from
    :func:`auto_group_layers`; else from its blocks, the elements of its longest ``nn.ModuleList``: what comes before
    them is the first layer, a norm behind them joins the last block, the rest is the last layer. A layer whose
    parameters are all frozen does not count. The groups carry ``lr_scale``
    for training loops and schedulers that apply it; torch's don't: there, use
    ``create_optimizer_v2(model, layer_decay=...)``, which writes the rate itself.

    Args:
        model: the model.
        weight_decay: decay of the parameters that decay. >= 0.
        no_weight_decay_list: wildcard patterns of names that don't decay.
        fallback_list: wildcard patterns of names that a hybrid optimizer (Muon) hands to its fallback.
        fallback_no_weight_decay: `no_weight_decay_list` goes to the fallback, too.
        weight_decay_exclude_1d: scalars and vectors don't decay.
        layer_decay: factor from one layer to the one before. >= 0.
        min_scale: smallest scale. >= 0.
        no_opt_scale: layers with a smaller scale are frozen and left out. None: no layer is.
        verbose: log the groups.
        no_weight_decay_kinds: what else does not decay, by kind: "norm", "embedding", "bias", or module classes.
        fallback_kinds: what else goes to the fallback, by kind.
        group_matcher: numbers the layers, as :func:`group_with_matcher` reads it, instead of the model's own.
        layers: "auto": by the model's blocks, whatever else it says. None: see above.

    Returns:
        A group for each layer and treatment, in the order of the model.

    Raises:
        ValueError: for an unknown kind, a factor or scale that is negative or not finite, or both `group_matcher` and
            `layers`.

    Example:
        >>> class Net(nn.Sequential):
        ...     def group_matcher(self, coarse):
        ...         return {"layers": r"(\d+)\."}
        >>> groups = param_groups_layer_decay(Net(nn.Linear(4, 4), nn.Linear(4, 4, bias=False)), layer_decay=0.5)
        >>> [(group["lr_scale"], group["weight_decay"], group["param_names"]) for group in groups]
        [(0.5, 0.05, ['0.weight']), (0.5, 0.0, ['0.bias']), (1.0, 0.05, ['1.weight'])]
    """
    grouping = group_by_layer(
        model,
        layer_decay=layer_decay,
        min_scale=min_scale,
        no_opt_scale=no_opt_scale,
        weight_decay=weight_decay,
        weight_decay_exclude_1d=weight_decay_exclude_1d,
        no_weight_decay_list=no_weight_decay_list,
        fallback_list=fallback_list,
        fallback_no_weight_decay=fallback_no_weight_decay,
        no_weight_decay_kinds=no_weight_decay_kinds,
        fallback_kinds=fallback_kinds,
        group_matcher=group_matcher,
        layers=layers,
    )
    for param in grouping.frozen:
        param.requires_grad_(False)
    if verbose:
        logging.getLogger(__name__).info("parameter groups:\n%s", param_groups_table(grouping.groups))
    return grouping.groups


def auto_group_layers(model: nn.Module, layers_per_group: int = 12, num_groups: int | None = None) -> dict[str, int]:
    """Number the layers of a model that does not say what they are: so many parameters in a row are one.

    Parameters of the head, whose name the model has under ``pretrained_cfg["classifier"]``, come last. A model without
    that entry is one layer.

    Args:
        model: the model.
        layers_per_group: parameters in one layer. > 0.
        num_groups: number of layers before the head, instead. > 0.

    Returns:
        The layer's number for each parameter's name.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model.pretrained_cfg = {"classifier": "1"}
        >>> auto_group_layers(model, layers_per_group=1)
        {'0.weight': 0, '0.bias': 1, '1.weight': 2, '1.bias': 2}
    """
    inner, _ = unwrap(model)
    names = [clean(name) for name, _ in inner.named_parameters()]
    head = (getattr(inner, "pretrained_cfg", None) or {}).get("classifier") or ""
    prefixes = (head,) if isinstance(head, str) else tuple(head)
    trunk = [name for name in names if not name.startswith(prefixes)]
    if num_groups is not None:
        layers_per_group = max(1, math.ceil(len(trunk) / num_groups))
    layers = {name: i // layers_per_group for i, name in enumerate(trunk)}
    last = math.ceil(len(trunk) / layers_per_group)
    return {name: layers.get(name, last) for name in names}


def group_with_matcher(names: Iterable[str], matcher: Matcher) -> dict[str, int]:
    r"""Number the layers of a model by its group matcher.

    Args:
        names: the parameters' names.
        matcher: a dict whose values are regular expressions, or lists of (expression, suffix), tried in order from the
            start of a name: entry number, captured numbers and suffix are the layer's ordinal; or a function from a
            name to an ordinal, a number or a tuple of them. Names without an ordinal come last. An ordinal that ends
            in 99999 joins the layer before it.

    Returns:
        The layer's number, from 0 without gaps, for each name.

    Example:
        >>> group_with_matcher(["stem.weight", "1.weight", "head.weight"], {"stem": "stem", "blocks": r"(\d+)"})
        {'stem.weight': 0, '1.weight': 1, 'head.weight': 2}
    """
    ordinal = _by_expression(matcher) if isinstance(matcher, Mapping) else _by_function(matcher)
    ordinals = {name: ordinal(name) for name in names}
    numbers: dict[tuple[float, ...], int] = {}
    number = -1
    for key in sorted(set(ordinals.values())):
        if number < 0 or key[-1] != _JOINS_PREVIOUS:
            number += 1
        numbers[key] = number
    return {name: numbers[key] for name, key in ordinals.items()}


def group_by_decay(model: nn.Module, *, weight_decay: float | None, **rules: Any) -> Grouping:
    """:func:`param_groups_weight_decay`; the remaining keywords are those of the treatment of one parameter."""
    treat = _Treatment.of(model, names_of_bias=True, **rules)
    buckets: dict[tuple[bool, bool], list[_Member]] = {
        (fallback, decays): [] for fallback in (False, True) for decays in (False, True)
    }
    for member in _members(model):
        buckets[treat.falls_back(member), bool(weight_decay) and treat.decays(member)].append(member)
    groups = [
        _group(members, (weight_decay or 0.0) if decays else 0.0, fallback)
        for (fallback, decays), members in buckets.items()
        if members
    ]
    return Grouping(groups, [])


def group_by_layer(
    model: nn.Module,
    *,
    layer_decay: float,
    min_scale: float,
    no_opt_scale: float | None,
    weight_decay: float | None,
    group_matcher: Matcher | None = None,
    layers: Literal["auto"] | None = None,
    **rules: Any,
) -> Grouping:
    """:func:`param_groups_layer_decay`, but without freezing anything yet."""
    for name, value in (("layer_decay", layer_decay), ("min_scale", min_scale), ("no_opt_scale", no_opt_scale or 0.0)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}, expected a finite number >= 0")
    if layers not in (None, "auto") or (layers and group_matcher is not None):
        raise ValueError(f"layers={layers!r}, expected None or 'auto', and None with a group_matcher")
    treat = _Treatment.of(model, names_of_bias=False, **rules)
    members = _members(model)
    numbers = _trainable_layers(model, members, group_matcher, layers)
    last = max(numbers.values(), default=0)
    buckets: dict[tuple[int, bool, bool], list[_Member]] = {}
    frozen: list[nn.Parameter] = []
    for member in members:
        layer = numbers[member.name]
        if no_opt_scale and _layer_scale(layer, last, layer_decay, min_scale) < no_opt_scale:
            frozen.append(member.param)
        else:
            buckets.setdefault((layer, treat.decays(member), treat.falls_back(member)), []).append(member)
    groups = [
        {
            "lr_scale": _layer_scale(layer, last, layer_decay, min_scale),
            **_group(bucket, (weight_decay or 0.0) if decays else 0.0, fallback),
        }
        for (layer, decays, fallback), bucket in buckets.items()
    ]
    return Grouping(groups, frozen)


def names_without_decay(model: nn.Module) -> frozenset[str]:
    """What the model's ``no_weight_decay()`` returns; nothing if it has none."""
    owner = owner_of(model, "no_weight_decay")
    return frozenset(owner[1] + name for name in owner[0].no_weight_decay()) if owner else frozenset()  # type: ignore[operator]


def muon_param_groups(
    model: nn.Module,
    *,
    weight_decay: float | None = None,
    head: str | Collection[str] | None = None,
    any_shape: bool = False,
) -> list[dict[str, Any]]:
    """Groups for Muon and its kin: hidden matrices, and with ``use_fallback=True`` what AdamW moves better.

    Embeddings, patch embeddings, the head, routers of experts, poolers, normalisation layers, biases and all vectors
    fall back. Experts whose matrices are stacked in one parameter get ``stacked=True``.

    Args:
        model: whose parameters to group; frozen ones are left out.
        weight_decay: of matrices and embeddings; vectors then get 0. None: leave it to the optimizer.
        head: wildcard patterns of the output layer's parameter names. None: the layer that the model's
            ``get_classifier()`` or ``get_output_embeddings()`` returns, else its last linear layer.
        any_shape: hidden matrices are orthogonalised whatever the ratio of their sides, LoRA's narrow factors too. False:
            those with a ratio above 128, or a side below 4, are the fallback's.

    Returns:
        Groups with names, ready for an optimizer.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> [(group["use_fallback"], group["param_names"]) for group in muon_param_groups(model)]
        [(False, ['0.weight']), (True, ['0.bias', '2.weight', '2.bias'])]
    """
    outside = parameters_of(model, _NOT_HIDDEN, "kinds") | _head(model, head)
    experts = parameters_of(model, "experts", "kinds")
    buckets: dict[tuple[tuple[str, Any], ...], list[_Member]] = {}
    for member in _members(model):
        p = member.param
        vector = p.dim() < 2 or member.name.endswith("bias")
        treatment: dict[str, Any] = {"use_fallback": vector or p in outside}
        if weight_decay is not None:
            treatment["weight_decay"] = 0.0 if vector else weight_decay
        if not treatment["use_fallback"] and p in experts:
            treatment["stacked"] = True
        if not treatment["use_fallback"] and any_shape and p.dim() == 2 and 1 not in p.shape:
            treatment["use_muon"] = True
        buckets.setdefault(tuple(treatment.items()), []).append(member)
    return [{**_named(members), **dict(treatment)} for treatment, members in buckets.items()]


def _head(model: nn.Module, patterns: str | Collection[str] | None) -> set[nn.Parameter]:
    """The output layer's parameters: of these names, or of the layer that the model says, or its last linear layer."""
    if patterns is not None:
        return {member.param for member in _members(model) if member.matches(_patterns(patterns))}
    layers = output_layers(model)
    if not layers and (last := last_linear(model)[1]) is not None:
        layers = [last]
    return {p for layer in layers for p in layer.parameters()}


@dataclass(frozen=True)
class _Member:
    """A trainable parameter: its name, and every name by which a pattern may mean it."""

    param: nn.Parameter
    name: str
    aliases: tuple[str, ...]

    def matches(self, patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(alias, pattern) for pattern in patterns for alias in self.aliases)


@dataclass(frozen=True)
class _Treatment:
    """Which parameters don't decay, and which go to the fallback of a hybrid optimizer."""

    exclude_1d: bool
    names_of_bias: bool
    bare: tuple[str, ...]
    fallback: tuple[str, ...]
    of_kind: frozenset[nn.Parameter]
    fallback_of_kind: frozenset[nn.Parameter]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        names_of_bias: bool,
        weight_decay_exclude_1d: bool,
        no_weight_decay_list: Collection[str],
        fallback_list: Collection[str],
        fallback_no_weight_decay: bool,
        no_weight_decay_kinds: Kinds,
        fallback_kinds: Kinds = (),
    ) -> _Treatment:
        bare, fallback = _patterns(no_weight_decay_list), _patterns(fallback_list)
        if fallback_no_weight_decay:
            fallback += bare
        bare_kinds = parameters_of(model, no_weight_decay_kinds, "no_weight_decay_kinds")
        kinds = parameters_of(model, fallback_kinds, "fallback_kinds")
        return cls(weight_decay_exclude_1d, names_of_bias, bare, fallback, bare_kinds, kinds)

    def decays(self, member: _Member) -> bool:
        small = member.param.ndim <= 1 or (self.names_of_bias and member.name.endswith(".bias"))
        return not (self.exclude_1d and small) and member.param not in self.of_kind and not member.matches(self.bare)

    def falls_back(self, member: _Member) -> bool:
        return member.param in self.fallback_of_kind or member.matches(self.fallback)


def _members(model: nn.Module) -> list[_Member]:
    """The trainable parameters in the model's order, each once."""
    inner, prefix = unwrap(model)
    names: dict[nn.Parameter, list[str]] = {}
    for name, param in inner.named_parameters(remove_duplicate=False):
        if param.requires_grad:
            names.setdefault(param, []).append(name)
    return [
        _Member(param, clean(raw[0]), tuple(dict.fromkeys(alias for n in raw for alias in (clean(n), prefix + n))))
        for param, raw in names.items()
    ]


def _group(members: Sequence[_Member], weight_decay: float, fallback: bool) -> dict[str, Any]:
    group = {**_named(members), "weight_decay": weight_decay}
    return {**group, "use_fallback": True} if fallback else group


def _named(members: Sequence[_Member]) -> dict[str, Any]:
    return {"params": [member.param for member in members], "param_names": [member.name for member in members]}


def _trainable_layers(
    model: nn.Module, members: Sequence[_Member], group_matcher: Matcher | None, layers: str | None
) -> dict[str, int]:
    """The number of each trainable parameter's layer, counting only layers that train."""
    numbers = _layers(model, group_matcher, layers)
    if len(set(numbers.values())) == 1:
        warnings.warn(
            f"layer decay has no effect, all parameters of {type(unwrap(model)[0]).__name__} are in one layer: give the "
            'model a group_matcher(), or pretrained_cfg["classifier"], the name of its head, or pass group_matcher',
            stacklevel=5,
        )
    ranks = {layer: rank for rank, layer in enumerate(sorted({numbers[member.name] for member in members}))}
    return {member.name: ranks[numbers[member.name]] for member in members}


def _layers(model: nn.Module, group_matcher: Matcher | None, layers: str | None) -> dict[str, int]:
    """The number of each parameter's layer, from the first of the places that say it."""
    inner, _ = unwrap(model)
    names = [clean(name) for name, _ in inner.named_parameters()]
    owner = owner_of(model, "group_matcher")
    if group_matcher is not None:
        return group_with_matcher(names, group_matcher)
    if layers is None and owner is not None:
        own = {name.removeprefix(owner[1]): name for name in names}
        matched = group_with_matcher(own, owner[0].group_matcher(coarse=False))  # type: ignore[operator]
        return {own[name]: number for name, number in matched.items()}
    if layers is None and getattr(inner, "pretrained_cfg", None):
        return auto_group_layers(inner)
    return layers_of_blocks(inner) or dict.fromkeys(names, 0)


def _layer_scale(layer: int, last: int, layer_decay: float, min_scale: float) -> float:
    return max(min_scale, layer_decay ** (last - layer))


def _by_expression(matcher: Mapping[str, Any]) -> Callable[[str], tuple[float, ...]]:
    entries: list[tuple[re.Pattern[str], int, tuple[Any, ...]]] = []
    for number, spec in enumerate(matcher.values()):
        if spec is None:
            continue
        for expression, suffix in spec if isinstance(spec, (tuple, list)) else [(spec, None)]:
            entries.append((re.compile(expression), number, suffix or ()))

    def ordinal(name: str) -> tuple[float, ...]:
        for expression, number, suffix in entries:
            if match := expression.match(name):
                return tuple(float(part) for part in (number, *match.groups(), *suffix))
        return (math.inf,)

    return ordinal


def _by_function(matcher: Callable[[str], Any]) -> Callable[[str], tuple[float, ...]]:
    def ordinal(name: str) -> tuple[float, ...]:
        found = matcher(name)
        if found is None:
            return (math.inf,)
        return tuple(map(float, found)) if isinstance(found, Iterable) else (float(found),)

    return ordinal


def _patterns(patterns: Collection[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
