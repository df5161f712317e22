"""Linear algebra of whole matrices, for one tensor [..., m, n] or a list of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from descend.engine.tensorlist import TensorList

_SMALLEST = 2.0**-126


def product(*factors: Tensor) -> Tensor:
    """The matrix product of all, from the left."""
    result = factors[0]
    for factor in factors[1:]:
        result = torch.matmul(result, factor)
    return result


def transpose(x: Tensor) -> Tensor:
    """The transposed matrices."""
    return x.transpose(-2, -1)


def along(x: Tensor, factor: Tensor, dim: int) -> Tensor:
    """x with its dimension `dim` multiplied by the matrix `factor`: yₖ = Σⱼ xⱼ·factorⱼₖ."""
    return torch.matmul(x.transpose(dim, -1), factor).transpose(dim, -1)


def over_triangular(x: Tensor, factor: Tensor, dim: int) -> Tensor:
    """x with its dimension `dim` multiplied by the inverse of the upper triangular matrix `factor`."""

    def of(a: Tensor, q: Tensor) -> Tensor:
        rows = a.transpose(dim, -1)
        solved = torch.linalg.solve_triangular(q, rows.reshape(-1, q.size(-1)), upper=True, left=False)
        return solved.reshape(rows.shape).transpose(dim, -1)

    return _each(of, x, factor)


def gram(x: Tensor, dim: int) -> Tensor:
    """x·xᵀ with `dim` as rows and all other dimensions contracted."""

    def of(a: Tensor) -> Tensor:
        rows = a.transpose(dim, -1).reshape(-1, a.size(dim))
        return rows.mT @ rows

    return _each(of, x)


def orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns, by QR."""
    return _each(lambda a: torch.linalg.qr(a).Q, x)


def eigenbasis(x: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices as columns, those of the largest eigenvalues first."""
    return _each(lambda a: _eigh(a)[1].flip(-1), x)


def inverse_root(x: Tensor, root: int, eps: Any) -> Tensor:
    """(x + eps·I)^(−1/root) of positive semi-definite matrices; eigenvalues that rounding made negative count as 0."""

    def of(a: Tensor) -> Tensor:
        values, vectors = _eigh(a)
        return (vectors * (values.clamp_min(0.0) + eps) ** (-1 / root)) @ transpose(vectors)

    return _each(of, x)


def spectral_bound(x: Tensor) -> Tensor:
    """A lower bound of the spectral norm of symmetric matrices, by one power step from the longest row.

    The matrices are brought to 1 as their largest element, in place: squares of theirs might not be numbers.
    """

    def of(a: Tensor) -> Tensor:
        top = torch.linalg.vector_norm(a, float("inf"))
        a.div_(torch.where(top > 0, top, 1.0))
        longest = torch.argmax(torch.linalg.vector_norm(a, dim=-1))
        v = a @ a.index_select(0, longest.reshape(1)).squeeze(0)
        return top * torch.linalg.vector_norm(a @ (v / torch.clamp(torch.linalg.vector_norm(v), min=_SMALLEST)))

    return _each(of, x)


def _eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(x)
    except RuntimeError:
        # The solver may fail to converge on nearly equal eigenvalues, which more digits tell apart.
        values, vectors = torch.linalg.eigh(x.double())
    return values.to(x.dtype), vectors.to(x.dtype)


def _each(f: Callable[..., Tensor], *xs: Any) -> Any:
    return TensorList.each(f, *xs) if any(isinstance(x, TensorList) for x in xs) else f(*xs)
