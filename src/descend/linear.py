"""Linear algebra of whole matrices, for one tensor [..., m, n] or a list of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from descend.engine.tensorlist import TensorList
from descend.randomness import uniform

_SMALLEST = 2.0**-126
_FRAME = 8  # the key of the fixed vectors' random numbers


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
    """Eigenvectors of symmetric matrices as columns, those of the largest eigenvalues first.

    Rounding alone tells apart the eigenvectors of equal eigenvalues, among them the vectors of the null space, and the
    signs of all. So each eigenspace takes the projections on it of as many fixed vectors, made orthonormal: a function
    of the matrix that is as exact as the eigenspaces are.
    """

    def of(a: Tensor) -> Tensor:
        values, vectors = (part.flip(-1) for part in _eigh(a.double()))
        parts = values[:-1] - values[1:] > values[0] * rounding(len(a), a.dtype)
        space = torch.nn.functional.pad(parts.cumsum(0), (1, 0))
        projected = vectors @ torch.where(space[:, None] == space, vectors.mT @ fixed_frame(vectors), 0.0)
        basis = torch.where(values[0] > 0, _positive_qr(projected)[0], torch.eye(len(a), device=a.device))
        return basis.to(a.dtype)

    return _each(of, x)


def power_step(basis: Tensor, powered: Tensor, known_in: torch.dtype) -> Tensor:
    """The next basis of a power iteration: what a matrix made of the old one, orthonormal from the left.

    A column that depends on those before it, as of a matrix of low rank, says nothing: the old vector stays for it.

    Args:
        basis: orthonormal columns.
        powered: what the matrix made of them.
        known_in: the dtype that the matrix was measured in, whose rounding counts.
    """

    def of(old: Tensor, new: Tensor) -> Tensor:
        q, r = _positive_qr(new)
        lengths = r.diagonal()
        # The shorter a column was, the larger the error of its direction, which is left of all columns after it.
        amplified = torch.linalg.vector_norm((r / lengths[:, None]).nan_to_num_(0.0), dim=0)
        depends = lengths <= amplified * lengths.max() * rounding(len(old), known_in)
        return _positive_qr(torch.where(depends, old, new))[0] if depends.any() else q

    return _each(of, basis, powered)


def fixed_frame(like: Tensor) -> Tensor:
    """Vectors as columns that are the same everywhere, near the axes but in no special position to any subspace."""
    n = len(like)
    numbers = uniform(torch.arange(n * n, device=like.device), _FRAME).reshape(n, n).sub_(0.5).mul_(n**-0.5 / 4)
    return (numbers + torch.eye(n, dtype=numbers.dtype, device=like.device)).to(like.dtype)


def rounding(n: int, dtype: torch.dtype) -> float:
    """What rounding may leave of sums of n products where 0 is right, as a share of what went into them.

    Errors grow from operation to operation. float64 has digits to spare for a wide margin, float32 has not.
    """
    return 2 * n**0.5 * max(float(torch.finfo(dtype).eps), 2.0**-46)


def without_rounding(x: Tensor, dims: Sequence[int]) -> Tensor:
    """x with zeros for those slices along these dimensions that are no longer than the rounding errors of all."""
    for i in dims:
        others = tuple(d for d in range(x.dim()) if d != i)
        # Squares of float32 numbers may overflow or underflow in float32.
        lengths = torch.linalg.vector_norm(x, dim=others, keepdim=True, dtype=torch.float64) if others else x.abs()
        x = torch.where(lengths < torch.linalg.vector_norm(lengths) * rounding(x.size(i), x.dtype), 0.0, x)
    return x


def _positive_qr(x: Tensor) -> tuple[Tensor, Tensor]:
    """QR with a diagonal of R that is not negative, which makes it one."""
    q, r = torch.linalg.qr(x)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return q * signs, r * signs[:, None]


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
    if not torch.isfinite(x).all():
        raise torch.linalg.LinAlgError(  # type: ignore[attr-defined]
            f"a factor of shape {tuple(x.shape)} in its state holds numbers that are not finite"
        )
    try:
        values, vectors = torch.linalg.eigh(x)
    except RuntimeError:
        # The solver may fail to converge on nearly equal eigenvalues, which more digits tell apart.
        values, vectors = torch.linalg.eigh(x.double())
    return values.to(x.dtype), vectors.to(x.dtype)


def _each(f: Callable[..., Tensor], *xs: Any) -> Any:
    return TensorList.each(f, *xs) if any(isinstance(x, TensorList) for x in xs) else f(*xs)
