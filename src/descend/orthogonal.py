"""The polar factor of a matrix, the orthogonal matrix nearest to it, by Newton-Schulz iteration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from descend.engine.tensorlist import TensorList

Triple = tuple[float, float, float]
Coefficients = str | Triple | Sequence[Triple]
Matrices = TypeVar("Matrices", Tensor, TensorList)

_KELLER: tuple[Triple, ...] = ((3.4445, -4.7750, 2.0315),)

COEFFICIENTS: Mapping[str, tuple[Triple, ...]] = {
    # Jordan et al., Muon, 2024; "original" is timm's name for it.
    "keller": _KELLER,
    "original": _KELLER,
    # Cesista, Squeezing 1-2% Efficiency Gains Out of Muon, 2025.
    "quintic": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Amsel et al., The Polar Express, 2025, arXiv 2505.16932, with a safety margin of 1e-2.
    "polar_express": (
        (8.237312490495555, -23.157747414558198, 16.680568411445915),
        (4.082441999064835, -2.893047735332586, 0.5252849256975648),
        (3.9263479922546582, -2.8547468034765298, 0.5318022422894988),
        (3.2982187133085143, -2.424541981026706, 0.48632008358844075),
        (2.2970369434552573, -1.63662558125903, 0.4002628455953627),
        (1.8763805351440397, -1.2347896577722228, 0.35891887501668385),
        (1.8564423485617974, -1.2132449880935525, 0.3568003487825883),
        (1.8749994008682747, -1.2499988017229169, 0.3749994008546422),
    ),
    # The same with a margin of 2e-2.
    "polar_express_safer": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.0429299351667245, -2.808917465908704, 0.5000178451051299),
        (3.8916678022926563, -2.7724841532176825, 0.5060648178503389),
        (3.285753657755658, -2.3681294933425394, 0.46449024233003117),
        (2.3005307116270983, -1.6111665557258408, 0.3833374427545273),
        (1.8631210546382593, -1.2042160621002727, 0.3421879560523383),
        (1.8382572152247512, -1.1779263289537742, 0.3396513038637379),
        (1.8749999923301852, -1.2499999836060613, 0.374999991275876),
    ),
}

NS_DTYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}

# How much a run of steps on one Gram matrix may raise the smallest squared singular value. Those below the dtype's
# epsilon are lost in the rounding of that matrix, and the run raises them along with the error.
_GROWTH = {torch.bfloat16: 20.0, torch.float32: 2e4, torch.float64: 1e9}
# The same noise is spread over the singular values; in small matrices a single one may get too much of it.
_LEAST_SIDE = {torch.bfloat16: 256, torch.float32: 1, torch.float64: 1}
# Matrices are stacked up to this many bytes, which a core's cache holds; an accelerator is filled by larger stacks.
_STACK_BYTES = {"cpu": 8 << 20}
_STACK_BYTES_ELSEWHERE = 256 << 20


def coefficient_sequence(coefficients: Coefficients, steps: int) -> tuple[Triple, ...]:
    """The coefficients (a, b, c) of each step; a set that is too short repeats its last.

    Raises:
        ValueError: if `coefficients` is neither the name of a set, a triple, nor triples, or `steps` is not positive.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"ns_steps={steps!r}, expected an integer >= 1")
    if isinstance(coefficients, str):
        if coefficients not in COEFFICIENTS:
            names = ", ".join(map(repr, COEFFICIENTS))
            raise ValueError(f"ns_coefficients={coefficients!r}, expected one of {names}, or triples of numbers")
        triples = COEFFICIENTS[coefficients]
    else:
        triples = _triples(coefficients)
    return (*triples, *triples[-1:] * (steps - len(triples)))[:steps]


