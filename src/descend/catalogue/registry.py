"""The registry: names, their classes, and optimizers made from them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, overload

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from descend.catalogue.groups import Grouping, Matcher, group_by_decay, group_by_layer, names_without_decay
from descend.catalogue.info import OptimInfo, OptimizerClass, import_class
from descend.catalogue.modules import Kinds
from descend.engine.options import plain

ParamGroupFn = Callable[[nn.Module], ParamsT]

# What the fallback of a hybrid optimizer gets of a model, where the caller says nothing.
_FALLBACK_KINDS = ("embedding", "head")


class OptimizerRegistry:
    """A catalogue of optimizers by name.

    Example:
        >>> from torch.optim import SGD
        >>> registry = OptimizerRegistry()
        >>> registry.register(OptimInfo("mine", SGD, has_eps=False, has_momentum=True, defaults={"nesterov": True}))
        >>> optimizer = registry.create_optimizer(nn.Linear(2, 2), "mine", lr=0.1)
        >>> optimizer.defaults["momentum"], optimizer.defaults["nesterov"]
        (0.9, True)
    """

    def __init__(self) -> None:
        self._infos: dict[str, OptimInfo] = {}

    def register(self, info: OptimInfo) -> None:
        """Add a name; one that is there already is replaced, with a warning."""
        name = info.name.lower()
        if name in self._infos:
            warnings.warn(f"optimizer {name!r} was registered before and is replaced", stacklevel=2)
        self._infos[name] = info

    def register_alias(self, alias: str, target: str) -> None:
        """Add a second name for a registered one.

        Raises:
            KeyError: if there is no such name.
        """
        if target.lower() not in self._infos:
            raise KeyError(f"alias {alias!r} needs optimizer {target!r}, which is not registered")
        self._infos[alias.lower()] = self._infos[target.lower()]

    @overload
    def list_optimizers(
        self,
        filter: str | Sequence[str] = ...,
        exclude_filters: str | Sequence[str] | None = ...,
        with_description: Literal[False] = ...,
    ) -> list[str]: ...
    @overload
    def list_optimizers(
        self,
        filter: str | Sequence[str] = ...,
        exclude_filters: str | Sequence[str] | None = ...,
        *,
        with_description: Literal[True],
    ) -> list[tuple[str, str]]: ...
    @overload
    def list_optimizers(
        self,
        filter: str | Sequence[str] = ...,
        exclude_filters: str | Sequence[str] | None = ...,
        with_description: bool = ...,
    ) -> list[str] | list[tuple[str, str]]: ...

    def list_optimizers(
        self,
        filter: str | Sequence[str] = "",
        exclude_filters: str | Sequence[str] | None = None,
        with_description: bool = False,
    ) -> list[str] | list[tuple[str, str]]:
        """The names that can be made, sorted.

        Args:
            filter: wildcard patterns, one of which a name must match. "": all names.
            exclude_filters: wildcard patterns, none of which a name may match. None: no restriction.
            with_description: return (name, description) pairs.
        """
        wanted, unwanted = _as_tuple(filter) or ("*",), _as_tuple(exclude_filters or ())
        names = [
            name
            for name in sorted(self._infos)
            if any(fnmatchcase(name, pattern) for pattern in wanted)
            and not any(fnmatchcase(name, pattern) for pattern in unwanted)
            and _exists(self._infos[name])
        ]
        return [(name, self._infos[name].description) for name in names] if with_description else names

    def get_optimizer_info(self, name: str) -> OptimInfo:
        """What is known about a name.

        Raises:
            ValueError: if there is no such name; the message has the nearest ones.
        """
        info = self._infos.get(name.lower())
        if info is None:
            raise ValueError(self._unknown(name))
        return info

    def get_optimizer_class(self, name_or_info: str | OptimInfo, bind_defaults: bool = True) -> OptimizerClass:
        """The class behind a name.

        Args:
            name_or_info: the name, or its entry.
            bind_defaults: return a ``functools.partial`` with the options that the name binds, if it binds any.

        Raises:
            ValueError: if there is no such name.
            ImportError: if the class belongs to a package that is not installed.
        """
        info = name_or_info if isinstance(name_or_info, OptimInfo) else self.get_optimizer_info(name_or_info)
        return info.bound() if bind_defaults else info.load()

    def create_optimizer(
        self,
        model_or_params: nn.Module | ParamsT,
        opt: str = "sgd",
        lr: float | Tensor | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        foreach: bool | None = None,
        weight_decay_exclude_1d: bool = True,
        fallback_list: Collection[str] = (),
        fallback_no_weight_decay: bool = False,
        layer_decay: float | None = None,
        layer_decay_min_scale: float = 0.0,
        layer_decay_no_opt_scale: float | None = None,
        param_group_fn: ParamGroupFn | None = None,
        *,
        no_weight_decay_kinds: Kinds = (),
        fallback_kinds: Kinds | None = None,
        layer_decay_as: Literal["lr", "lr_scale"] = "lr",
        group_matcher: Matcher | None = None,
        layers: Literal["auto"] | None = None,
        lookahead_alpha: float | None = None,
        lookahead_k: int | None = None,
        **kwargs: Any,
    ) -> Optimizer:
        """Make an optimizer by name; the arguments are those of :func:`descend.create_optimizer_v2`."""
        info, wrap = self._find(opt)
        lookahead = _given(alpha=lookahead_alpha, k=lookahead_k)
        if lookahead and not wrap:
            raise ValueError(
                f"lookahead_{next(iter(lookahead))} acts only with the prefix 'lookahead_': "
                f"write opt='lookahead_{info.name}', got opt={opt!r}"
            )
        if layer_decay_as not in ("lr", "lr_scale"):
            raise ValueError(f"layer_decay_as={layer_decay_as!r}, expected 'lr' or 'lr_scale'")
        opt_class = info.load()
        options = _options(info, weight_decay, momentum, kwargs, _given(lr=lr, foreach=foreach))

        params: ParamsT
        frozen: list[nn.Parameter] = []
        if not isinstance(model_or_params, nn.Module):
            _needs_model(
                model_or_params,
                layer_decay=layer_decay,
                param_group_fn=param_group_fn,
                fallback_list=fallback_list,
                no_weight_decay_kinds=no_weight_decay_kinds,
                fallback_kinds=fallback_kinds,
            )
            params = model_or_params
        elif param_group_fn is not None:
            params = param_group_fn(model_or_params)
        else:
            if fallback_kinds is None:
                fallback_kinds = _FALLBACK_KINDS if _has_fallback(opt_class) else ()
            grouping = group_model(
                model_or_params,
                weight_decay,
                weight_decay_exclude_1d=weight_decay_exclude_1d,
                fallback_list=fallback_list,
                fallback_no_weight_decay=fallback_no_weight_decay,
                layer_decay=layer_decay,
                layer_decay_min_scale=layer_decay_min_scale,
                layer_decay_no_opt_scale=layer_decay_no_opt_scale,
                no_weight_decay_kinds=no_weight_decay_kinds,
                fallback_kinds=fallback_kinds,
                group_matcher=group_matcher,
                layers=layers,
            )
            if layer_decay is not None and layer_decay_as == "lr":
                _write_lr(grouping, _base_lr(info, opt_class, options))
            if not grouping.groups:
                raise ValueError(f"{info.name}: the model {type(model_or_params).__name__} has no parameter to train")
            params, frozen = grouping.groups, grouping.frozen
            if info.has_weight_decay:
                options["weight_decay"] = 0.0
            else:
                for group in grouping.groups:
                    del group["weight_decay"]

        named = getattr(
            opt_class, "named", None
        )  # classes of this package, which tell what a name binds from what is given
        optimizer = named(info.defaults or {}, params, **options) if named else opt_class(params, **options)
        if wrap:
            optimizer = import_class("descend.optimizers.Lookahead", repr(opt))(optimizer, **lookahead)
        for param in frozen:
            param.requires_grad_(False)
        return optimizer

    def _find(self, opt: str) -> tuple[OptimInfo, bool]:
        """The entry, and whether it is to be wrapped in Lookahead."""
        name = opt.lower()
        prefix, _, rest = name.partition("_")
        if name not in self._infos and prefix == "lookahead" and rest in self._infos:
            return self._infos[rest], True
        return self.get_optimizer_info(opt), False

    def _unknown(self, name: str) -> str:
        names = self.list_optimizers()
        prefix, _, rest = name.lower().rpartition("_")
        lookahead = "lookahead_" if prefix.startswith("lookahead") else ""
        tries = (name.lower().removeprefix("lookahead_").replace("_", "").replace("-", ""), rest)
        near = dict.fromkeys(lookahead + match for guess in tries for match in get_close_matches(guess, names))
        hint = f"did you mean {_either(list(near)[:3])}?" if near else "list_optimizers() returns all names"
        known = " ('lookahead_' is the only prefix)" if prefix else ""
        return f"there is no optimizer {name!r}{known}; {hint}"


def _as_tuple(patterns: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,) if patterns else ()
    return tuple(patterns)


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _given(**arguments: Any) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _exists(info: OptimInfo) -> bool:
    """Classes of this package must be there; those of other packages are listed whether installed or not."""
    if not (isinstance(info.opt_class, str) and info.opt_class.startswith("descend.")):
        return True
    try:
        info.load()
    except ImportError:
        return False
    return True


def _options(
    info: OptimInfo, weight_decay: float, momentum: float, kwargs: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The class's keyword arguments: what was passed, then what the name binds, then the factory's momentum."""
    options = {**(info.defaults or {}), **given, **kwargs, "weight_decay": weight_decay or 0.0}
    if info.has_momentum:
        options.setdefault("momentum", momentum)
    # Training scripts pass these to whatever optimizer is chosen, so they are no error here.
    for name, taken in (("eps", info.has_eps), ("betas", info.has_betas), ("weight_decay", info.has_weight_decay)):
        value = None if taken else options.pop(name, None)
        if value is not None and (value or name != "weight_decay"):
            warnings.warn(f"{info.name} has no {name.replace('_', ' ')}: {name}={value!r} is left out", stacklevel=4)
    betas = options.get("betas")
    if betas is not None and len(betas) != info.num_betas:
        raise ValueError(f"{info.name} takes {info.num_betas} betas, got betas={betas!r}")
    return options


