"""Oracles that get from outside what their papers leave open: random numbers, and bases of null spaces.

Everything injected is what the optimizer takes, so that what is done with it can be compared to the last digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from descend.linear import eigenbasis, fixed_frame, gram
from descend.optimizers.kron import _BALANCE, _DECAY, _PROBE, _draw
from descend.randomness import normal
from oracles import ORACLES
from oracles.base import Array, Gradients, Options, State
from oracles.precondition import descending


class Dion(ORACLES["Dion"]):
    """Gets the random start."""

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        basis = [[self.start(p.shape, group) for p in group["params"]] for group in self.groups]
        super().step(grads, basis=basis, **extra)

    def start(self, shape: tuple[int, ...], h: Options) -> Array | None:
        if len(shape) != 2 or 0 in shape:
            return None
        start = (min(shape), self.rank(shape, h))
        return normal(torch.arange(start[0] * start[1]), 0, *start).reshape(start).numpy()


class Named:
    """Lists of state matrices under the names that the optimizer gives them."""

    groups: list[dict[str, Any]]

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        inner = self.__dict__.setdefault("inner", {}).setdefault(id(s), {})
        new = super().update(p, g, inner, h, t)  # type: ignore[misc]
        s.update(self.named(inner))
        return new

    def named(self, s: State) -> State:
        named = {name: value for name, value in s.items() if not isinstance(value, (list, dict))}
        for name in ("GG", "Q", "eigenvalues"):
            named.update({f"{name}_{i}": x for i, x in enumerate(s.get(name, ())) if x is not None})
        return named


class SOAP(Named, ORACLES["SOAP"]):
    """Gets the fixed vectors; of float32 gradients the first bases, since the least eigenvalues are known to few digits."""

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        h = {**h, "frame": lambda n: fixed_frame(torch.empty(n, n, dtype=torch.float64)).numpy()}
        if t == 1 and g.any() and np.array_equal(g.astype(np.float32), g):
            x = torch.tensor(g, dtype=torch.float32)
            weight = 1 - (h["shampoo_beta"] if h["shampoo_beta"] >= 0 else h["betas"][1])
            h["basis"] = [None] * g.ndim
            for i, n in enumerate(g.shape):
                if n <= h["max_precond_dim"] and (g.ndim > 1 or h["precondition_1d"]):
                    measured = gram(x, i) / (g.size / n) if h["kl"] else gram(x, i)
                    h["basis"][i] = eigenbasis(torch.zeros(n, n).lerp_(measured, weight)).numpy()
        return super().update(p, g, s, h, t)


class KLSOAP(SOAP):
    """SOAP with KL-Shampoo's factors, whose inverses are of averaged eigenvalues that start at 0.1.

    As the authors' code has it; eigenvalues of the factors themselves are 0 while these lack rank.
    """

    defaults = {**SOAP.defaults, "kl": True}

    @staticmethod
    def accumulate(g: Array, s: State, h: Options, used: list[bool]) -> None:
        beta = h["shampoo_beta"] if h["shampoo_beta"] >= 0 else h["betas"][1]
        dims = [i for i, use in enumerate(used) if use]
        before = s.setdefault("eigenvalues", [np.full(n, 0.1) for n in g.shape])
        inverse = {
            j: (s["Q"][j] / (before[j] + h["eps"])) @ s["Q"][j].T if "Q" in s else np.eye(g.shape[j]) for j in dims
        }
        after = list(before)
        for i in dims:
            rows = np.moveaxis(g, i, 0).reshape(g.shape[i], -1)
            white = g
            for j in dims:
                if j != i:
                    white = np.moveaxis(np.tensordot(inverse[j], white, axes=(1, j)), 0, j)
            measured = rows @ np.moveaxis(white, i, 0).reshape(g.shape[i], -1).T * (g.shape[i] / g.size)
            s["GG"][i] = beta * s["GG"][i] + (1 - beta) * measured
            if "Q" in s:
                after[i] = beta * before[i] + (1 - beta) * np.diag(s["Q"][i].T @ measured @ s["Q"][i])
        s["eigenvalues"] = after

    @staticmethod
    def refresh(s: State) -> None:
        for i, (a, q) in enumerate(zip(s["GG"], s["Q"], strict=True)):
            if q is not None:
                s["eigenvalues"][i] = s["eigenvalues"][i][descending(np.diag(q.T @ a @ q))]
        SOAP.refresh(s)


class Shampoo(Named, ORACLES["Shampoo"]):
    """Blocks as the optimizer numbers them, and roots as rarely as by its default."""

    defaults = {**ORACLES["Shampoo"].defaults, "precondition_frequency": 50}

    def named(self, s: State) -> State:
        found: State = {}
        for b, block in enumerate(s["blocks"].values()):
            found.update({f"factor_{b}_{i}": x for i, x in enumerate(block["factors"])})
            found.update({f"root_{b}_{i}": x for i, x in enumerate(block.get("roots", ()))})
        return found


DTYPES = {"mu_dtype": None, "precond_dtype": None}


class Kron(Named, ORACLES["Kron"]):
    """Gets the random numbers, and rounds the state to what it is kept in."""

    defaults = {**ORACLES["Kron"].defaults, "seed": 1337, "deterministic": False, **DTYPES}

    def step(self, grads: Gradients, **extra: list[list[Any]]) -> None:
        extra |= {"probe": [], "balance": [], "decay_draw": []}
        for i, group in enumerate(self.groups):
            for rows in extra.values():
                rows.append([])
            for j, p in enumerate(group["params"]):
                t = self.state.get((i, j), {"step": 0})["step"] + 1
                probe = normal(torch.arange(p.size), group["seed"], t, p.size, _PROBE)
                extra["probe"][i].append(probe.numpy().reshape(p.shape))
                extra["balance"][i].append(_draw(group["seed"], t, _BALANCE) < 0.01)
                extra["decay_draw"][i].append(_draw(group["seed"], t, _DECAY))
        super().step(grads, **extra)

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        new = super().update(p, g, s, h, t)
        inner = self.inner[id(s)]
        inner["momentum_buffer"] = rounded(inner["momentum_buffer"], h["mu_dtype"])
        inner["Q"] = [rounded(q, h["precond_dtype"]) for q in inner["Q"]]
        s.update(self.named(inner))
        return new


def rounded(x: Array, dtype: str | None) -> Array:
    return x if dtype is None else torch.tensor(x).to(getattr(torch, dtype)).double().numpy()


ORACLES.update(Dion=Dion, SOAP=SOAP, KLSOAP=KLSOAP, Shampoo=Shampoo, Kron=Kron)