def orthogonalize(
    x: Matrices,
    steps: int = 5,
    coefficients: Coefficients = "keller",
    *,
    eps: Any = 1e-7,
    safety_factor: Any = 1.0,
    scale_eps: bool = False,
    dtype: torch.dtype | None = None,
    widen: bool = True,
) -> Matrices:
    """The polar factor UVᵀ of x = USVᵀ, nearly: singular values come close to 1.

    ::

        X ← x / max(safety_factor·‖x‖, eps)
        X ← (aI + bA + cA²)X,  A = XXᵀ           once for each step's (a, b, c)

    All A of a run of steps are polynomials of the first. So a matrix much longer than wide is left alone during the
    run: its Gram matrix is iterated, Q ← PQ and A ← PAP for P = aI + bA + cA², and then X ← QX.

    Args:
        x: a matrix, a batch [..., m, n], or a list of matrices of one shape, which are multiplied in batches. It is
            not changed.
        steps: number of steps, ≥ 1.
        coefficients: "keller" (also "original"), "quintic", "polar_express", "polar_express_safer", one triple for
            every step, or a sequence of triples, whose last is repeated.
        eps: the least norm that x is divided by, ≥ 0.
        safety_factor: x is divided by this much more than its norm.
        scale_eps: add eps·√(n/m) to the norm instead.
        dtype: what to multiply in. None: bfloat16 for float32 values, as in torch and timm; float64 stays.
        widen: bring the result to x's dtype.

    Returns:
        Tensors of x's shape.
    """
    how = coefficient_sequence(coefficients, steps), _Damping(eps, safety_factor, scale_eps), dtype, widen
    if isinstance(x, TensorList):
        return TensorList(_factors(x.tensors, *how))
    factor: Tensor = _Factor.apply(x, how)  # type: ignore[no-untyped-call]
    return factor


