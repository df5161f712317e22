"""The terms that papers share, each written once, under the field's names.

A rule is written in these and in plain tensor arithmetic. The same text runs on one tensor, on a
:class:`~descend.engine.tensorlist.TensorList` and inside ``torch.compile``. A scalar may be a Python float or
a 0-d tensor: the functions here never hand a tensor to ``alpha=`` or ``value=``, which would read it back.

Buffers, the first arguments of the functions that end in an assignment, change in place and are returned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Scalar = Any  # float | Tensor of no dimension; Any, since torch types them apart


class Quotient:
    """gain·x/y, not divided yet: adding it to a tensor saves a pass over memory and a temporary."""

    def __init__(self, x: Tensor, y: Tensor, gain: Scalar = 1.0) -> None:
        self.x, self.y, self.gain = x, y, gain

    def __mul__(self, factor: Scalar) -> Quotient:
        return Quotient(self.x, self.y, self.gain * factor)

    __rmul__ = __mul__

    @property
    def value(self) -> Tensor:
        """The tensor."""
        return scale(self.x / self.y, self.gain)


def value_of(x: Tensor | Quotient) -> Tensor:
    """A quotient divided out, a tensor as it is."""
    return x.value if isinstance(x, Quotient) else x


def ema(average: Tensor, x: Tensor, weight: Scalar) -> Tensor:
    """average ← average + weight·(x − average)."""
    if isinstance(weight, float):
        return average.lerp_(x, weight)
    return average.add_((x - average) * weight)


def ema_sq(average: Tensor, x: Tensor, weight: Scalar) -> Tensor:
    """average ← average + weight·(x² − average)."""
    if isinstance(weight, float):
        return average.mul_(1 - weight).addcmul_(x, x, value=weight)
    return average.mul_(1 - weight).add_(x * x * weight)  # an infinity stays one: minus itself it would be NaN


def accumulate(buffer: Tensor, factor: Scalar, x: Tensor | Quotient, gain: Scalar = 1.0) -> Tensor:
    """buffer ← factor·buffer + gain·x."""
    return add_scaled(buffer.mul_(factor), x, gain)


def add_scaled(buffer: Tensor, x: Tensor | Quotient, scale: Scalar) -> Tensor:
    """buffer ← buffer + scale·x, without a pass over memory where the scale is the number 0."""
    if isinstance(scale, float) and scale == 0:
        return buffer
    if isinstance(x, Quotient):
        scale = scale * x.gain
        return buffer.addcdiv_(x.x, x.y, value=scale) if isinstance(scale, float) else buffer.add_(x.x / x.y * scale)
    if isinstance(scale, float):
        return buffer.add_(x, alpha=scale)
    return buffer.addcmul_(x, scale) if isinstance(x, Tensor) else buffer.add_(x * scale)


def add_product(buffer: Tensor, x: Tensor, y: Tensor | float, scale: Scalar) -> Tensor:
    """buffer ← buffer + scale·x·y."""
    if isinstance(y, float):
        return add_scaled(buffer, x, scale * y)
    if isinstance(scale, float):
        return buffer.addcmul_(x, y, value=scale)
    return buffer.add_(x * y * scale)


def plus(x: Tensor, y: Tensor | Quotient, scale: Scalar) -> Tensor:
    """x + scale·y, a new tensor; x itself where scale is the number 0."""
    if isinstance(scale, float) and scale == 0:
        return x
    if isinstance(y, Quotient):
        factor = scale * y.gain
        return x.addcdiv(y.x, y.y, value=factor) if isinstance(factor, float) else x + y.x / y.y * factor
    return x.add(y, alpha=scale) if isinstance(scale, float) else x + y * scale


def blend(x: Tensor, y: Tensor, weight: Scalar) -> Tensor:
    """x + weight·(y − x), a new tensor."""
    if isinstance(weight, float):
        return x.lerp(y, weight)
    return x + (y - x) * weight


def scale(buffer: Tensor, factor: Scalar) -> Tensor:
    """buffer ← factor·buffer, without a pass over memory where the factor is the number 1."""
    if isinstance(factor, float) and factor == 1:
        return buffer
    return buffer.mul_(factor)


def finite_else(x: Tensor, other: Any, reads: bool = True) -> Tensor:
    """x where all of its numbers are finite, else `other`, a tensor of its shape or a number.

    On the CPU it is x itself, without a copy, where the host may read which of them it is.
    """
    if x.numel() == 0:
        return x
    finite = torch.isfinite(torch.stack(torch.aminmax(x))).all()  # without a temporary of x's size
    if reads and x.device.type == "cpu" and finite:  # elsewhere the host would wait for it
        return x
    return torch.where(finite, x, other)


def bounded(x: Tensor, count: Scalar = 1.0) -> Tensor:
    """x brought down, in place, to what `count` of can still be summed: an average that was infinite would be NaN then."""
    return x.clamp_max_(float(torch.finfo(x.dtype).max) / count)


def assign(buffer: Tensor, x: Tensor) -> Tensor:
    """buffer ← x."""
    return buffer.copy_(x)


def root(exp_avg_sq: Tensor, debias: Scalar, eps: Scalar) -> Tensor:
    """√exp_avg_sq · debias + ε, Adam's denominator with debias = 1/√(1 − β₂ᵗ)."""
    denominator = torch.sqrt(exp_avg_sq)
    return scale(denominator, debias).add_(eps)


