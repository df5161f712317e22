"""The older rules of torch.optim: Adagrad, Adadelta, Adamax, ASGD, Rprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import COUPLED_DECAY, OWN_STEP, Common, if_averaged
from descend.engine.ranges import ActsWith, Betas, Fraction, Lr, Needs, NonNegative, Range, WeightDecay, own
from descend.engine.slots import Slot, positive, signed
from descend.engine.update import shape_direction
from descend.terms import Quotient, add_product, add_scaled, assign, choose, ema, ema_sq, most, running_max, scale


class Adagrad(Optimizer):
    """Adagrad, which divides by the root of the sum of all squared gradients.

    ::

        g ← g + weight_decay·p
        S ← S + g²
        p ← p − lr/(1 + (t−1)·lr_decay)·g/(√S + eps)

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        lr_decay: how fast lr falls with the steps, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        initial_accumulator_value: what S starts from, ≥ 0.
        eps: added to the denominator, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adagrad(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Duchi, Hazan, Singer, Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, JMLR 2011.
    """

    acts_with: ClassVar = if_averaged()
    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        lr_decay: NonNegative = 0,
        weight_decay: WeightDecay = 0,
        initial_accumulator_value: NonNegative = 0,
        eps: NonNegative = 1e-10,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"sum": positive(float(h.initial_accumulator_value))}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"gain": 1 / (1 + (t - 1) * h.lr_decay)}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        add_product(s.sum, g, g, 1.0)
        return Quotient(g, torch.sqrt(s.sum).add_(k.eps))


class Adadelta(Optimizer):
    """Adadelta, whose rate is the ratio of two running root mean squares.

    ::

        g ← g + weight_decay·p
        v ← rho·v + (1−rho)g²
        d = g·√(u + eps)/√(v + eps)
        u ← rho·u + (1−rho)d²
        p ← p − lr·d

    Args:
        params: parameters or groups of parameters.
        lr: factor on the step, ≥ 0.
        rho: decay rate of the averages, in [0, 1].
        eps: added under the roots, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adadelta(layer.parameters())
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012, arXiv 1212.5701.
    """

    acts_with: ClassVar = if_averaged()
    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 1.0,
        rho: Fraction = 0.9,
        eps: NonNegative = 1e-6,
        weight_decay: WeightDecay = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"square_avg": positive(), "acc_delta": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"weight": 1 - h.rho}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        ema_sq(s.square_avg, g, k.weight)
        d = torch.sqrt(s.acc_delta + k.eps) / torch.sqrt(s.square_avg + k.eps) * g
        ema_sq(s.acc_delta, d, k.weight)
        return d


class Adamax(Optimizer):
    """Adamax, Adam with the infinity norm.

    ::

        g ← g + weight_decay·p
        m ← β₁m + (1−β₁)g
        u ← max(β₂u, |g| + eps)
        p ← p − lr/(1−β₁ᵗ)·m/u

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: decay rates of the average and of the maximum, each in [0, 1).
        eps: added to |g|, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Adamax(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Kingma, Ba, Adam: A Method for Stochastic Optimization, 2015, arXiv 1412.6980, section 7.
    """

    refused: ClassVar[Mapping[str, str]] = COUPLED_DECAY

    def __init__(
        self,
        params: Any,
        lr: Lr = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"exp_avg": signed(), "exp_inf": positive()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return {"weight1": 1 - h.betas[0], "gain": 1 / (1 - h.betas[0] ** t)}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Quotient:
        ema(s.exp_avg, g, k.weight1)
        running_max(s.exp_inf.mul_(k.beta2), torch.abs(g).add_(k.eps))
        return Quotient(s.exp_avg, s.exp_inf)


class ASGD(Optimizer):
    """Averaged SGD with torch's decreasing rate; the average is the state ``ax``.

    ::

        g ← g + weight_decay·p
        p ← p − lambd·η·p − η·g
        ax ← ax + μ(p − ax)
        η ← lr/(1 + lambd·lr·t)^alpha,  μ ← 1/max(1, t − t0)        for the next step; at first η = lr, μ = 1

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        lambd: decay of the parameters and of the rate, ≥ 0.
        alpha: power of the rate's decay, in [0, 1].
        t0: step at which averaging starts, ≥ 0.
        weight_decay: coupled (L2) decay, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = ASGD(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging, SIAM J. Control Optim. 1992.
    """

    acts_with: ClassVar = if_averaged()
    refused: ClassVar[Mapping[str, str]] = {**COUPLED_DECAY, **OWN_STEP}

    carried: ClassVar[Mapping[str, float]] = {"eta": 0.0, "mu": 1.0}

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        lambd: NonNegative = 1e-4,
        alpha: Fraction = 0.75,
        t0: NonNegative = 1e6,
        weight_decay: WeightDecay = 0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"ax": Slot("position")}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        eta, mu = choose(t == 1, h.lr, c.eta), c.mu
        c.eta = h.lr / (1 + h.lambd * h.lr * t) ** h.alpha
        c.mu = 1 / most(t - h.t0, 1.0)
        return {"shrink": 1 - h.lambd * eta, "eta_now": eta, "mu_now": mu}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "coupled"

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        # A door of its own: the average takes the parameter in after its step.
        d = shape_direction(g, g, k)
        add_scaled(scale(p, k.shrink), d, -k.eta_now)
        ema(s.ax, p, k.mu_now)


class Rprop(Optimizer):
    """Resilient backpropagation: every element has a step size that grows while the gradient keeps its sign.

    ::

        η ← clamp(η·etas[1]) where g·g' > 0, clamp(η·etas[0]) and g ← 0 where g·g' < 0
        p ← p − sign(g)·η
        g' ← g

    Args:
        params: parameters or groups of parameters.
        lr: the step size at the start, ≥ 0.
        etas: factors on it after a change of sign and after none.
        step_sizes: its least and its largest value.
        **common: see :class:`~descend.engine.options.Common`.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Rprop(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Riedmiller, Braun, A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm, 1993.
    """

    acts_with: ClassVar = {
        "grams": (ActsWith(why="the step has the gradient's sign anyway"),),
        "adaptive_grad_clip": (Needs(why="it reads the sign of the gradient, not its size"),),
    }
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(COUPLED_DECAY, "it has no weight decay")

    def __init__(
        self,
        params: Any,
        lr: Lr = 1e-2,
        etas: tuple[Annotated[float, Range(gt=0, lt=1)], Annotated[float, Range(gt=1)]] = (0.5, 1.2),
        step_sizes: tuple[NonNegative, NonNegative] = (1e-6, 50),
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"prev": signed(), "step_size": positive(float(h.lr))}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        (shrink, grow), (least, largest) = h.etas, h.step_sizes
        grown = {"grow_more": float(grow - 1), "shrink_less": float(1 - shrink)}
        return {**grown, "least": float(least), "largest": float(largest), "step_size": 1.0}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "none"

    @staticmethod
    def check(h: Any) -> None:
        least, largest = h.step_sizes
        if least > largest:
            raise ValueError(f"step_sizes={h.step_sizes!r}, expected the least size first")

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        agreement = torch.sign(g * s.prev)
        grown = agreement.clamp_min(0.0) * k.grow_more + agreement.clamp_max(0.0) * k.shrink_less + 1
        s.step_size.mul_(grown).clamp_(k.least, k.largest)
        kept = g * (agreement.clamp_max(0.0) + 1)
        assign(s.prev, kept)
        return torch.sign(kept) * s.step_size