class _Factor(torch.autograd.Function):
    """The polar factor of one matrix, or under ``torch.vmap`` those of all of them at once."""

    @staticmethod
    def forward(x: Tensor, how: tuple[Any, ...]) -> Tensor:
        return _factors((x,), *how)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """There is no backward pass."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: Tensor, how: tuple[Any, ...]) -> tuple[Tensor, int]:
        return _factors((x.movedim(in_dims[0], 0),), *how)[0], 0


def _factors(
    tensors: Sequence[Tensor],
    sequence: Sequence[Triple],
    damping: _Damping,
    dtype: torch.dtype | None,
    widen: bool,
) -> list[Tensor]:
    """The polar factors of matrices, or of batches of them, of one shape."""
    squares: dict[torch.Size, _Squares] = {}
    results: list[Tensor] = []
    for stack in _stacks(tensors, _working_dtype(tensors[0], dtype)):
        shape: tuple[int, ...] = stack.shape
        # One matrix alone is multiplied faster than a batch of one.
        flat = shape[-2:] if math.prod(shape[:-2]) == 1 else (-1, *shape[-2:])
        polar = _polar(stack.reshape(flat), squares, sequence, damping).reshape(shape)
        results += (polar.to(tensors[0].dtype) if widen else polar).unbind()
    return results


class _Damping(NamedTuple):
    eps: Any
    safety_factor: Any
    scale_eps: bool

    def inverse_norm(self, gram: Tensor, x: Tensor) -> Tensor:
        """1 over the damped norm of X, whose square is the trace of XXᵀ."""
        wide = torch.promote_types(gram.dtype, torch.float32)
        norm = torch.sqrt(gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=wide)) * self.safety_factor
        if self.scale_eps:
            norm = norm + self.eps * (x.size(-1) / x.size(-2)) ** 0.5
        else:
            norm = torch.clamp(norm, min=self.eps)
        return torch.reciprocal(norm).to(gram.dtype)[..., None, None]


class _Squares:
    """Buffers for m×m matrices, used by one stack after another: fresh memory costs as much as a product."""

    def __init__(self, x: Tensor) -> None:
        side = min(x.shape[-2:])
        self.gram, self.p, self.factor, self.spare = (x.new_empty((*x.shape[:-2], side, side)) for _ in range(4))

    def compose(self, run: Sequence[Triple]) -> Tensor:
        """Q with Q·X what the run makes of X, from A = XXᵀ, which becomes that of the last step."""
        for i, (a, b, c) in enumerate(run):
            _multiply_add(self.gram, self.gram, self.gram, b, c, out=self.p)
            self.p.diagonal(dim1=-2, dim2=-1).add_(a)
            if i + 1 < len(run):
                torch.matmul(self.p, self.gram, out=self.spare)
                torch.matmul(self.spare, self.p, out=self.gram)
            if i == 0:
                self.p, self.factor = self.factor, self.p
            else:
                torch.matmul(self.p, self.factor, out=self.spare)
                self.factor, self.spare = self.spare, self.factor
        return self.factor


def _polar(x: Tensor, squares: dict[torch.Size, _Squares], sequence: Sequence[Triple], damping: _Damping) -> Tensor:
    """The polar factors of matrices that may be overwritten."""
    if x.shape not in squares:
        squares[x.shape] = _Squares(x)
    buffers = squares[x.shape]
    tall = x.size(-2) > x.size(-1)
    y = torch.empty_like(x)
    for i, run in enumerate(_runs(sequence, x)):
        gram = torch.matmul(*((x.mT, x) if tall else (x, x.mT)), out=buffers.gram)
        if i == 0:
            # What is small is divided by the norm instead of X, where that can be.
            scale = damping.inverse_norm(gram, x)
            gram.mul_(scale).mul_(scale)
        if len(run) == 1:
            a, b, c = run[0]
            x = x if i else x.mul_(scale)
            p = _multiply_add(gram, gram, gram, b, c, out=buffers.p)
            _multiply_add(x, *((x, p) if tall else (p, x)), a, 1.0, out=y)
        else:
            factor = buffers.compose(run) if i else buffers.compose(run).mul_(scale)
            torch.matmul(*((x, factor) if tall else (factor, x)), out=y)
        x, y = y, x
    return x


def _runs(sequence: Sequence[Triple], x: Tensor) -> Iterator[list[Triple]]:
    """The steps in runs that share one Gram matrix.

    In products of m×m matrices and with r = n/m, a run of k steps costs 2r + 4k − 3, and k single steps k·(2r + 1):
    runs are cheaper where r > 3/2.
    """
    short, long = sorted(x.shape[-2:])
    limit = _GROWTH[x.dtype] if 2 * long > 3 * short and short >= _LEAST_SIDE[x.dtype] else 0.0
    run: list[Triple] = []
    growth = 1.0
    for triple in sequence:
        if run and growth > limit:
            yield run
            run, growth = [], 1.0
        run.append(triple)
        growth *= triple[0] ** 2
    yield run


def _multiply_add(x: Tensor, y: Tensor, z: Tensor, of_x: float, of_product: float, out: Tensor) -> Tensor:
    """out ← of_x·x + of_product·y·z."""
    multiply_add = torch.addmm if x.dim() == 2 else torch.baddbmm
    return multiply_add(x, y, z, beta=of_x, alpha=of_product, out=out)


def _stacks(tensors: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Copies of the tensors in the working dtype, in stacks of one size up to the bytes of a stack."""
    first = tensors[0]
    limit = _STACK_BYTES.get(first.device.type, _STACK_BYTES_ELSEWHERE) // max(1, first.numel() * dtype.itemsize)
    count = math.ceil(len(tensors) / math.ceil(len(tensors) / max(1, limit)))
    for start in range(0, len(tensors), count):
        part = tensors[start : start + count]
        stack = first.new_empty((len(part), *first.shape), dtype=dtype)
        torch._foreach_copy_(list(stack.unbind()), list(part))
        yield stack


def _working_dtype(x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    if x.dtype == torch.float64:
        return torch.float64
    if dtype is not None:
        return dtype
    return torch.bfloat16 if x.device.type in ("cpu", "cuda", "xpu") else torch.float32


def _triples(coefficients: Any) -> tuple[Triple, ...]:
    """One triple, or a sequence of them, as a tuple of triples."""
    try:
        rows = tuple(coefficients)
        if len(rows) == 3 and all(isinstance(value, (int, float)) for value in rows):
            rows = (rows,)
        triples = tuple((float(a), float(b), float(c)) for a, b, c in rows)
    except (TypeError, ValueError):
        triples = ()
    if not triples:
        raise ValueError(
            f"ns_coefficients={coefficients!r}, expected the name of a set, a triple of numbers, or triples"
        )
    return triples
