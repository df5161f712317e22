"""Many tensors that answer as one, so that a rule's text runs as multi-tensor kernels."""

from __future__ import annotations

import functools
import operator
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
}

_Operator = Callable[[Any, Any], Any]


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
        named = kwargs or {}
        if all(isinstance(a, Numbers) for a in (*args, *named.values()) if isinstance(a, TensorList)):
            return Numbers(func(*map(_stacked, args), **{name: _stacked(a) for name, a in named.items()}))
        if func is torch.clamp and isinstance(args[0], TensorList):
            return args[0].clamp(*args[1:], **named)
        if func is torch.linalg.vector_norm and not kwargs:
            return Numbers(torch.stack(torch._foreach_norm(args[0].tensors)))
        multi = _FOREACH.get(func)
        if multi is not None and not kwargs and all(isinstance(a, TensorList) for a in args):
            return TensorList(multi(*(a.tensors for a in args)))
        return TensorList.each(func, *args, **named)

    @staticmethod
    def each(func: Callable[..., Any], *args: Any, **kwargs: Any) -> TensorList:
        """Apply `func` tensor by tensor; arguments that are no list are given to every call."""
        columns = [a.tensors if isinstance(a, TensorList) else repeat(a) for a in (*args, *kwargs.values())]
        if not kwargs:
            return TensorList(map(func, *columns))
        count = len(args)
        return TensorList(func(*row[:count], **dict(zip(kwargs, row[count:], strict=True))) for row in zip(*columns))  # noqa: B905

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

    def sum(self) -> Numbers:
        """The sum of each tensor."""
        return Numbers(torch.stack([tensor.sum() for tensor in self.tensors]))

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


class Numbers(TensorList):
    """One number per tensor of a list, all in one tensor, so that what is computed of them is one call.

    Together with a list of tensors they are its numbers one by one.
    """

    __slots__ = ("stacked",)

    def __init__(self, stacked: Tensor) -> None:
        self.stacked = stacked

    @property
    def tensors(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The numbers, as views."""
        return self.stacked.unbind()

    def _with(self, on_numbers: _Operator, on_lists: _Operator, other: Any) -> TensorList:
        if isinstance(other, TensorList) and not isinstance(other, Numbers):
            result: TensorList = on_lists(self, other)
            return result
        return Numbers(on_numbers(self.stacked, self._alike(other)))

    def _alike(self, other: Any) -> Any:
        if not isinstance(other, tuple):
            return _stacked(other)
        if self.stacked.device.type != "cuda":
            return self.stacked.new_tensor(other)
        return _on_device(other, self.stacked.dtype, self.stacked.device, type(self.stacked))

    def __add__(self, other: Any) -> TensorList:
        return self._with(operator.add, TensorList.__add__, other)

    def __sub__(self, other: Any) -> TensorList:
        return self._with(operator.sub, TensorList.__sub__, other)

    def __mul__(self, other: Any) -> TensorList:
        return self._with(operator.mul, TensorList.__mul__, other)

    def __truediv__(self, other: Any) -> TensorList:
        return self._with(operator.truediv, TensorList.__truediv__, other)

    def __pow__(self, exponent: Any) -> TensorList:
        return self._with(operator.pow, TensorList.__pow__, exponent)

    def __neg__(self) -> TensorList:
        return Numbers(-self.stacked)

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: Any) -> TensorList:
        return self._with(lambda mine, x: x - mine, TensorList.__rsub__, other)

    def __rtruediv__(self, other: Any) -> TensorList:
        return self._with(lambda mine, x: x / mine, lambda mine, x: TensorList.__truediv__(x, mine), other)

    def __gt__(self, other: Any) -> TensorList:
        return self._with(operator.gt, TensorList.__gt__, other)

    def __ge__(self, other: Any) -> TensorList:
        return self._with(operator.ge, TensorList.__ge__, other)

    def __lt__(self, other: Any) -> TensorList:
        return self._with(operator.lt, TensorList.__lt__, other)

    def __le__(self, other: Any) -> TensorList:
        return self._with(operator.le, TensorList.__le__, other)

    def __and__(self, other: Any) -> TensorList:
        return self._with(operator.and_, TensorList.__and__, other)

    def __getattr__(self, name: str) -> Callable[..., TensorList]:
        """A tensor method of all numbers at once."""
        if name.startswith("__"):
            raise AttributeError(name)
        of_all = getattr(self.stacked, name)
        return lambda *args, **kwargs: Numbers(of_all(*map(self._alike, args), **kwargs))

    def clamp(self, min: Any = None, max: Any = None) -> TensorList:
        """Both bounds at once."""
        return Numbers(self.stacked.clamp(self._alike(min), self._alike(max)))


def _operand(other: Any) -> Any:
    return other.tensors if isinstance(other, TensorList) else other


def _stacked(other: Any) -> Any:
    return other.stacked if isinstance(other, Numbers) else other


@functools.lru_cache(maxsize=256)
def _on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device, kind: type) -> Tensor:
    """Numbers that mostly are the same at every step, such as lengths; `kind` keeps fake tensors apart."""
    return torch.tensor(numbers, dtype=dtype, device="cpu").pin_memory().to(device, non_blocking=True)
