"""Rules of matrices that leave every other parameter to another rule, in one object."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from inspect import signature
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.parameter import is_lazy

from descend.engine.context import Known
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.rule import Rule
from descend.engine.sharding.layout import processes
from descend.optimizers.adam import AdamW, NAdamW

_LEAST_SIZE = 4
_LARGEST_RATIO = 128


class Preconditioned(Optimizer):
    """The base of SOAP, Shampoo, Kron and Scion: rules of matrices that have a way of their own for all else.

    With ``fallback``, the name of a rule, that rule has every parameter that is no matrix to this one, with its own
    defaults, this rule's ``lr * fallback_lr_scale`` and ``weight_decay``, and what ``fallback_options`` says.
    """

    reach: ClassVar[Reach] = "matrix"

    @classmethod
    def is_matrix(cls, h: Any, p: Tensor) -> bool:
        """Whether the rule treats the parameter as a matrix, or as a tensor of more dimensions."""
        raise NotImplementedError

    @classmethod
    def serves(cls, h: Any, p: Tensor) -> bool:
        return h.fallback is None or cls.is_matrix(h, p)

    @classmethod
    def fallback(cls, h: Any) -> tuple[type[Rule], Mapping[str, Any]] | None:
        return None if h.fallback is None else named_fallback(h)


def named_fallback(h: Any) -> tuple[type[Rule], Mapping[str, Any]]:
    """The rule that `h.fallback` names, and its options: those that it shares with all rules, and its own."""
    rule = rule_named(h.fallback)
    handed = {"lr": h.lr * h.fallback_lr_scale}
    if hasattr(h, "weight_decay") and "weight_decay" in signature(rule).parameters:
        handed["weight_decay"] = h.weight_decay
    return rule, {**handed, **dict(h.fallback_options or {})}


class MatrixRule(Optimizer):
    """The base of Muon, NorMuon and Dion: rules of hidden matrices, which leave all other parameters to a fallback.

    A parameter is treated as a matrix unless its group says ``use_fallback=True``, or its shape says otherwise: fewer
    than two dimensions larger than 1, a first or second dimension of 1, a side below 4, or sides in a ratio above 128.
    ``use_muon`` in a group, where it is not None, decides regardless of shape.

    The fallback is AdamW with this rule's ``lr * fallback_lr_scale``, ``betas``, ``eps`` and ``weight_decay`` (NAdamW with
    ``nesterov``), or the rule that ``fallback`` names, with its own defaults, this rule's ``lr * fallback_lr_scale`` and
    ``weight_decay``, and what ``fallback_options`` says.
    """

    reach: ClassVar[Reach] = "matrix"
    structural: ClassVar[frozenset[str]] = frozenset(("ns_steps", "split", "power_iters", "rank_multiple_of", "seed"))
    # timm keeps its routing in the state.
    foreign_names: ClassVar[Mapping[str, str | None]] = {"use_muon": None}

    def __init__(self, params: Any, defaults: Mapping[str, Any], **common: Any) -> None:
        super().__init__(params, defaults, **common)
        expect_matrices(
            self,
            "use_fallback=True in the groups if that is meant, or AdamW",
            lambda h, p: h.use_fallback or getattr(h, "use_muon", None) is not None or self.serves(h, p),
        )

    @classmethod
    def serves(cls, h: Any, p: Tensor) -> bool:
        if h.use_fallback:
            return False
        if h.use_muon is not None:
            return bool(h.use_muon)
        shape = p.shape
        if p.is_complex() or len(shape) < 2:
            return False
        if h.stacked:
            sides = (int(shape[-2]), int(shape[-1]))
        elif 1 in shape[:2] or sum(n > 1 for n in shape) < 2:
            return False
        else:
            sides = (shape[0], math.prod(shape[1:]))
        short, long = sorted(sides)
        return short >= _LEAST_SIZE and long <= _LARGEST_RATIO * short

    @classmethod
    def fallback(cls, h: Any) -> tuple[type[Rule], Mapping[str, Any]]:
        if h.fallback is not None:
            return named_fallback(h)
        own = {"lr": h.lr * h.fallback_lr_scale, "weight_decay": h.weight_decay, "betas": h.betas, "eps": h.eps}
        return NAdamW if getattr(h, "nesterov", False) else AdamW, {**own, **dict(h.fallback_options or {})}

    @staticmethod
    def gain(h: Any, p: Tensor) -> float:
        """What multiplies the lr for a matrix of this shape."""
        raise NotImplementedError

    @classmethod
    def foreign_state(cls, h: Any, p: Tensor) -> dict[str, Any]:
        return {"use_muon": cls.serves(h, p)}

    @classmethod
    def traits(cls, h: Any, p: Tensor) -> dict[str, Any]:
        return {"matrices": matrices_shape(h, p), "gain": cls.gain(h, p)}


@cache
def rule_named(name: str) -> type[Optimizer]:
    """An optimizer class by its name in any case, or by module and name (``"package.module:Class"``).

    Raises:
        ValueError: if there is none; the message has the nearest names.
    """
    module, _, wanted = name.rpartition(":")
    there = vars(import_module(module or __package__))
    kinds = {n if module else n.lower(): kind for n, kind in there.items() if _is_rule(kind)}
    found = kinds.get(wanted if module else wanted.lower())
    if found is None:
        near = get_close_matches(wanted.lower(), kinds, n=3)
        raise ValueError(
            f"there is no rule {name!r}" + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")
        )
    return found


def _is_rule(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer


def expect_matrices(
    optimizer: Optimizer, instead: str, served: Callable[[Any, Tensor], bool], strict: bool = False
) -> None:
    """Warn if a rule for matrices got parameters, and `served` holds for none of them.

    Args:
        optimizer: with its groups.
        instead: what to use if that is meant.
        served: whether the rule is for a parameter under the options of its group.
        strict: raise ValueError instead, unless there are several processes, one of which may have no matrix.
    """
    rows = [
        (SimpleNamespace(**group), p) for group in optimizer.param_groups for p in group["params"] if not is_lazy(p)
    ]
    if rows and not any(served(h, p) or p.is_complex() for h, p in rows):
        shapes = ", ".join(str(tuple(p.shape)) for _, p in rows[:3])
        message = (
            f"{type(optimizer).__name__}: none of the {len(rows)} parameters (of shapes {shapes}"
            f"{', ...' if len(rows) > 3 else ''}) is a hidden matrix; pass the model's matrices too, or use {instead}"
        )
        if strict and processes() == 1:
            raise ValueError(message)
        warnings.warn(message, stacklevel=4)


def matrices_shape(h: Any, p: Tensor) -> tuple[int, ...]:
    """The shape [..., m, n] that the parameter's matrices have together.

    Raises:
        ValueError: if the parameter cannot be seen so.
    """
    shape = tuple(p.shape)
    if len(shape) < 2 or p.is_complex():
        raise ValueError(f"use_muon=True with a {p.dtype} parameter of shape {shape}, expected a real matrix")
    if len(shape) > 2 and not h.stacked:
        if getattr(h, "conv_mode", "flatten") == "batched":
            shape = (math.prod(shape[2:]), *shape[:2])
        else:
            shape = (shape[0], math.prod(shape[1:]))
    if h.split == 1:
        return shape
    *batch, rows, columns = shape
    if rows % h.split:
        raise ValueError(f"split={h.split!r}, expected a divisor of the {rows} rows of shape {tuple(p.shape)}")
    return (*batch, h.split, rows // h.split, columns)


def as_matrices(x: Tensor, k: Known) -> Tensor:
    """The parameter-shaped x as matrices [..., m, n]; spatial positions of a batched convolution come first."""
    if is_spatial(k):
        x = x.flatten(2).permute(2, 0, 1)
    return x.reshape(k.matrices)


def from_matrices(x: Tensor, k: Known) -> Tensor:
    """The inverse of :func:`as_matrices`."""
    if is_spatial(k):
        out, into = k.shape[:2]
        x = x.reshape((-1, out, into)).permute(1, 2, 0)
    return x.reshape(k.shape)


def is_spatial(k: Any) -> bool:
    """Whether the parameter is a convolution that is taken position by position."""
    return getattr(k, "conv_mode", "flatten") == "batched" and not k.stacked and len(k.shape) > 2
