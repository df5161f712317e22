"""Schedule-free learning: the average of the iterates in place of a learning rate that falls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from descend.engine.context import Known, State
from descend.engine.master_weights import parts, read, write
from descend.engine.optimizer import Decay, Optimizer
from descend.engine.options import Common, if_averaged
from descend.engine.ranges import Beta, Lr, NonNegative, Range, WeightDecay, own
from descend.engine.slots import Slot, position, positive
from descend.engine.unwrapped import unwrapped
from descend.engine.update import shape_direction
from descend.terms import add_scaled, choose, either, ema, ema_sq, least, most, plus, rectify, root


class TwoPoints(Optimizer):
    """The switch between two points: y, where gradients are taken, and x, the average, which is evaluated and saved.

    Groups with ``train_mode`` have two; others have one, and stay.
    """

    def train(self) -> None:
        """Put y, where gradients are taken, into the parameters: before training starts again. Harmless twice."""
        self._switch(True)

    def eval(self) -> None:
        """Put x, the average, into the parameters: before an evaluation, and before saving. Harmless twice.

        The running statistics of BatchNorm belong to y. With such layers, after ``optimizer.eval()`` send some dozen
        training batches through the model in its training mode, without gradients, before evaluating it.
        """
        self._switch(False)

    @unwrapped
    @contextmanager
    def averaged(self) -> Iterator[None]:
        """x in the parameters for the length of a block, and then every bit as before, in either mode.

        What is saved without it, and without :meth:`eval`, is y::

            with optimizer.averaged():
                torch.save(model.state_dict(), path)

        It takes the memory of a second copy of the parameters. Steps inside the block raise, as after :meth:`eval`.
        """
        training = [group for group in self.param_groups if group.get("train_mode")]
        tensors = [(p, t) for group in training for p in group["params"] for t in parts(self, group, p)]
        before = [t.clone() for _, t in tensors]
        self.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for (_, t), value in zip(tensors, before, strict=True):
                    t.copy_(value)
            for group in training:
                group["train_mode"] = True

    @unwrapped
    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        for group in self.param_groups:
            if group.get("train_mode", train) == train:
                continue
            for p in group["params"]:
                state = self.state.get(p, {})
                z = state.get("z")
                if z is not None:
                    beta = float(state.get("y_beta", 0.0)) or float(_beta(SimpleNamespace(**group)))
                    towards_z = 1 - beta if train else 1 - 1 / beta
                    write(self, group, p, read(self, group, p).lerp(z.to(p.device), towards_z))
            group["train_mode"] = train


#: The weight of x in y.
Recovering = Annotated[float, Range(gt=0, lt=1, why="the average is recovered by it")]


class ScheduleFree(TwoPoints):
    """What the schedule-free optimizers share: three points in place of one, and the switch between two of them.

    ::

        y = (1−β)z + βx              where gradients are taken: the parameter in training
        z ← z − lrₜ·(u + weight_decay·y)
        x ← (1−cₜ)x + cₜz            what is evaluated and saved: the parameter after eval()

    with the direction u at y, cₜ = wₜ/Σw and wₜ = tʳ·(largest lrₜ so far)^weight_lr_power. Only z, and y or x, are
    stored, and the β that y was made with: β may change from step to step and does not move x. A fresh optimizer is in
    training mode.
    """

    acts_with: ClassVar = if_averaged()
    #: ``y_beta`` is 0 where it is not known which β y was made with: at first, where y is x, and in older checkpoints.
    carried: ClassVar[Mapping[str, float]] = {"weight_sum": 0.0, "lr_max": 0.0, "y_beta": 0.0}
    refused: ClassVar[Mapping[str, str]] = {"hyperball": "averages of points on a sphere lie inside it"}

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"z": position(), "exp_avg_sq": positive()}

    @staticmethod
    def decay(h: Any) -> Decay:
        return "own"

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        # A door of its own: two points move, y by way of z.
        d: Any = cls.direction(p, g, s, k)
        u = shape_direction(d, g, k)
        decayed = p + p * torch.sign(p * u).clamp_max(0.0) if k.cautious_weight_decay else p
        u = plus(u, decayed, k.pull)
        ema(p, s.z, k.to_z)
        add_scaled(p, u, -k.step_y)
        add_scaled(s.z, u, -k.step_z)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, in the mode of the others."""
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("train_mode", self.param_groups[0].get("train_mode", True))

    @classmethod
    def check_mode(cls, group: Mapping[str, Any]) -> None:
        if not group["train_mode"]:
            raise RuntimeError(
                f"{cls.__name__}: step() after eval(), while the parameters hold the average; "
                "call optimizer.train() before training goes on"
            )


