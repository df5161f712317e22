"""Linear algebra of whole matrices, for one tensor [..., m, n] or a list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from descend.engine.tensorlist import TensorList


def product(*factors: Tensor) -> Tensor:
    """The matrix product of all, from the left."""
    result = factors[0]
    for factor in factors[1:]:
        result = torch.matmul(result, factor)
    return result


def transpose(x: Tensor) -> Tensor:
    """The transposed matrices."""
    return x.transpose(-2, -1)


def orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns, by QR."""
    return _each(lambda a: torch.linalg.qr(a).Q, x)


def _each(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    return TensorList(map(f, x.tensors)) if isinstance(x, TensorList) else f(x)
