"""What a rule's text knows at one step: its scalars, its flags, and sums over whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from descend.engine.tensorlist import TensorList

Dims = tuple[int, ...] | None


class NeedSums(Exception):
    """Raised inside a rule's text where it needs a sum that the engine must first collect from elsewhere.

    Attributes:
        partials: what there is of the sums.
        dims: the dimensions that they go along, where they are over one tensor; None: over all tensors.
    """

    def __init__(self, partials: Sequence[Any], dims: tuple[Dims, ...] | None = None) -> None:
        super().__init__("waiting for sums")
        self.partials = partials
        self.dims = dims


class State:
    """The state of one parameter as its rule sees it: one attribute a slot, in the compute dtype."""

    def __init__(self, slots: Mapping[str, Any]) -> None:
        self.__dict__.update(slots)

    @classmethod
    def of(cls, tensors: dict[str, Any]) -> State:
        """A dict's own tensors, whatever these are exchanged for."""
        state = cls.__new__(cls)
        object.__setattr__(state, "__dict__", tensors)
        return state

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(f"the rule uses state {name!r}, which its slots() does not declare")

    def __setattr__(self, name: str, value: Any) -> None:
        """Write a value into the state's own tensor: another in its place would be lost."""
        mine = getattr(self, name)
        if value is not mine:
            mine.copy_(value)

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__


