"""The functions that people call: make an optimizer by name, and look names up."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from descend.catalogue.default import default_registry
from descend.catalogue.groups import Matcher
from descend.catalogue.info import OptimInfo, OptimizerClass
from descend.catalogue.mixed import PatternRule, create_mixed
from descend.catalogue.modules import Kinds
from descend.catalogue.registry import OptimizerRegistry, ParamGroupFn


class _Default(str):
    """The default of an argument, which so differs from the same value when it is passed."""


_SGD = _Default("sgd")


def create_optimizer_v2(
    model_or_params: nn.Module | ParamsT,
    opt: str = _SGD,
    lr: float | Tensor | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    foreach: bool | None = None,
    filter_bias_and_bn: bool = True,
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
    rules: Sequence[PatternRule] | None = None,
    allow_empty: bool = False,
    **kwargs: Any,
) -> Optimizer:
    """Make an optimizer by name, or a mixture of several by patterns of parameter names.

    A model's trainable parameters are grouped: by `param_group_fn` if there is one, else by layer if `layer_decay` is
    given, else by weight decay. What the model's ``no_weight_decay()`` names does not decay.

    Args:
        model_or_params: a model, or parameters, (name, parameter) pairs or groups, which are passed on.
        opt: one of :func:`list_optimizers`, with the prefix ``lookahead_`` wrapped in Lookahead.
        lr: learning rate. None: the class's default.
        weight_decay: weight decay. >= 0.
        momentum: momentum, for the optimizers that take it. This default replaces the class's own.
        foreach: run as multi-tensor operations. None: torch's choice for the device.
        filter_bias_and_bn: scalars, vectors and biases of a model don't decay.
        fallback_list: wildcard patterns of names that a hybrid optimizer (Muon) hands to its fallback.
        fallback_no_weight_decay: what the model's ``no_weight_decay()`` names goes to the fallback, too.
        layer_decay: the learning rate of a layer over that of the layer after it. >= 0. Layers are found as in
            :func:`~descend.param_groups_layer_decay`.
        layer_decay_min_scale: smallest scale of a layer. >= 0.
        layer_decay_no_opt_scale: layers with a smaller scale are frozen and left out. None: no layer is.
        param_group_fn: makes parameter groups from the model, instead of all the above; `weight_decay` then applies to
            the groups that don't have their own.
        no_weight_decay_kinds: what else does not decay, by kind: "norm", "embedding", "bias", or module classes.
        fallback_kinds: what else of a model a hybrid optimizer (Muon) hands to its fallback, by kind: "embedding",
            "head" (what the model says is its output, or its last linear layer where that is called so), "router",
            "patch", "pooler", or module classes. None: embeddings and the head. (): nothing, which is timm's way: shapes
            and `fallback_list` decide alone. :func:`~descend.param_groups_table` shows who moves what.
        layer_decay_as: "lr": every group gets its own ``lr``, which every scheduler of torch and none respects, and the
            scale as ``layer_scale``. "lr_scale": groups keep the whole ``lr``, with the scale as ``lr_scale``, by which
            timm's schedulers multiply, their warm-up and least rate too; nothing else does.
        group_matcher: numbers the layers for `layer_decay`, as :func:`~descend.param_groups_layer_decay` reads it.
        layers: "auto": layers for `layer_decay` are the model's blocks, whatever else it says.
        lookahead_alpha: Lookahead's step towards the fast weights, from 0 to 1. None: 0.5.
        lookahead_k: Lookahead synchronises every so many steps. > 0. None: 6.
        rules: a rule for each pattern, instead of `opt`: ``(pattern, name)`` or ``(pattern, name, options)``, where a
            pattern is a shell pattern (``"*.mlp.*"``), a compiled regular expression (found anywhere in the name) or a
            predicate ``(name, parameter) -> bool``. The first pattern that meets a parameter has it. `lr` and
            `weight_decay` are those of rules without their own; the result is a :class:`~descend.Mixed`.
        allow_empty: let a pattern of `rules` meet no parameter.
        **kwargs: further options of the optimizer, such as ``betas``. Options that the name binds give way to them.

    Raises:
        ValueError: for an unknown name, with the nearest ones; a wrong number of betas; arguments that need a model,
            `layer_decay` or the prefix ``lookahead_`` without one; a model with nothing to train.
        TypeError: for an option that the optimizer does not have.
        ImportError: if the optimizer belongs to a package that is not installed.

    Example:
        >>> optimizer = create_optimizer_v2(nn.Linear(4, 4), "adamw", lr=1e-3, weight_decay=0.05)
        >>> [(group["param_names"], group["weight_decay"]) for group in optimizer.param_groups]
        [(['bias'], 0.0), (['weight'], 0.05)]
        >>> optimizer = create_optimizer_v2(nn.Linear(4, 4), "lookahead_sgd", lr=0.1, lookahead_k=5)
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> rules = [("0.weight", "muon", {"lr": 0.02}), ("*", "adamw")]
        >>> [(group["rule"], group["param_names"]) for group in create_optimizer_v2(model, lr=1e-3, rules=rules).param_groups]
        [('adamw', ['0.bias', '1.bias', '1.weight']), ('muon', ['0.weight'])]

        The Trainer of transformers calls what is no class without arguments, and the result with the model::

            Trainer(..., optimizer_cls_and_kwargs=(lambda: create_optimizer_v2, {"opt": "muon", "lr": 1e-3}))
    """
    grouping: dict[str, Any] = {
        "weight_decay_exclude_1d": filter_bias_and_bn,
        "fallback_list": fallback_list,
        "fallback_no_weight_decay": fallback_no_weight_decay,
        "layer_decay": layer_decay,
        "layer_decay_min_scale": layer_decay_min_scale,
        "layer_decay_no_opt_scale": layer_decay_no_opt_scale,
        "no_weight_decay_kinds": no_weight_decay_kinds,
        "fallback_kinds": fallback_kinds,
        "group_matcher": group_matcher,
        "layers": layers,
    }
    if rules is not None:
        if not isinstance(opt, _Default) or param_group_fn is not None:
            given = f"opt={opt!r}" if param_group_fn is None else "param_group_fn"
            raise ValueError(
                f"rules and opt, or param_group_fn, exclude each other: rules say how each parameter moves, so leave out {given}"
            )
        as_lr = layer_decay_as == "lr"
        return create_mixed(
            model_or_params, rules, lr, weight_decay, grouping, as_lr, allow_empty, foreach=foreach, **kwargs
        )
    return default_registry().create_optimizer(
        model_or_params,
        opt,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        foreach=foreach,
        param_group_fn=param_group_fn,
        layer_decay_as=layer_decay_as,
        lookahead_alpha=lookahead_alpha,
        lookahead_k=lookahead_k,
        **grouping,
        **kwargs,
    )


def create_optimizer(args: Any, model: nn.Module | ParamsT, filter_bias_and_bn: bool = True) -> Optimizer:
    """Make an optimizer from parsed command-line arguments.

    Args:
        args: an object with the attributes that :func:`optimizer_kwargs` reads.
        model: a model, parameters or groups.
        filter_bias_and_bn: scalars, vectors and biases of a model don't decay.

    Raises:
        As :func:`create_optimizer_v2`.

    Example:
        >>> from argparse import Namespace
        >>> optimizer = create_optimizer(Namespace(opt="lamb", lr=5e-3, weight_decay=0.02), nn.Linear(4, 4))
    """
    return create_optimizer_v2(model, **optimizer_kwargs(cfg=args), filter_bias_and_bn=filter_bias_and_bn)


def optimizer_kwargs(cfg: Any) -> dict[str, Any]:
    """The arguments of :func:`create_optimizer_v2` that a configuration holds.

    Args:
        cfg: an object with some of the attributes opt, lr, weight_decay, momentum, opt_eps, opt_betas, layer_decay,
            layer_decay_min_scale, layer_decay_no_opt_scale, opt_foreach and opt_args (a dict of any further arguments),
            or a mapping with these keys. What is missing or None is left to the defaults.

    Example:
        >>> optimizer_kwargs({"opt": "adan", "lr": 1e-3, "opt_eps": None, "opt_args": {"no_prox": True}})
        {'opt': 'adan', 'lr': 0.001, 'no_prox': True}
    """
    names = {
        "opt": "opt",
        "lr": "lr",
        "weight_decay": "weight_decay",
        "momentum": "momentum",
        "opt_eps": "eps",
        "opt_betas": "betas",
        "layer_decay": "layer_decay",
        "layer_decay_min_scale": "layer_decay_min_scale",
        "layer_decay_no_opt_scale": "layer_decay_no_opt_scale",
    }
    kwargs = {target: value for source, target in names.items() if (value := _entry(cfg, source)) is not None}
    kwargs.update(_entry(cfg, "opt_args") or {})
    if (foreach := _entry(cfg, "opt_foreach")) is not None:
        kwargs["foreach"] = foreach
    return kwargs


@overload
def list_optimizers(
    filter: str | Sequence[str] = ...,
    exclude_filters: str | Sequence[str] | None = ...,
    with_description: Literal[False] = ...,
) -> list[str]: ...
@overload
def list_optimizers(
    filter: str | Sequence[str] = ...,
    exclude_filters: str | Sequence[str] | None = ...,
    *,
    with_description: Literal[True],
) -> list[tuple[str, str]]: ...
@overload
def list_optimizers(
    filter: str | Sequence[str] = ...,
    exclude_filters: str | Sequence[str] | None = ...,
    with_description: bool = ...,
) -> list[str] | list[tuple[str, str]]: ...


def list_optimizers(
    filter: str | Sequence[str] = "",
    exclude_filters: str | Sequence[str] | None = None,
    with_description: bool = False,
) -> list[str] | list[tuple[str, str]]:
    """The names that :func:`create_optimizer_v2` knows, sorted.

    Args:
        filter: wildcard patterns, one of which a name must match. "": all names.
        exclude_filters: wildcard patterns, none of which a name may match. None: no restriction.
        with_description: return (name, description) pairs.

    Example:
        >>> list_optimizers(["la*", "nla*"], exclude_filters="*c")
        ['lamb', 'lambcd', 'lambcw', 'lambw', 'laprop', 'lars', 'nlars']
    """
    return default_registry().list_optimizers(filter, exclude_filters, with_description)


def get_optimizer_info(name: str) -> OptimInfo:
    """What is known about a name: class, bound options, paper, reach, learning rates to try.

    Raises:
        ValueError: if there is no such name; the message has the nearest ones.

    Example:
        >>> get_optimizer_info("lion").paper.title
        'Symbolic Discovery of Optimization Algorithms'
    """
    return default_registry().get_optimizer_info(name)


def get_optimizer_class(name: str, bind_defaults: bool = True) -> OptimizerClass:
    """The class behind a name.

    Args:
        name: one of :func:`list_optimizers`.
        bind_defaults: return a ``functools.partial`` with the options that the name binds, if it binds any.

    Raises:
        ValueError: if there is no such name; the message has the nearest ones.
        ImportError: if the class belongs to a package that is not installed.

    Example:
        >>> optimizer = get_optimizer_class("nlars")(nn.Linear(4, 4).parameters(), lr=0.5, momentum=0.9)
        >>> optimizer.defaults["nesterov"]
        True
    """
    return default_registry().get_optimizer_class(name, bind_defaults)


def state_bytes_per_parameter(name_or_info: str | OptimInfo) -> float | None:
    """Bytes of optimizer state for one element of a 256 x 256 float32 matrix.

    Args:
        name_or_info: one of :func:`list_optimizers`, or its entry.

    Returns:
        The number that the optimizer itself predicts. None: it is not installed, or does not predict.

    Raises:
        ValueError: if there is no such name; the message has the nearest ones.

    Example:
        >>> state_bytes_per_parameter("sgd") < state_bytes_per_parameter("adamw")
        True
    """
    info = name_or_info if isinstance(name_or_info, OptimInfo) else get_optimizer_info(name_or_info)
    registry = OptimizerRegistry()
    registry.register(info)
    param = nn.Parameter(torch.zeros(256, 256))
    try:
        optimizer = registry.create_optimizer([param], info.name, lr=1e-3)
    except ImportError:
        return None
    predict = getattr(optimizer, "state_bytes", None)
    return None if predict is None else float(predict(param, optimizer.param_groups[0])) / param.numel()


def _entry(cfg: Any, name: str) -> Any:
    return cfg.get(name) if isinstance(cfg, Mapping) else getattr(cfg, name, None)
