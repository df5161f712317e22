"""Prodigy: Adam that estimates its own learning rate, the distance to the solution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer, Reach
from descend.engine.options import Common
from descend.engine.ranges import ActsWith, Beta, Betas, Count, Lr, NonNegative, Positive, Range, WeightDecay, own
from descend.engine.rule import Totals
from descend.engine.slots import Slot, position, positive, signed
from descend.terms import accumulate, add_product, assign, choose, either, least, most

# The distance d, the largest estimate of it, the numerator r and the number of steps, as every group keeps them.
_ESTIMATE = ("d", "d_max", "d_numerator", "k")


class Prodigy(Optimizer):
    """Prodigy, which multiplies lr by an estimate d of the distance from the start x₀ to the solution.

    ::

        r ← β₃r + Σ (d/d0)·d·lr·⟨g, x₀ − p⟩            sums over all parameters
        s ← β₃s + (d/d0)·d·lr·g
        d̂ = d_coef·r/Σ‖s‖₁
        m ← β₁m + (1−β₁)·d·g
        v ← β₂v + (1−β₂)·d²g²
        d' = min(largest d̂ so far, growth_rate·d)      growth_rate acts after the first d̂ > d0
        p ← p − d·lr·weight_decay·p − d·lr·m/(√v + d'·eps)

    The estimate is in every parameter group, as ``d``; the step is ``d·lr``. Where lr is 0, nothing changes.

    Args:
        params: parameters or groups of parameters.
        lr: factor on the estimate, ≥ 0; schedules go here.
        betas: decay rates of m and v, each in [0, 1).
        beta3: decay rate of r and s, in [0, 1); None: √β₂.
        eps: added to the denominator, in units of d, ≥ 0.
        weight_decay: decay, ≥ 0; in units of d·lr with ``decouple``.
        decouple: decay the parameter; else weight_decay·p is added to the gradient.
        use_bias_correction: multiply lr by √(1−β₂ᵗ)/(1−β₁ᵗ) in the optimizer's step t.
        safeguard_warmup: leave lr out of s, so that a warm-up of lr does not inflate d.
        d0: first estimate, > 0.
        d_coef: factor on the estimates, > 0.
        growth_rate: the factor that d may grow by in a step, ≥ 1.
        slice_p: take only every so many elements of a parameter into the estimate, ≥ 1; saves memory.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Prodigy(layer.parameters())
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["d"]
        1e-06

    Reference:
        Mishchenko, Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2024, arXiv 2306.06101. The
        authors' code accepts one lr; here every group has its own, which weighs it in the sums.
    """

    reach: ClassVar[Reach] = "tensor"
    structural: ClassVar[frozenset[str]] = frozenset(("slice_p",))
    waits_for_all: ClassVar[str] = (
        "its learning rate is found from them together, so use an optimizer with an lr of its own"
    )
    refused: ClassVar[Mapping[str, str]] = {"hyperball": "its learning rate is a distance, not an angle"}

    def __init__(
        self,
        params: Any,
        lr: Lr = 1.0,
        betas: Betas = (0.9, 0.999),
        beta3: Beta | None = None,
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        decouple: Annotated[bool, ActsWith("weight_decay")] = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: Positive = 1e-6,
        d_coef: Positive = 1.0,
        growth_rate: Annotated[float, Range(ge=1, le=math.inf)] = math.inf,
        *,
        slice_p: Count = 1,
        **common: Unpack[Common],
    ) -> None:
        mine = own(locals())
        others: dict[str, Any] = dict(common)
        # Kept in the groups, as the authors do: the estimate is what people log, and part of every checkpoint.
        start = {name: others.pop(name, value) for name, value in zip(_ESTIMATE, (d0, d0, 0.0, 0.0), strict=True)}
        super().__init__(params, {**mine, **start}, **others)

    @staticmethod
    def check(h: Any) -> None:
        for name in _ESTIMATE:
            if not isinstance(getattr(h, name), (int, float, Tensor)):
                raise ValueError(f"{name}={getattr(h, name)!r}, expected a number")
        if h.slice_p > 1 and h.fused:
            raise ValueError(f"slice_p={h.slice_p} with fused=True, expected slice_p=1: kernels take whole tensors")

    @staticmethod
    def needs_whole(h: Any) -> str:
        return "" if h.slice_p == 1 else f"slice_p={h.slice_p} takes elements of the whole; use slice_p=1"

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        moments = {"exp_avg": signed(), "exp_avg_sq": positive()}
        if h.slice_p == 1:
            return {**moments, "p0": position(), "s": signed(least_bits=8)}
        reals, dtype = (2 * p.numel(), p.dtype.to_real()) if p.is_complex() else (p.numel(), None)
        shape = (-(-reals // h.slice_p), 1)
        return {**moments, "p0": Slot("position", shape=shape, dtype=dtype), "s": Slot(shape=shape, dtype=dtype)}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2 = h.betas
        rate = h.d * h.lr
        if h.use_bias_correction:
            rate = rate * (1 - beta2 ** (h.k + 1)) ** 0.5 / (1 - beta1 ** (h.k + 1))
        amount = rate * h.weight_decay * (h.lr / h.max_lr_snapshot if h.corrected_weight_decay else 1.0)
        acts = choose(h.lr > 0, 1.0, 0.0)
        kept1, kept2, kept_s = (choose(h.lr > 0, beta, 1.0) for beta in (beta1, beta2, _memory(h)))
        return {
            "counts": acts,
            "kept1": kept1,
            "kept2": kept2,
            "kept_s": kept_s,
            "weight1": acts * h.d * (1 - beta1),
            "weight2": acts * h.d * h.d * (1 - beta2),
            "weight_r": h.d / h.d0 * rate,
            "weight_s": acts * h.d / h.d0 * (h.d if h.safeguard_warmup else rate),
            "memory": _memory(h),
            "first": choose(t == 1, 1.0, 0.0),
            "step_size": rate,
            "decay_amount": amount,
        }

    @staticmethod
    def decay(h: Any) -> Decay:
        return "decoupled" if h.decouple else "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        some_p, some_g = (p, g) if k.slice_p == 1 else (_every(k.slice_p, p), _every(k.slice_p, g))
        if k.slice_p > 1:
            assign(s.p0, either(k.first, some_p, s.p0))
        accumulate(s.s, k.kept_s, some_g, k.weight_s)
        pairing, size = k.overall_sums((s.p0 - some_p) * some_g * k.weight_r, torch.abs(s.s) * k.counts)
        accumulate(s.exp_avg, k.kept1, g, k.weight1)
        add_product(s.exp_avg_sq.mul_(k.kept2), g, g, k.weight2)
        d = _estimate(k, k.memory, pairing, size)["d"].to(size.dtype)
        return s.exp_avg / (torch.sqrt(s.exp_avg_sq) + d * k.eps)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with the estimate of the others."""
        super().add_param_group(param_group)
        first = {name: self.param_groups[0][name] for name in _ESTIMATE}
        own = {name: value.clone() if isinstance(value, Tensor) else value for name, value in first.items()}
        self.param_groups[-1].update(own)

    @classmethod
    def after_step(cls, groups: Sequence[dict[str, Any]], totals: Totals, found_inf: Tensor | None) -> None:
        for pairing, size, *_ in totals:  # a process without gradients hears of more sums than there are
            read = None  # by the host, once for all groups
            for group in groups:
                if group["capturable"]:
                    _keep(group, pairing, size, found_inf)
                    continue
                read = read or torch.stack([pairing, size]).tolist()
                h = SimpleNamespace(**group)
                group.update(_estimate(h, _memory(h), *read))


def _memory(h: Any) -> Any:
    """β₃."""
    return h.betas[1] ** 0.5 if h.beta3 is None else h.beta3


def _estimate(k: Any, memory: Any, pairing: Any, size: Any) -> dict[str, Any]:
    """What follows from this step's sums, in the groups' names; a size of 0 tells nothing."""
    numerator = choose(size > 0, memory * k.d_numerator + pairing, k.d_numerator)
    estimate = choose(size > 0, k.d_coef * numerator / choose(size > 0, size, 1.0), k.d)
    d = choose(k.d <= k.d0, most(k.d, estimate), k.d)
    d_max = most(k.d_max, estimate)
    count = choose(size > 0, k.k + 1, k.k)
    return {"d": least(d_max, d * k.growth_rate), "d_max": d_max, "d_numerator": numerator, "k": count}


def _keep(group: dict[str, Any], pairing: Tensor, size: Tensor, skipped: Tensor | None) -> None:
    """Write the estimate of this step into the group in place, on the device, as ``capturable`` has it."""
    h = SimpleNamespace(**group)
    for name, value in _estimate(h, _memory(h), pairing, size).items():
        before = torch.as_tensor(group[name], dtype=torch.float64, device=pairing.device)
        group[name] = before.copy_(value if skipped is None else torch.where(skipped > 0, before, value))


def _every(n: int, x: Tensor) -> Tensor:
    """Every n-th element, as a column."""
    return x.reshape(-1).unfold(0, 1, n)
