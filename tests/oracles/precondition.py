"""Kronecker-factored preconditioners: Shampoo, SOAP and PSGD Kron."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, ClassVar

import numpy as np

from .base import Array, Options, Oracle, State, decay_rate, ema, norm


def along(q: Array | None, x: Array, i: int) -> Array:
    """q applied to x's dimension i: a matrix multiplies it, a vector scales it, None leaves it."""
    if q is None:
        return x
    if q.ndim < 2:
        return x * q.reshape([-1 if j == i else 1 for j in range(x.ndim)])
    return np.moveaxis(np.tensordot(q, x, axes=(1, i)), 0, i)


def gram(x: Array, y: Array, i: int) -> Array:
    """x y^T with dimension i as rows and all others contracted."""
    return np.moveaxis(x, i, 0).reshape(x.shape[i], -1) @ np.moveaxis(y, i, 0).reshape(x.shape[i], -1).T


class Shampoo(Oracle):
    """Shampoo (arXiv 1802.09568), blocked and grafted as Distributed Shampoo (arXiv 2309.06497).

    The roots, -1 / (2 order) of debiased averages damped by eps, are taken every precondition_frequency steps from
    start_preconditioning_step (-1: the first such) on, the grafted Adam acting before; each block gets Adam's norm.
    Ours: lr 1e-3, betas (0.9, 0.999), frequency 10 and Adam grafting; its authors': blocks of 1024, eps 1e-12.
    """

    defaults: ClassVar[Options] = dict(
        lr=1e-3, betas=(0.9, 0.999), eps=1e-12, weight_decay=0.0, max_preconditioner_dim=1024,
        precondition_frequency=10, start_preconditioning_step=-1, grafting="adam", grafting_beta2=0.999,
        grafting_eps=1e-8,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        size = h["max_preconditioner_dim"]
        cuts = [[slice(a, a + size) for a in range(0, n, size)] for n in p.shape]
        blocks = s.setdefault("blocks", {})
        u = np.empty_like(g)
        for index in product(*cuts):
            where = tuple((part.start, part.stop) for part in index)
            u[index] = self.block(np.asarray(g[index]), blocks.setdefault(where, {}), h, t)
        return p * (1 - decay_rate(h)) - h["lr"] * u

    @staticmethod
    def block(g: Array, s: State, h: Options, t: int) -> Array:
        """The direction of one block."""
        b1, b2 = h["betas"]
        every, start = h["precondition_frequency"], h["start_preconditioning_step"]
        start = every if start == -1 else start
        factors = s.setdefault("factors", [0.0] * g.ndim)
        for i in range(g.ndim):
            factors[i] = b2 * factors[i] + (1 - b2 if b2 < 1 else 1.0) * gram(g, g, i)
        if t == start or (t > start and t % every == 0):
            bc2 = 1 - b2**t if b2 < 1 else 1.0
            s["roots"] = [inverse_root(factor / bc2, 2 * g.ndim, h["eps"]) for factor in factors]
        s["exp_avg"] = ema(s.get("exp_avg", 0.0), g, b1)
        m = s["exp_avg"] / (1 - b1**t)
        v = s["exp_avg_sq"] = ema(s.get("exp_avg_sq", 0.0), g * g, h["grafting_beta2"])
        adam = m / (np.sqrt(v / (1 - h["grafting_beta2"] ** t)) + h["grafting_eps"])
        if g.ndim == 0 or (t < start and h["grafting"] is not None):
            return np.asarray(adam)
        u = m
        for i, root in enumerate(s.get("roots", [None] * g.ndim)):
            u = along(root, u, i)
        return u if h["grafting"] is None else u * norm(adam) / (norm(u) + 1e-16)


def inverse_root(a: Array, root: int, eps: float) -> Array:
    """(a + eps)^(-1/root) of a positive semi-definite matrix, its rounding below zero cut off."""
    values, vectors = np.linalg.eigh(a)
    return np.asarray((vectors * (np.maximum(values, 0) + eps) ** (-1 / root)) @ vectors.T)


class SOAP(Oracle):
    """SOAP (arXiv 2409.11321): Adam in Shampoo's eigenbasis; the first step only measures; decay after the step.

    Defaults of its authors: lr 3e-3, betas (0.95, 0.95), a refresh every 10 steps, decay 0.01. kl=True takes
    KL-Shampoo's factors (arXiv 2509.03378).

    The paper leaves three things to rounding. The basis of an eigenspace of equal eigenvalues is here the projection
    of fixed vectors, which `frame` gives for a size; or `basis` gives step 1 the list of bases of each parameter, None
    where a dimension has none. A column that depends on those before it in the power iteration keeps the old vector.
    A row or a column of a rotated gradient that is rounding is 0.
    """

    defaults: ClassVar[Options] = dict(
        lr=3e-3, betas=(0.95, 0.95), shampoo_beta=-1.0, eps=1e-8, weight_decay=0.01, precondition_frequency=10,
        max_precond_dim=10000, precondition_1d=False, normalize_grads=False, correct_bias=True, kl=False,
    )  # fmt: skip

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        b1, b2 = h["betas"]
        used = [n <= h["max_precond_dim"] and (g.ndim > 1 or h["precondition_1d"]) for n in g.shape]
        if t == 1:
            s["exp_avg"], s["exp_avg_sq"], s["GG"] = 0 * g, 0 * g, [0.0] * g.ndim
            self.accumulate(g, s, h, used)
            bases = h.get("basis") or [
                eigenbasis(a, h["frame"](len(a))) if use else None for a, use in zip(s["GG"], used, strict=True)
            ]
            s["Q"] = [None if q is None else np.asarray(q, np.float64) for q in bases]
            return p
        t -= 1
        c = rotate(g, s["Q"])
        m = s["exp_avg"] = ema(s["exp_avg"], c, b1)
        v = s["exp_avg_sq"] = ema(s["exp_avg_sq"], c * c, b2)
        lr = h["lr"] * (np.sqrt(1 - b2**t) / (1 - b1**t) if h["correct_bias"] else 1.0)
        u = rotate(m / (np.sqrt(v) + h["eps"]), s["Q"], back=True)
        if h["normalize_grads"]:
            u = u / (1e-30 + np.sqrt(np.mean(u * u)))
        p = (p - lr * u) * (1 - h["lr"] * h["weight_decay"])
        m = rotate(m, s["Q"], back=True)
        self.accumulate(g, s, h, used)
        if t % h["precondition_frequency"] == 0:
            self.refresh(s)
        s["exp_avg"] = rotate(m, s["Q"])
        return p

    @staticmethod
    def accumulate(g: Array, s: State, h: Options, used: list[bool]) -> None:
        """L and R; KL-Shampoo whitens the contracted dimensions by the other factors, and divides by their size."""
        beta = h["shampoo_beta"] if h["shampoo_beta"] >= 0 else h["betas"][1]
        old = list(s["GG"])
        for i in (i for i, use in enumerate(used) if use):
            outer, size = g, 1
            if h["kl"]:
                size = g.size // g.shape[i]
                for j, q in enumerate(s.get("Q", [None] * g.ndim)):
                    if j != i and q is not None:
                        outer = along((q / (np.diag(q.T @ old[j] @ q) + h["eps"])) @ q.T, outer, j)
            s["GG"][i] = ema(old[i], gram(outer, g, i) / size, beta)

    @staticmethod
    def refresh(s: State) -> None:
        """One power iteration on each basis, sorted by estimated eigenvalue; the second moment is sorted along."""
        for i, (a, q) in enumerate(zip(s["GG"], s["Q"], strict=True)):
            if q is not None:
                order = descending(np.diag(q.T @ a @ q))
                s["exp_avg_sq"] = np.take(s["exp_avg_sq"], order, axis=i)
                s["Q"][i] = power_step(a, q[:, order])


def rotate(x: Array, bases: list[Array | None], back: bool = False) -> Array:
    """x in the eigenbases, without what is rounding there, or back from them."""
    for i, q in enumerate(bases):
        if q is not None:
            x = along(q if back else q.T, x, i)
    for i, q in enumerate(bases):
        if q is not None and not back:
            rows = np.moveaxis(np.array(x), i, 0)
            for row in range(len(rows)):
                if norm(rows[row]) < rounding(len(rows)) * norm(rows):
                    rows[row] = 0
            x = np.moveaxis(rows, 0, i)
    return x


def rounding(n: int) -> float:
    """The share of a sum of n products that counts as rounding: of float64, the last six bits do."""
    return float(2 * np.sqrt(n) * 64 * np.finfo(np.float64).eps)


def levels(values: Array) -> list[list[int]]:
    """The places of numbers from the largest down, together where nothing but rounding lies between neighbours."""
    found: list[list[int]] = []
    order = np.argsort(-values, kind="stable")
    for before, i in zip([None, *order], order, strict=False):
        if before is None or values[before] - values[i] > rounding(len(values)) * abs(values[order[0]]):
            found.append([])
        found[-1].append(int(i))
    return found


def descending(values: Array) -> Array:
    """The order from the largest down, in which what is rounding stays as it is."""
    return np.argsort(-np.where(values > rounding(len(values)) * values.max(), values, 0.0), kind="stable")


def gram_schmidt(x: Array) -> tuple[Array, Array]:
    """The columns made orthonormal from the left, and what R holds: lengths as the diagonal, overlaps beside it."""
    q, r = np.linalg.qr(x)
    signs = np.where(np.diag(r) < 0, -1.0, 1.0)
    return q * signs, (r.T * signs).T


def eigenbasis(a: Array, frame: Array) -> Array:
    """Eigenvectors, the largest eigenvalues first; in each eigenspace by projecting the vectors of these places."""
    values, vectors = np.linalg.eigh(a)
    if not values[-1] > 0:
        return np.eye(len(a))
    parts, done = [], 0
    for level in levels(values):
        space = vectors[:, level]
        projected = space @ (space.T @ frame[:, done : done + len(level)])
        parts.append(gram_schmidt(projected)[0])
        done += len(level)
    return np.concatenate(parts, axis=1)


def power_step(a: Array, q: Array) -> Array:
    """One power iteration, in which a column stays what it was if its length is an error of those before it."""
    powered = a @ q
    made, r = gram_schmidt(powered)
    lengths = np.diag(r)
    stays = []
    for j, length in enumerate(lengths):
        error = np.sqrt(1 + sum((r[i, j] / lengths[i]) ** 2 for i in range(j) if lengths[i] > 0))
        stays.append(length <= error * rounding(len(q)) * lengths.max())
    return gram_schmidt(np.where(stays, q, powered))[0] if any(stays) else made


class Kron(Oracle):
    """PSGD Kron (arXiv 2402.04553) as in timm, in float64.

    Step takes `probe` (a normal sample like the gradient) and may take `balance` (whether this step balances the
    factors) and `decay_draw` (uniform in [0, 1), for stochastic_weight_decay).
    """

    defaults: ClassVar[Options] = dict(
        lr=1e-3, momentum=0.9, weight_decay=0.0, preconditioner_update_probability=None, max_size_triangular=2048,
        min_ndim_triangular=2, memory_save_mode=None, momentum_into_precond_update=True, precond_lr=0.1,
        precond_init_scale=1.0, decoupled_decay=False, corrected_weight_decay=False, flatten=False,
        flatten_start_dim=2, flatten_end_dim=-1, stochastic_weight_decay=False,
    )  # fmt: skip
    tiny: ClassVar[float] = 2.0**-126

    def update(self, p: Array, g: Array, s: State, h: Options, t: int) -> Array:
        g = g.reshape(self.shape(g.shape, h))
        if "Q" not in s:
            s["Q"] = self.identity(g.shape, h)
        beta = h["momentum"]
        b = s["momentum_buffer"] = ema(s.get("momentum_buffer", 0.0), g, beta)
        m = b / (1 - beta**t)
        s["update_counter"] = s.get("update_counter", 0) + 1
        if s["update_counter"] >= 1 / self.probability(h, t - 1):
            s["update_counter"] = 0
            if g.ndim > 1 and h.get("balance", False):
                sizes = np.array([np.max(np.abs(q)) for q in s["Q"]])
                s["Q"] = [q * r for q, r in zip(s["Q"], np.prod(sizes) ** (1 / g.ndim) / sizes, strict=True)]
            s["Q"] = self.fit(s["Q"], m if h["momentum_into_precond_update"] else g, h)
        u = m
        for i, q in enumerate(s["Q"]):
            u = along(q * q if q.ndim < 2 else q.T @ q, u, i)
        u = u * min(1.0, 1.1 / (np.sqrt(np.mean(u * u)) + 1e-8))
        u = u.reshape(p.shape)
        wd = 2 * h.get("decay_draw", 0.5) if h["stochastic_weight_decay"] else 1.0
        if h["decoupled_decay"]:
            p = p * (1 - wd * decay_rate(h))
        else:
            u = u + wd * h["weight_decay"] * p
        return p - h["lr"] * u

    def fit(self, factors: list[Array], g: Array, h: Options) -> list[Array]:
        """One step of each factor Q towards A A^T = B B^T, with A = Q g and B = Q^-T probe."""
        a, b = g, np.asarray(h["probe"], np.float64).reshape(g.shape)
        for i, q in enumerate(factors):
            a, b = along(q, a, i), along(1 / q if q.ndim < 2 else np.linalg.inv(q).T, b, i)
        fitted = []
        for i, q in enumerate(factors):
            first, second = (gram(x, x, i) if g.ndim else x * x for x in (a, b))
            if q.ndim < 2:
                first, second = (np.diag(x) if g.ndim else x for x in (first, second))
                change = (first - second) * q / (np.max(np.abs(first + second)) + self.tiny)
            else:
                change = np.triu(first - second) / (spectral_bound(first + second) + self.tiny) @ q
            fitted.append(q - h["precond_lr"] * change)
        return fitted

    @staticmethod
    def probability(h: Options, t: int) -> float:
        """How often the factors are fitted: always for 500 steps, then decaying to 0.03."""
        given = h["preconditioner_update_probability"]
        if given is None:
            return float(np.clip(np.exp(-0.001 * (t - 500.0)), 0.03, 1.0))
        return float(given(t) if callable(given) else given)

    @staticmethod
    def shape(shape: tuple[int, ...], h: Options) -> tuple[int, ...]:
        """The shape in which a parameter is preconditioned."""
        start, end = h["flatten_start_dim"], h["flatten_end_dim"]
        end = min(end if end >= 0 else len(shape) + end, len(shape) - 1)
        if not h["flatten"] or len(shape) <= start or start > end:
            return shape
        return (*shape[:start], prod(shape[start : end + 1]), *shape[end + 1 :])

    @staticmethod
    def identity(shape: tuple[int, ...], h: Options) -> list[Array]:
        """The first factors: triangular, or diagonal where a dimension is 1, too large or chosen to save memory."""
        if not shape:
            return [np.asarray(h["precond_init_scale"], np.float64)]
        mode, order = h["memory_save_mode"], np.argsort(shape)
        diagonal: Any = np.full(len(shape), mode == "all_diag")
        ordered = sorted(shape)
        if mode == "one_diag" or (mode == "smart_one_diag" and len(shape) > 1 and ordered[-1] > ordered[-2]):
            diagonal[order[-1]] = True
        scale = h["precond_init_scale"] ** (1 / len(shape))
        vector = [
            only or n == 1 or n > h["max_size_triangular"] or len(shape) < h["min_ndim_triangular"]
            for n, only in zip(shape, diagonal, strict=True)
        ]
        return [scale * (np.ones(n) if flat else np.eye(n)) for n, flat in zip(shape, vector, strict=True)]


def spectral_bound(a: Array) -> float:
    """PSGD's cheap lower bound of the spectral norm: one power step from the longest row or column."""
    top = float(np.max(np.abs(a)))
    if top == 0:
        return top
    a = a / top
    columns, rows = np.sum(a * a, axis=0), np.sum(a * a, axis=1)
    if columns.max() > rows.max():
        x = a[:, columns.argmax()] @ a
        return top * norm(x / norm(x) @ a.T)
    x = a @ a[rows.argmax()]
    return top * norm(a.T @ (x / norm(x)))
