"""A small problem on which every optimizer of the catalogue can take a few cheap steps."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import descend
from helpers.cases import ROWS, Row

# 0-d, empty, singletons, a vector, matrices (one large enough to be factored), a convolution.
SHAPES = ((), (0,), (1,), (5,), (1, 7), (6, 4), (18, 17), (4, 3, 3, 3))


def parameters(dtype: torch.dtype = torch.float64, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(noise(shape, dtype, -1, i)) for i, shape in enumerate(shapes)]


def noise(shape: Sequence[int], dtype: torch.dtype, step: int, index: int) -> Tensor:
    """Normal numbers that depend on the step and the parameter's place only, the same in every dtype up to rounding."""
    generator = torch.Generator().manual_seed(1000 * (step + 1) + index)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=generator, dtype=wide).to(dtype)


def make(row: Row, params: Any, **options: Any) -> torch.optim.Optimizer:
    options.pop("still", None)
    return getattr(descend, row.name)(params, **{"lr": row.lr, **options})


def set_gradients(
    params: Sequence[Tensor], step: int, curved: bool = False, places: Sequence[int] | None = None
) -> None:
    """Noise around a pull towards zero; `curved`: as the derivative of a loss, whose graph is kept.

    `places` are the parameters' places, where these are not all that there are.
    """
    for i, p in zip(places or range(len(params)), params, strict=True):
        g = noise(p.shape, p.dtype, step, i) * (1 + step % 3)
        if not curved:
            p.grad = g + 0.3 * p.detach()
        else:
            loss = ((g * p).sum() + 0.15 * (p * p).sum() + 0.02 * (p**4).sum() + 0.1 * p.sum() ** 2).real
            (p.grad,) = torch.autograd.grad(loss, [p], create_graph=True)


def is_curved(optimizer: torch.optim.Optimizer) -> bool:
    return bool(getattr(optimizer, "is_second_order", False))


def take_steps(optimizer: torch.optim.Optimizer, steps: int = 3, start: int = 0) -> None:
    """Steps number `start` and on, on every parameter that the optimizer has."""
    params = parameters_of(optimizer)
    for step in range(start, start + steps):
        set_gradients(params, step, is_curved(optimizer))
        optimizer.step()
        optimizer.zero_grad()


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def values(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in parameters_of(optimizer)]


def states(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Copies of the parameters' states, in the parameters' order."""
    return [
        {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in optimizer.state.get(p, {}).items()
        }
        for p in parameters_of(optimizer)
    ]


@functools.cache
def busiest(name: str) -> dict[str, Any]:
    """The variant of this row that keeps the most state, of those that move in their first steps."""
    row = next(row for row in ROWS if row.name == name)

    def weight(options: dict[str, Any]) -> tuple[bool, int]:
        params = parameters(shapes=((20, 18), (5,)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # variants with options that have no effect
            optimizer = make(row, params, **options)
        before = values(optimizer)
        take_steps(optimizer, 2)
        size = sum(optimizer.state_bytes(p, group) for group in optimizer.param_groups for p in group["params"])
        return not same(values(optimizer), before), size

    # A rule of matrices that hands everything to AdamW keeps more, and is not itself then.
    return max((options for options in row.variants if not options.get("use_fallback")), key=weight)


def busy(row: Row, params: Any, **options: Any) -> torch.optim.Optimizer:
    """The row's optimizer with the options that make it keep the most state."""
    return make(row, params, **{**busiest(row.name), **options})


def alone(row: Row) -> dict[str, Any]:
    """Options without which one parameter's steps would depend on the other parameters'."""
    return {"max_grad_norm": None} if row.name == "Lamb" else {}


# Rules whose every step depends on all parameters together.
SHARED = {"Prodigy": "its learning rate is found from all parameters together"}


def same(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> bool:
    """Equal bit by bit; no NaN is accepted."""
    return len(xs) == len(ys) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def same_states(xs: Sequence[dict[str, Any]], ys: Sequence[dict[str, Any]]) -> bool:
    """Equal bit by bit, names and dtypes included."""
    return all(
        x.keys() == y.keys()
        and all(
            a.dtype == y[name].dtype and torch.equal(a, y[name]) if isinstance(a, Tensor) else a == y[name]
            for name, a in x.items()
        )
        for x, y in zip(xs, ys, strict=True)
    )


def distance(xs: Sequence[Tensor], ys: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """Largest difference of any parameter, over how far that parameter has moved; infinite where one is NaN."""
    worst = 0.0
    for x, y, at in zip(xs, ys, start, strict=True):
        if x.numel():
            moved = (y - at).abs().max().item()
            apart = (x - y).abs().max().item() / (moved or 1.0)
            worst = max(worst, math.inf if math.isnan(apart) else apart)
    return worst
