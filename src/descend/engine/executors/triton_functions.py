"""Functions of Triton that written kernels call, and the kernels that no rule changes. Only CUDA steps import this."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def over(x, y):
    """Rounded as IEEE has it, where the usual division of single precision is not."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    return x / y


@triton.jit
def root(x):
    """The square root, likewise."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    return tl.sqrt(x)


@triton.jit
def sign(x):
    """-1, 0 or 1; 0 of a NaN."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def even(x):
    """To the nearest whole number, of two the even one; adding what has no room for a fraction rounds so."""
    large = 4503599627370496.0 if x.dtype == tl.float64 else 8388608.0
    shifted = tl.where(x < 0, (x - large) + large, (x + large) - large)
    return tl.where(tl.abs(x) < large, shifted, x)


@triton.jit
def copysign(x, y):
    """The size of `x` with the sign of `y`."""
    if y.dtype == tl.float64:
        negative = y.to(tl.int64, bitcast=True) < 0
    else:
        negative = y.to(tl.int32, bitcast=True) < 0
    return tl.where(negative, -tl.abs(x), tl.abs(x))


@triton.jit
def smaller(x, y):
    """The smaller one; NaN if one is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def larger(x, y):
    """The larger one; NaN if one is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def power(x, y):
    """A power; of what is negative only a whole one."""
    size = tl.exp(y * tl.log(tl.abs(x)))
    whole = even(y) == y
    odd = whole & (even(y * 0.5) != y * 0.5)
    signed = tl.where(odd, copysign(size, x), size)
    found = tl.where((x >= 0) | whole, signed, float("nan"))
    return tl.where(y == 0, 1.0, found)


@triton.jit
def modulo(x, y):
    """What is left of whole numbers, with the sign of `y`."""
    rest = x % y
    return tl.where((rest != 0) & ((rest < 0) != (y < 0)), rest + y, rest)


@triton.jit
def floored(x, y):
    """The quotient of whole numbers, rounded down."""
    return x // y - ((x % y != 0) & ((x < 0) != (y < 0))).to(x.dtype)


@triton.jit
def total(partials, firsts, totals, KINDS: tl.constexpr, WIDTH: tl.constexpr):
    """The sums of a parameter, of those of its chunks."""
    job = tl.program_id(0)
    first, last = tl.load(firsts + job), tl.load(firsts + job + 1)
    for i in tl.static_range(KINDS):
        found = tl.zeros((WIDTH,), totals.dtype.element_ty)
        for start in range(first, last, WIDTH):
            at = start + tl.arange(0, WIDTH)
            found += tl.load(partials + at * KINDS + i, mask=at < last, other=0)
        tl.store(totals + job * KINDS + i, tl.sum(found, 0))


@triton.jit
def scatter(numbers, to):
    """A single number of state goes where each parameter has it, once all chunks have read the last one."""
    job = tl.program_id(0)
    tl.store(tl.load(to + job).to(tl.pointer_type(numbers.dtype.element_ty)), tl.load(numbers + job))


_GIVEN = [f"a{i}" for i in range(32)]


@triton.jit(do_not_specialize=["start", "count", *_GIVEN])
def place(
    out, start, count,
    a0: tl.int64, a1: tl.int64, a2: tl.int64, a3: tl.int64, a4: tl.int64, a5: tl.int64, a6: tl.int64, a7: tl.int64,
    a8: tl.int64, a9: tl.int64, a10: tl.int64, a11: tl.int64, a12: tl.int64, a13: tl.int64, a14: tl.int64, a15: tl.int64,
    a16: tl.int64, a17: tl.int64, a18: tl.int64, a19: tl.int64, a20: tl.int64, a21: tl.int64, a22: tl.int64, a23: tl.int64,
    a24: tl.int64, a25: tl.int64, a26: tl.int64, a27: tl.int64, a28: tl.int64, a29: tl.int64, a30: tl.int64, a31: tl.int64,
):  # fmt: skip
    """Whole numbers that come as arguments go to a table."""
    given = (
        a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15,
        a16, a17, a18, a19, a20, a21, a22, a23, a24, a25, a26, a27, a28, a29, a30, a31,
    )  # fmt: skip
    for i in tl.static_range(32):
        tl.store(out + start + i, given[i], mask=i < count)