class ScheduleFreeAdamW(ScheduleFree):
    """Schedule-free AdamW, which needs no learning rate schedule and no length of training.

    ::

        v ← β₂v + (1−β₂)g²
        u = g/(√(v/(1−β₂ᵗ)) + eps) + weight_decay·y
        z ← z − lrₜu                  lrₜ = lr·min(1, t/warmup_steps)
        x ← (1−cₜ)x + cₜz             cₜ = wₜ/Σw, wₜ = tʳ·(largest lrₜ so far)^weight_lr_power
        y ← (1−β₁)z + β₁x

    The parameters are y in training and x after ``optimizer.eval()``, where evaluations and checkpoints belong;
    ``optimizer.train()`` goes back. Within ``with optimizer.averaged():`` they are x too. The mode is part of the
    state_dict.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: weight of x in y, in (0, 1), and decay rate of v, in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decay at y, in units of lr, ≥ 0.
        warmup_steps: steps in which the learning rate grows linearly, ≥ 0.
        r: power of the step in the weights of the average, ≥ 0.
        weight_lr_power: power of the largest learning rate so far in these weights, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        RuntimeError: at a step after ``eval()``.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = ScheduleFreeAdamW(layer.parameters(), lr=1e-2, warmup_steps=10)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()
        >>> optimizer.eval()  # now layer.eval(), and the evaluation

    Reference:
        Defazio et al., The Road Less Scheduled, 2024, arXiv 2405.15682.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 0.0025,
        betas: tuple[Recovering, Beta] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        warmup_steps: NonNegative = 0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta2 = h.betas[1]
        return {**_averaging(t, h, c, _warm(t, h)), "weight2": 1 - beta2, "debias2": (1 - beta2**t) ** -0.5}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        return g / root(ema_sq(s.exp_avg_sq, g, k.weight2), k.debias2, k.eps)


class ScheduleFreeRAdam(ScheduleFree):
    """Schedule-free AdamW with RAdam's rectified start in place of a warm-up.

    ::

        v ← β₂v + (1−β₂)g²
        u = g/(√(v/(1−β₂ᵗ)) + eps) + weight_decay·y
        z ← z − lrₜu                  lrₜ = lr·rₜ with RAdam's rectification rₜ of the variance of 1/√v
        x ← (1−cₜ)x + cₜz             cₜ = wₜ/Σw, wₜ = tʳ·(largest lrₜ so far)^weight_lr_power
        y ← (1−β₁)z + β₁x

    While there is no rectification, in the first few steps, lrₜ is 0; or u = g + weight_decay·y and lrₜ = lr.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0.
        betas: weight of x in y, in (0, 1), and decay rate of v, in [0, 1).
        eps: added to the denominator, ≥ 0.
        weight_decay: decay at y, in units of lr, ≥ 0.
        r: power of the step in the weights of the average, ≥ 0.
        weight_lr_power: power of the largest learning rate so far in these weights, ≥ 0.
        silent_sgd_phase: do not move in the first few steps, where RAdam takes steps of SGD.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        RuntimeError: at a step after ``eval()``.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = ScheduleFreeRAdam(layer.parameters(), lr=1e-2)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()
        >>> optimizer.eval()  # now layer.eval(), and the evaluation

    Reference:
        Defazio et al., The Road Less Scheduled, 2024, arXiv 2405.15682. Liu et al., On the Variance of the Adaptive
        Learning Rate and Beyond, 2020, arXiv 1908.03265.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 0.0025,
        betas: tuple[Recovering, Beta] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: WeightDecay = 0.0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        silent_sgd_phase: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        beta2 = h.betas[1]
        rho, rectification = rectify(t, beta2)
        lr = h.lr * choose(rho > 4, rectification, 0.0 if h.silent_sgd_phase else 1.0)
        second = {"weight2": 1 - beta2, "debias2": (1 - beta2**t) ** -0.5, "adapts": choose(rho > 4, 1.0, 0.0)}
        return {**_averaging(t, h, c, lr), **second}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        return either(k.adapts, g / root(ema_sq(s.exp_avg_sq, g, k.weight2), k.debias2, k.eps), g)