def group_model(
    model: nn.Module,
    weight_decay: float,
    *,
    layer_decay: float | None,
    layer_decay_min_scale: float,
    layer_decay_no_opt_scale: float | None,
    group_matcher: Matcher | None,
    layers: Literal["auto"] | None,
    fallback_kinds: Kinds | None,
    **treatment: Any,
) -> Grouping:
    """A model's parameters, grouped by weight decay and fallback, and by layer where there is layer decay."""
    rules = {
        **treatment,
        "weight_decay": weight_decay,
        "no_weight_decay_list": names_without_decay(model),
        "fallback_kinds": fallback_kinds or (),
    }
    if layer_decay is None:
        for name, value in _given(group_matcher=group_matcher, layers=layers).items():
            raise ValueError(f"{name}={value!r} numbers the layers for layer_decay: pass layer_decay, too")
        return group_by_decay(model, **rules)
    return group_by_layer(
        model,
        layer_decay=layer_decay,
        min_scale=layer_decay_min_scale,
        no_opt_scale=layer_decay_no_opt_scale,
        group_matcher=group_matcher,
        layers=layers,
        **rules,
    )


def _has_fallback(opt_class: OptimizerClass) -> bool:
    """Whether an optimizer hands what is no hidden matrix to another rule, which groups can ask for."""
    try:
        return "use_fallback" in inspect.signature(opt_class).parameters
    except ValueError:  # a class written in C says nothing
        return False


def _needs_model(params: object, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None and not (isinstance(value, Collection) and not value):
            raise ValueError(
                f"{name}={value!r} groups the parameters of a model: pass the nn.Module, got {type(params).__name__}"
            )


def _base_lr(info: OptimInfo, opt_class: OptimizerClass, options: Mapping[str, Any]) -> float | Tensor:
    """The learning rate that layer decay scales: the one passed, else the class's own."""
    lr = plain(options.get("lr"))
    if lr is None:
        parameter = inspect.signature(opt_class).parameters.get("lr")
        lr = parameter.default if parameter is not None else None
    if not isinstance(lr, (int, float, Tensor)):
        raise ValueError(f"{info.name} has no learning rate of its own for layer_decay to scale: pass lr, got lr=None")
    return lr


def _write_lr(grouping: Grouping, base_lr: float | Tensor) -> None:
    """Turn the scale into an lr of the group, which every scheduler respects.

    The scale itself stays under another key than ``lr_scale``, by which timm's schedulers would multiply once more.
    """
    for group in grouping.groups:
        group["layer_scale"] = group.pop("lr_scale")
        group["lr"] = base_lr * group["layer_scale"]
