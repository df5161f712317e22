"""Many tensors that answer as one, so that a rule's text runs as multi-tensor kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

_FOREACH: dict[Any, Callable[..., Any]] = {
    torch.sqrt: torch._foreach_sqrt,
    torch.rsqrt: torch._foreach_rsqrt,
    torch.abs: torch._foreach_abs,
    torch.sign: torch._foreach_sign,
    torch.exp: torch._foreach_exp,
    torch.maximum: torch._foreach_maximum,
    torch.minimum: torch._foreach_minimum,
    torch.reciprocal: torch._foreach_reciprocal,
    torch.linalg.vector_norm: torch._foreach_norm,
}


class TensorList:
    """A sequence of tensors with the arithmetic of one tensor.

    Operators and the methods below become one ``torch._foreach_*`` call for the whole list; any other torch
    function (``torch.where``, comparisons, reductions over dimensions) runs tensor by tensor.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.tensors = tuple(tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Of its tensors, which all have one."""
        return self.tensors[0].dtype

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.clamp and isinstance(args[0], TensorList):
            return args[0].clamp(*args[1:], **(kwargs or {}))
        multi = _FOREACH.get(func)
        if multi is not None and not kwargs and all(isinstance(a, TensorList) for a in args):
            return cls(multi(*(a.tensors for a in args)))
        return cls.each(func, *args, **(kwargs or {}))

    @classmethod
    def each(cls, func: Callable[..., Any], *args: Any, **kwargs: Any) -> TensorList:
        """Apply `func` tensor by tensor; arguments that are no list are given to every call."""
        columns = [a.tensors if isinstance(a, TensorList) else repeat(a) for a in (*args, *kwargs.values())]
        if not kwargs:
            return cls(map(func, *columns))
        count = len(args)
        return cls(func(*row[:count], **dict(zip(kwargs, row[count:], strict=True))) for row in zip(*columns))  # noqa: B905

    # Out of place.
    def __add__(self, other: Any) -> TensorList:
        if isinstance(other, Tensor):  # the multi-tensor form would read it back
            return TensorList(torch._foreach_add(self.tensors, [other] * len(self.tensors)))
        return TensorList(torch._foreach_add(self.tensors, _operand(other)))

    def __sub__(self, other: Any) -> TensorList:
        if isinstance(other, Tensor):
            return self + (-other)
        return TensorList(torch._foreach_sub(self.tensors, _operand(other)))

    def __mul__(self, other: Any) -> TensorList:
        return TensorList(torch._foreach_mul(self.tensors, _operand(other)))

    def __truediv__(self, other: Any) -> TensorList:
        return TensorList(torch._foreach_div(self.tensors, _operand(other)))

    def __pow__(self, exponent: Any) -> TensorList:
        if isinstance(exponent, Tensor):
            return TensorList.each(torch.pow, self, exponent)
        return TensorList(torch._foreach_pow(self.tensors, _operand(exponent)))

    def __neg__(self) -> TensorList:
        return TensorList(torch._foreach_neg(self.tensors))

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> TensorList:
        return (-self) + other

    def __rtruediv__(self, other: Any) -> TensorList:
        return TensorList(torch._foreach_reciprocal(self.tensors)) * other

    def __gt__(self, other: Any) -> TensorList:
        return TensorList.each(torch.gt, self, other)

    def __ge__(self, other: Any) -> TensorList:
        return TensorList.each(torch.ge, self, other)

    def __lt__(self, other: Any) -> TensorList:
        return TensorList.each(torch.lt, self, other)

    def __le__(self, other: Any) -> TensorList:
        return TensorList.each(torch.le, self, other)

    def __and__(self, other: Any) -> TensorList:
        return TensorList.each(torch.logical_and, self, other)

    def clamp(self, min: Any = None, max: Any = None) -> TensorList:
        """Both bounds at once."""
        low = self if min is None else self.clamp_min(min)
        return low if max is None else low.clamp_max(max)

    def clamp_(self, min: Any = None, max: Any = None) -> TensorList:
        """Both bounds at once, in place."""
        low = self if min is None else self.clamp_min_(min)
        return low if max is None else low.clamp_max_(max)

    def __getattr__(self, name: str) -> Callable[..., TensorList]:
        """A tensor method: multi-tensor where torch has the form, tensor by tensor elsewhere."""
        if name.startswith("__"):
            raise AttributeError(name)
        method = getattr(Tensor, name)

        def call(*args: Any, **kwargs: Any) -> TensorList:
            multi = getattr(torch, f"_foreach_{name}", None)
            plain = not any(isinstance(a, Tensor) for a in (*args, *kwargs.values()))
            if multi is None or not plain or name == "norm":
                return TensorList.each(method, self, *args, **kwargs)
            result = multi(self.tensors, *map(_operand, args), **kwargs)
            return self if result is None or name.endswith("_") else TensorList(result)

        return call


def _operand(other: Any) -> Any:
    return other.tensors if isinstance(other, TensorList) else other