class ScheduleFreeSGD(ScheduleFree):
    """Schedule-free SGD, which needs no learning rate schedule and no length of training.

    ::

        z ← z − lrₜ(g + weight_decay·y)      lrₜ = lr·min(1, t/warmup_steps)
        x ← (1−cₜ)x + cₜz                    cₜ = wₜ/Σw, wₜ = tʳ·(largest lrₜ so far)^weight_lr_power
        y ← (1−momentum)z + momentum·x

    The parameters are y in training and x after ``optimizer.eval()``, where evaluations and checkpoints belong;
    ``optimizer.train()`` goes back. Within ``with optimizer.averaged():`` they are x too. The mode is part of the
    state_dict.

    Args:
        params: parameters or groups of parameters.
        lr: learning rate, ≥ 0; ten to fifty times SGD's.
        momentum: weight of x in y, in (0, 1).
        weight_decay: decay at y, in units of lr, ≥ 0.
        warmup_steps: steps in which the learning rate grows linearly, ≥ 0.
        r: power of the step in the weights of the average, ≥ 0.
        weight_lr_power: power of the largest learning rate so far in these weights, ≥ 0.
        **common: see :class:`~descend.engine.options.Common`.

    Raises:
        RuntimeError: at a step after ``eval()``.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = ScheduleFreeSGD(layer.parameters(), lr=1.0)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()
        >>> optimizer.eval()  # now layer.eval(), and the evaluation

    Reference:
        Defazio et al., The Road Less Scheduled, 2024, arXiv 2405.15682.
    """

    def __init__(
        self,
        params: Any,
        lr: Lr = 1.0,
        momentum: Recovering = 0.9,
        weight_decay: WeightDecay = 0.0,
        warmup_steps: NonNegative = 0,
        r: NonNegative = 0.0,
        weight_lr_power: NonNegative = 2.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, own(locals()), **common)

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        return {"z": position()}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        return _averaging(t, h, c, _warm(t, h))

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Tensor:
        return g


def _beta(h: Any) -> Any:
    """The weight of x in y."""
    return h.betas[0] if "betas" in vars(h) else h.momentum


def _warm(t: Any, h: Any) -> Any:
    """The learning rate of step t."""
    return h.lr * least(t / most(h.warmup_steps, 1.0), 1.0)


def _averaging(t: Any, h: Any, c: Any, lr: Any) -> dict[str, Any]:
    """How far y and z go along u at step t, and how far y goes to z as the average takes z in and β changes."""
    beta = _beta(h)
    before = choose(c.y_beta > 0, c.y_beta, beta)
    c.y_beta = beta + 0 * c.y_beta  # a tensor where the others are
    c.lr_max = most(c.lr_max, lr)
    weight = t**h.r * c.lr_max**h.weight_lr_power
    c.weight_sum = c.weight_sum + weight
    started = c.weight_sum > 0
    share = choose(started, weight / choose(started, c.weight_sum, 1.0), 0.0)
    pull = h.weight_decay * h.lr / h.max_lr_snapshot if h.corrected_weight_decay else h.weight_decay
    to_z = share + (1 - beta / before) * (1 - share)  # so that x = (y − (1−β)z)/β stays where it is as β changes
    return {"to_z": to_z, "step_y": lr * (1 - beta * (1 - share)), "step_z": lr, "pull": pull}