def adam_ratio(m: Tensor, v: Tensor, debias: Scalar, eps: Scalar) -> Quotient:
    """m/(√v·debias + ε), Adam's direction; ε is divided rather than all of √v multiplied."""
    return Quotient(m, torch.sqrt(v).add_(eps / debias), 1 / debias)


def cube_root(x: Tensor, eps: Scalar) -> Tensor:
    """∛x + ε of numbers that are not negative, to within 5e-7; to the last digits in float64.

    A third of the exponent's bits gives z, near 1/∛x, and a polynomial in t = x·z³ − 1 what x·z² lacks to ∛x. Sums and
    products alone: unlike powers and logarithms, whose last digit depends on where in a vector register a number lies,
    they give the same bits in every executor and on every shard.
    """
    bits, width, bias = (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
    start = (bias + bias / 3 - 0.06775) * 2**width
    z = x.view(bits).to(x.dtype).mul_(-1 / 3).add_(start).to(bits).view(x.dtype)
    y = (z * z).mul_(x)
    t = z.mul_(y).sub_(1.0)
    w = (t * 0.457439).add_(-0.499385).mul_(t).add_(0.555544).mul_(t).add_(-0.666652).mul_(t)
    y.addcmul_(y, w)
    if x.dtype == torch.float64:
        cube = y * y * y  # which overflows for numbers near the largest
        y = torch.where((x > 0) & torch.isfinite(cube + x), y * ((cube + x * 2) / (cube * 2 + x)), y)
    return y.add_(eps)


def running_max(maximum: Tensor, x: Tensor) -> Tensor:
    """maximum ← max(maximum, x), AMSGrad's long memory."""
    return maximum.clamp_min_(x)


def trust_ratio(p_norm: Scalar, u_norm: Scalar) -> Scalar:
    """‖p‖/‖u‖, and 1 where either norm is 0 (You et al., 2020)."""
    usable = (p_norm > 0) & (u_norm > 0)
    return torch.where(usable, p_norm / torch.where(usable, u_norm, 1.0), 1.0)


def clip_ratio(size: Scalar, limit: Scalar) -> Scalar:
    """max(1, size/limit), what a vector of this size is divided by so that it keeps the limit."""
    return torch.clamp(size / limit, min=1.0)


def choose(condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b, for numbers and for tensors alike."""
    if isinstance(condition, (bool, int, float)):
        return a if condition else b
    # A number would make the result float32, whatever the scalars are in.
    numbers = (int, float)
    a, b = (torch.full_like(condition, x, dtype=torch.float64) if isinstance(x, numbers) else x for x in (a, b))
    return torch.where(condition, a, b)


def either(flag: Scalar, a: Any, b: Any) -> Any:
    """a where the scalar flag is 1, b where it is 0."""
    if isinstance(flag, float):
        return a if flag else b
    return torch.where(flag > 0, value_of(a), value_of(b))


def least(a: Any, b: Any) -> Any:
    """The smaller of a and b, for numbers and for tensors alike."""
    return choose(a < b, a, b)


def most(a: Any, b: Any) -> Any:
    """The larger of a and b, for numbers and for tensors alike."""
    return choose(a > b, a, b)


def rectify(t: Any, beta2: Any) -> tuple[Any, Any]:
    """RAdam's length of the approximated moving average and its variance rectification (arXiv 1908.03265).

    Returns ρₜ = ρ∞ − 2tβ₂ᵗ/(1 − β₂ᵗ) and r = √[(ρₜ−4)(ρₜ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρₜ)], the latter 0 while ρₜ ≤ 4.
    """
    decayed = beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * decayed / (1 - decayed)
    bottom = (rho_inf - 4) * (rho_inf - 2) * rho
    usable = (rho - 4) * choose(rho > 4, 1.0, 0.0)
    return rho, (usable * (rho - 2) * rho_inf / choose(rho > 4, bottom, 1.0)) ** 0.5
