"""Optimizers of hidden matrices that hand every other parameter to AdamW, in one object."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor
from torch.nn.parameter import is_lazy

from descend.engine.known import Known, State
from descend.engine.optimizer import Optimizer, Reach
from descend.engine.sharding.layout import processes
from descend.engine.slots import Slot, positive, signed
from descend.engine.text import take
from descend.optimizers.adam import AdamW, NAdamW

_LEAST_SIZE = 4
_LARGEST_RATIO = 128


class Routed(Optimizer):
    """The base of Muon and its kin: matrices go to `matrix_slots` and `direction`, the rest to AdamW.

    A parameter is treated as a matrix unless its group says ``use_fallback=True``, or its shape says otherwise: fewer
    than two dimensions larger than 1, a first or second dimension of 1, a side below 4, or sides in a ratio above 128.
    ``use_muon`` in a group, where it is not None, decides regardless of shape.
    """

    reach: ClassVar[Reach] = "matrix"
    structural: ClassVar[frozenset[str]] = frozenset(("ns_steps", "split", "power_iters", "rank_multiple_of", "seed"))
    # timm keeps its routing in the state.
    extra_state: ClassVar[frozenset[str]] = Optimizer.extra_state | {"use_muon"}

    def __init__(self, params: Any, defaults: Mapping[str, Any], **common: Any) -> None:
        super().__init__(params, defaults, **common)
        expect_matrices(
            self,
            "use_fallback=True in the groups if that is meant, or AdamW",
            lambda h, p: h.use_fallback or getattr(h, "use_muon", None) is not None or self.is_matrix(h, p),
        )

    @staticmethod
    def is_matrix(h: Any, p: Tensor) -> bool:
        """Whether the parameter is treated as one or several matrices under the options of its group."""
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

    @staticmethod
    def matrix_slots(h: Any, p: Tensor) -> dict[str, Slot]:
        """The state of a parameter that is treated as a matrix."""
        raise NotImplementedError

    @staticmethod
    def matrix_gain(h: Any, p: Tensor) -> float:
        """What multiplies the lr for a matrix of this shape."""
        raise NotImplementedError

    @classmethod
    def slots(cls, h: Any, p: Tensor) -> dict[str, Slot]:
        if not cls.is_matrix(h, p):
            return {"exp_avg": signed(), "exp_avg_sq": positive()}
        matrices_shape(h, p)
        return cls.matrix_slots(h, p)

    @classmethod
    def traits(cls, h: Any, p: Tensor) -> dict[str, Any]:
        if not cls.is_matrix(h, p):
            return {"fallback": True}
        return {"fallback": False, "matrices": matrices_shape(h, p), "matrix_gain": cls.matrix_gain(h, p)}

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        if k.fallback:
            fall_back(p, g, s, k)
        else:
            direction = cls.direction(p, g, s, k)
            take(p, direction, g, k.but(gain=k.matrix_gain, step_size=k.lr * k.matrix_gain))

    def rule_name(self, param: Tensor, group: Mapping[str, Any]) -> str:
        """Which rule moves this parameter of this group."""
        h = SimpleNamespace(**{**self.defaults, **group})
        if self.is_matrix(h, param):
            return type(self).__name__
        return "NAdamW" if getattr(h, "nesterov", False) else "AdamW"


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


def check_whole(name: str, value: Any) -> None:
    """Raise ValueError unless the value is an integer >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}, expected an integer >= 1")


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


def fall_back(p: Tensor, g: Tensor, s: State, k: Known) -> None:
    """A step of AdamW, or of NAdamW with nesterov, at lr·fallback_lr_scale."""
    lr, decay = k.lr * k.fallback_lr_scale, k.decay_amount * k.fallback_lr_scale
    scaled = dict(lr=lr, gain=k.debias1, step_size=lr * k.debias1, decay_amount=decay, decay_factor=1 - decay)
    rule = NAdamW if getattr(k, "nesterov", False) else AdamW
    rule.move(p, g, s, k.but(**scaled, amsgrad=False, clipping_threshold=None))