class Reducer:
    """Sums of the values that the text has in its hands; they are all there is. Other ways to sum derive from it."""

    def tensor_sum(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        """Complete sums over one tensor from sums over the part in hand; dims are those summed, None for all."""
        return partials

    def global_sum(self, begin: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """Complete sums over every tensor of the step; `begin` gives those over the tensors in hand."""
        return begin()

    def sum(self, x: Any, dims: tuple[int, ...] | None = None) -> Any:
        """The sum of the part in hand, over these dimensions, which stay as size 1; None: over all."""
        return x.sum() if dims is None else x.sum(dims, keepdim=True)

    def square(self, x: Any, dims: tuple[int, ...] | None = None) -> Any:
        """The sum of the squares of the part in hand, over these dimensions; None: over all."""
        if dims is not None:
            norms = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
            return norms * norms
        if isinstance(x, Tensor) and x.is_contiguous() and x.numel() < 1 << 31:
            flat = x.view(-1)
            return torch.dot(flat, flat)
        norm = torch.linalg.vector_norm(x)
        return norm * norm


class AnsweredReducer(Reducer):
    """Sums over the part in hand where this is all there is; others are answered, or interrupt the text.

    Args:
        answers: the sums from elsewhere, in the order in which the text asks for them.
        crosses: whether sums along these dimensions go over other processes; None: they never do.
    """

    def __init__(self, answers: Sequence[tuple[Any, ...]], crosses: Callable[[Dims], Any] | None = None) -> None:
        self.answers = answers
        self.crosses = crosses
        self.asked = 0

    def tensor_sum(self, partials: tuple[Any, ...], dims: tuple[Dims, ...]) -> tuple[Any, ...]:
        """The sums themselves, unless other processes have the rest of the tensor."""
        if self.crosses is None or not any(map(self.crosses, dims)):
            return partials
        return self._next(lambda: partials, dims)

    def global_sum(self, begin: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        """What was found for all tensors."""
        return self._next(begin, None)

    def _next(self, begin: Callable[[], tuple[Any, ...]], dims: tuple[Dims, ...] | None) -> tuple[Any, ...]:
        if self.asked == len(self.answers):
            raise NeedSums(begin(), dims)
        self.asked += 1
        return self.answers[self.asked - 1]


class Known:
    """Scalars and flags as attributes, and the sums that a rule may ask for.

    Every numeric option of the parameter group is here under its own name (``betas`` as ``beta1``, ``beta2``, ...),
    together with what the rule's ``scalars`` returned; booleans, strings and None are fixed flags, on which the text
    may branch. A call of one of the methods is one round of communication where tensors are spread over machines.
    """

    def __init__(self, values: Mapping[str, Any], reducer: Reducer | None = None) -> None:
        self.__dict__.update(values)
        self.reducer = reducer or Reducer()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the rule uses {name!r}, which is neither an option nor one of its scalars")

    def measure(self, shape: tuple[int, ...]) -> None:
        """Take the size and shape of the whole parameter, which means divide by."""
        self.numel, self.ndim = float(math.prod(shape)), len(shape)
        self.shape: Any = torch.Size(shape)

    def sums(self, *xs: Tensor) -> tuple[Tensor, ...]:
        """Sums over all elements of each."""
        return self.reducer.tensor_sum(tuple(map(self.reducer.sum, xs)), (None,) * len(xs))

    def complete(self, *begun: tuple[Tensor, tuple[int, ...]]) -> tuple[Tensor, ...]:
        """Sums that the text has begun over the part in hand, each with the dimensions that it sums over."""
        return self.reducer.tensor_sum(tuple(partial for partial, _ in begun), tuple(dims for _, dims in begun))

    def sums_over(self, *pairs: tuple[Tensor, tuple[int, ...]]) -> tuple[Tensor, ...]:
        """For each (x, dims) the sums over these dimensions, which stay as size 1."""
        asked = [(self.reducer.sum(x, dims), dims) for x, dims in pairs if dims]
        sums = iter(self.complete(*asked) if asked else ())
        return tuple(next(sums) if dims else x for x, dims in pairs)

    def dots_over(self, dims: tuple[int, ...], *pairs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """For each (x, y) the sums of x·y over these dimensions, which stay as size 1."""
        if not dims:
            return tuple(x * y for x, y in pairs)
        across = self.reducer
        dots = (across.square(x, dims) if x is y else across.sum(x * y, dims) for x, y in pairs)
        return self.complete(*((dot, dims) for dot in dots))

    def means_over(self, *pairs: tuple[Tensor, tuple[int, ...]]) -> tuple[Tensor, ...]:
        """For each (x, dims) the means over these dimensions, which stay as size 1."""
        sums = self.sums_over(*pairs)
        return tuple(total / self.count(dims) for total, (_, dims) in zip(sums, pairs, strict=True))

    def count(self, dims: tuple[int, ...]) -> Any:
        """The number of elements along these dimensions of the whole parameter."""
        count = 1
        for d in dims:
            count = count * self.shape[d]
        return count

    def norms(self, *xs: Tensor) -> tuple[Tensor, ...]:
        """Euclidean norms over all elements of each."""
        squares = self.reducer.tensor_sum(tuple(map(self.reducer.square, xs)), (None,) * len(xs))
        return tuple(map(torch.sqrt, squares))

    def norm(self, x: Tensor) -> Tensor:
        """Euclidean norm over all elements."""
        return self.norms(x)[0]

    def mean(self, x: Tensor) -> Tensor:
        """Mean over all elements."""
        return self.sums(x)[0] / self.numel

    def rms(self, x: Tensor) -> Tensor:
        """Root of the mean square over all elements."""
        return torch.sqrt(self.reducer.tensor_sum((self.reducer.square(x),), (None,))[0] / self.numel)

    def overall_sums(self, *xs: Tensor) -> tuple[Tensor, ...]:
        """Sums over the elements of every tensor of this step, of each."""
        return self.reducer.global_sum(lambda: tuple(_list_total(self.reducer.sum(x)) for x in xs))

    def overall_norm(self, x: Tensor) -> Tensor:
        """Euclidean norm over the elements of every tensor of this step."""
        return torch.sqrt(self.reducer.global_sum(lambda: (_list_total(self.reducer.square(x)),))[0])


def _list_total(total: Any) -> Any:
    return torch.stack(total.tensors).sum() if isinstance(total, TensorList) else total
