"""What every float64 oracle shares: the loop over groups and parameters, and the few terms that many papers use."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Options = dict[str, Any]
State = dict[str, Any]
Gradients = list[list[Array | None]]


class Oracle:
    """One optimizer, one parameter at a time, in float64; a subclass writes `update` as its paper does.

    Whatever a step needs besides the gradients (random probes, Hessian diagonals) goes to `step` by name, nested like
    the gradients, and reaches `update` in `h` under that name.
    """

    defaults: ClassVar[Options] = {}

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        known = {"maximize": False, "max_lr": None, **self.defaults}
        given = set(options).union(*groups) - {"params"}
        if unknown := given - set(known):
            raise TypeError(f"{type(self).__name__} has no option {sorted(unknown)}; it has {sorted(known)}")
        self.options: Options = {**known, **options}
        if self.options["max_lr"] is None:
            self.options["max_lr"] = self.options.get("lr")
        self.groups: list[dict[str, Any]] = [
            {**self.options, **group, "params": [np.array(p, np.float64) for p in group["params"]]} for group in groups
        ]
        self.state: dict[tuple[int, int], State] = {}

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        """Update every parameter that has a gradient; the others keep their own step counter."""
        for i, (h, row) in enumerate(zip(self.groups, grads, strict=True)):
            for j, (p, g) in enumerate(zip(h["params"], row, strict=True)):
                if g is None:
                    continue
                s = self.state.setdefault((i, j), {"step": 0})
                s["step"] += 1
                if p.size == 0:
                    continue
                sign = -1.0 if h["maximize"] else 1.0
                own = {**h, **{name: values[i][j] for name, values in extra.items()}}
                new = self.update(p, sign * np.asarray(g, np.float64), s, own, s["step"])
                h["params"][j] = np.asarray(new, np.float64).reshape(p.shape)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        """The parameter after its t-th update (t = 1 at the first); writes its state into s, changes no array."""
        raise NotImplementedError


def ema(old: Any, new: Any, beta: float) -> Any:
    """Exponential moving average."""
    return beta * old + (1 - beta) * new


def norm(x: ArrayLike) -> float:
    """L2 norm over the whole tensor."""
    return float(np.sqrt(np.sum(np.square(x))))


def rms(x: ArrayLike) -> float:
    """Root of the mean square over the whole tensor."""
    return float(np.sqrt(np.mean(np.square(x))))


def decay_rate(h: Options) -> float:
    """The fraction of a weight that decoupled decay takes: lr, or lr^2 / max_lr corrected (arXiv 2506.02285)."""
    corrected = h["lr"] / h["max_lr"] if h.get("corrected_weight_decay") else 1.0
    return float(h["lr"] * h["weight_decay"] * corrected)


def cautious(u: Array, g: Array) -> Array:
    """Cautious optimizers (arXiv 2411.16085) as timm scales them: drop what disagrees with g, keep the mean size."""
    mask = u * g > 0
    return u * mask / max(float(np.mean(mask)), 1e-3)
