"""Adahessian: Adam with the diagonal of the Hessian in place of the gradient's square."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Optimizer
from descend.engine.options import Common
from descend.engine.ranges import Betas, Count, Lr, NonNegative, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.randomness import rademacher
from descend.terms import ema, ema_sq


class Adahessian(Optimizer):
    """Adahessian, a second-order method; its backward pass needs ``create_graph=True``.

    ::

        D = mean over n_samples of z·∂(g·z)/∂p,  z uniform in {−1, 1}       (Hutchinson)
        m ← β₁m + (1−β₁)g
        v ← β₂v + (1−β₂)D²
        p ← p − lr·weight_decay·p − lr·m̂/(v̂^(hessian_power/2) + eps)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the two averages, each in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decoupled decay, in units of lr, ≥ 0.
        hessian_power: exponent of the curvature, ≥ 0.
        update_each: estimate D at every so many steps of a parameter, ≥ 1.
        n_samples: random vectors an estimate is averaged over, ≥ 1.
        avg_conv_kernel: average |D| over the kernel of four-dimensional weights.
        seed: of the random vectors; they depend on it, the step, the parameter and the element, and on nothing else.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        RuntimeError: at the step, if the gradients carry no graph.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adahessian(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(2)).square().sum().backward(create_graph=True)
        >>> optimizer.step()
        >>> optimizer.zero_grad()

    Reference:
        Yao et al., ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning, 2021, arXiv 2006.00719.
    """

    foreign_names: ClassVar[Mapping[str, str | None]] = {"hessian step": None}
    structural: ClassVar[frozenset[str]] = frozenset(("update_each", "n_samples", "seed"))
    refused: ClassVar[Mapping[str, str]] = {
        "capturable": "its step runs a backward pass",
        "maximize": "the curvature would change its sign",
    }

    def __init__(
        self,
        params: Any,
        lr: Lr = 0.1,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        hessian_power: NonNegative = 1.0,
        update_each: Count = 1,
        n_samples: Count = 1,
        avg_conv_kernel: bool = False,
        *,
        seed: int = 2147483647,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @property
    def is_second_order(self) -> bool:
        """True: training loops ask this to call ``backward(create_graph=True)``."""
        return True

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_hessian_diag_sq": positive(), "hessian": Slot("outside")}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta1, beta2 = h.betas
        return {"weight1": 1 - beta1, "weight2": 1 - beta2, "gain": 1 / (1 - beta1**t), "debias2": 1 / (1 - beta2**t)}

    @staticmethod
    def needs_whole(h: Any) -> str:
        return "the gradient cannot be differentiated again through FSDP2; use DistributedDataParallel, or another rule"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        ema(s.exp_avg, g, k.weight1)
        ema_sq(s.exp_hessian_diag_sq, s.hessian, k.weight2)
        return s.exp_avg / ((s.exp_hessian_diag_sq * k.debias2) ** (k.hessian_power / 2)).add_(k.eps)

    @classmethod
    def before_step(cls, jobs: Sequence[Any], groups: Sequence[dict[str, Any]]) -> None:
        """Estimate the curvature where it is due."""
        index = {p: i for i, p in enumerate(q for group in groups for q in group["params"])}
        due = [job for job in jobs if (job.known["t"] - 1) % job.group["update_each"] == 0]
        estimates = _estimates(due, [index[job.param] for job in due])
        for i, job in enumerate(due):
            if job.group["avg_conv_kernel"] and job.param.dim() == 4:
                estimates[i] = estimates[i].abs().mean(dim=(2, 3), keepdim=True).expand_as(estimates[i])
            if job.known["unscales"]:
                estimates[i] = estimates[i] * job.known["inverse_scale"]
        if due:
            torch._foreach_copy_([job.state["hessian"] for job in due], estimates)


def _estimates(jobs: Sequence[Any], places: Sequence[int]) -> list[Tensor]:
    """Hutchinson's estimate of the Hessian's diagonal for each parameter; places are those among all parameters."""
    if not jobs:
        return []
    grads, params = [job.grad for job in jobs], [job.param for job in jobs]
    if not all(g.requires_grad for g in grads):
        raise RuntimeError("Adahessian: gradients carry no graph; call loss.backward(create_graph=True) before step()")
    totals: list[Tensor] = []
    samples = max(job.group["n_samples"] for job in jobs)
    for sample in range(samples):
        active = [i for i, job in enumerate(jobs) if sample < job.group["n_samples"]]
        probes = _probes([jobs[i] for i in active], [places[i] for i in active], sample)
        with torch.enable_grad():
            products = torch.autograd.grad(
                [grads[i] for i in active],
                [params[i] for i in active],
                grad_outputs=probes,
                retain_graph=sample + 1 < samples,
                materialize_grads=True,
            )
        found = torch._foreach_mul(probes, [product.detach() for product in products])
        torch._foreach_div_(found, [float(jobs[i].group["n_samples"]) for i in active])
        if sample:
            torch._foreach_add_([totals[i] for i in active], found)
        else:
            totals = [*found]
    return totals


def _probes(jobs: Sequence[Any], places: Sequence[int], sample: int) -> list[Tensor]:
    """Random signs for each parameter."""
    kinds: dict[Any, list[int]] = {}
    for i, job in enumerate(jobs):
        kinds.setdefault((job.param.dtype, job.param.device), []).append(i)
    made: dict[int, Tensor] = {}
    for members in kinds.values():
        keys = [(jobs[i].group["seed"], int(jobs[i].known["t"]), places[i], sample) for i in members]
        made |= zip(members, rademacher([jobs[i].param for i in members], keys), strict=True)
    return [made[i] for i in range(len(jobs))]
