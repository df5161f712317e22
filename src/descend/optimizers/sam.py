"""SAM: any optimizer, with its gradients taken where the loss around the parameters is worst."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from descend.engine.options import plain
from descend.engine.plan import awaited
from descend.engine.ranges import NonNegative, fault
from descend.engine.sharding.collectives import norm_of
from descend.engine.sharding.layout import layout_of, local
from descend.engine.slots import state_dtype
from descend.engine.unwrapped import unwrap, unwrapped
from descend.optimizers.wrapper import Wrapper


class SAM(Wrapper):
    """SAM, sharpness-aware minimisation.

    ::

        e = rho·T²g/‖T·g‖          T = |p| with adaptive, else 1; one norm over all parameters
        g' = the gradient at p + e
        p ← the base optimizer's step from p with g'

    One step takes two backward passes. With a closure, ``step(closure)`` does everything::

        def closure():
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)

    Without one, and with a GradScaler, which may be left out::

        scaler.scale(criterion(model(x), y)).backward()
        optimizer.first_step(zero_grad=True)
        scaler.scale(criterion(model(x), y)).backward()
        scaler.step(optimizer)                             # or optimizer.second_step()
        scaler.update()

    The scale of the first gradient does not matter: do not unscale it. Clip the second one. BatchNorm's running
    statistics belong to the first pass: set ``momentum = 0`` on such layers for the second.

    With gradient accumulation all micro-batches go through the model twice, so there a closure, which has only the last
    one, raises::

        for batch in micro_batches:
            (loss_of(batch) / len(micro_batches)).backward()
        optimizer.first_step(zero_grad=True)
        for batch in micro_batches:
            (loss_of(batch) / len(micro_batches)).backward()
        optimizer.second_step(zero_grad=True)

    In Lightning that is manual optimization; automatic optimization, which calls ``step(closure)``, is right without
    ``accumulate_grad_batches``.

    Groups and state are the base optimizer's own: schedulers, hyper-parameters and checkpoints see one optimizer. rho
    and adaptive are group options, as ``sam_rho`` and ``sam_adaptive``. The form that is usual elsewhere is understood
    too: ``SAM(params, SGD, rho=0.05, lr=0.1, momentum=0.9)``.

    Args:
        base_optimizer: any optimizer, of descend or of torch; or, after the parameters, its class, whose options follow.
        rho: radius of the neighbourhood, ≥ 0; 0.05 in the paper, and 0.5 to 2 with ``adaptive``.
        adaptive: measure the neighbourhood relative to the size of each parameter (ASAM).

    Raises:
        TypeError: if base_optimizer is no optimizer.
        ValueError: for rho or adaptive out of range.
        RuntimeError: for passes in another order than above, for a closure with gradient accumulation, and for sparse
            gradients.

    Example:
        >>> from descend import AdamW
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(AdamW(layer.parameters(), lr=1e-2), rho=0.05)
        >>> layer(torch.ones(2)).square().backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> layer(torch.ones(2)).square().backward()
        >>> optimizer.second_step(zero_grad=True)

    Reference:
        Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, arXiv 2010.01412.
        Adaptive: Kwon et al., ASAM, 2021, arXiv 2102.11600, without its small constant in T.
    """

    own_options: ClassVar[tuple[str, ...]] = ("sam_rho", "sam_adaptive")

    @overload
    def __init__(
        self, base_optimizer: torch.optim.Optimizer, rho: NonNegative = 0.05, adaptive: bool = False
    ) -> None: ...
    @overload
    def __init__(
        self,
        params: Any,
        base_optimizer: Callable[..., torch.optim.Optimizer],
        rho: NonNegative = 0.05,
        adaptive: bool = False,
        **options: Any,
    ) -> None: ...
    def __init__(self, *args: Any, **options: Any) -> None:
        second = options.get("base_optimizer", args[1] if len(args) > 1 else None)
        base_optimizer, rho, adaptive = (_from_class if callable(second) else _around)(*args, **options)
        super().__init__(base_optimizer, {"sam_rho": plain(rho), "sam_adaptive": plain(adaptive)})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._origins: dict[Tensor, Tensor] = {}
        self._by_hand = self._returns = self._overflowed = False
        super().__setstate__(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_origins": self._origins, "_by_hand": self._by_hand}

    @classmethod
    def _check(cls, group: Mapping[str, Any]) -> None:
        for name, hint in (("rho", NonNegative), ("adaptive", Literal[True, False])):
            if wrong := fault(name, plain(group[f"sam_{name}"]), hint):
                raise ValueError(f"SAM: {wrong}")

    # ------------------------------------------------------------------ the two passes

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks this: between first_step() and step() an overflow has to bring the parameters back."""
        return self._by_hand

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Both passes with a closure; without one the second, after :meth:`first_step` and a backward pass.

        Args:
            closure: re-evaluates the model and returns the loss; it runs twice, with gradients enabled.

        Returns:
            What the closure returned at first, at the parameters themselves.
        """
        if self._by_hand:
            return self._second_step(closure)
        if closure is None:
            if any(bool(g.any()) for _, _, g in self._moving()):
                raise RuntimeError(
                    "SAM: step() without first_step() and without a closure; it needs two backward passes"
                )
            self._step_of_base()
            return None
        self._check_mode()
        loss = self._at_origin(closure)
        self._ascend()
        self.zero_grad()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self._come_back()
            raise
        self._come_back()
        self._step_of_base()
        return loss

    @unwrapped
    def first_step(self, zero_grad: bool = False) -> None:
        """Go to p + e. The gradient may still be scaled; where it is not finite, the parameters stay.

        Args:
            zero_grad: drop the gradient afterwards, as the second pass needs it.
        """
        if self._by_hand:
            raise RuntimeError("SAM: first_step() twice; take the second backward pass and call second_step()")
        self._check_mode()
        self._ascend()
        self._by_hand = True
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Come back to p and let the base optimizer step with the gradient that was taken at p + e.

        Args:
            zero_grad: drop the gradient afterwards.
        """
        sam = unwrap(self)
        if not sam._by_hand:
            raise RuntimeError("SAM: second_step() before first_step(), which goes where the gradient is to be taken")
        sam._returns = True
        try:
            self.step()  # of a framework's wrapper, which counts it, and brings a closure of its own
        finally:
            sam._returns = False
        if zero_grad:
            self.zero_grad()

    def _second_step(self, closure: Callable[[], float] | None) -> float | None:
        loss = None
        if closure is not None:
            if not self._returns:
                raise RuntimeError("SAM: step(closure) after first_step(); finish with second_step(), or use it alone")
            with torch.enable_grad():
                loss = closure()
        self._come_back()
        self._by_hand = False
        self._step_of_base()
        return loss

    def _at_origin(self, closure: Callable[[], float]) -> float:
        """The first pass; raises where it adds to gradients that were there, which the second could not."""
        grew: dict[Tensor, Tensor] = {}

        def arrives(p: Tensor, g: Tensor) -> None:  # before it is added to p.grad
            if p not in grew and p.grad is not None and p.grad.layout is torch.strided:
                grew[p] = local(p.grad).any()
            else:
                grew.setdefault(p, torch.tensor(False))

        with ExitStack() as hooks, torch.enable_grad():
            for p in (p for group in self.param_groups for p in group["params"] if p.requires_grad):
                hooks.callback(p.register_hook(partial(arrives, p)).remove)
            loss = closure()
        if any(bool(each) for each in grew.values()):
            raise RuntimeError(
                "SAM: step(closure) adds to gradients of earlier backward passes, which the second pass would lack. "
                "If the closure is to zero them, call zero_grad() in it. With gradient accumulation use no closure: "
                "backward for every micro-batch, first_step(zero_grad=True), backward for every one again, second_step()"
            )
        return loss

    @torch.no_grad()
    def _ascend(self) -> None:
        moving = list(self._moving())
        scaled = [g * local(p).abs() if group["sam_adaptive"] else g for group, p, g in moving]
        norm = norm_of([p for _, p, _ in moving], scaled)
        inverse = torch.where(torch.isfinite(norm) & (norm > 0), 1 / norm, 0.0)
        self._versions = {p: p._version for _, p, _ in moving}
        for group, p, g in moving:
            here = local(p).detach()
            self._origins[p] = here.clone()
            uphill = -group["sam_rho"] if group.get("maximize") else group["sam_rho"]
            e = g * (inverse * uphill).to(g.device)
            if group["sam_adaptive"]:
                e = e * here.abs().square()
            here.add_(e.nan_to_num(0.0))

    def _moving(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Each group, parameter and gradient, the latter what this process has of it in the compute dtype."""
        for group in self.base_optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None and not awaited(p):
                    continue
                if p.grad is not None and p.grad.layout is not torch.strided:
                    raise RuntimeError("SAM: a gradient is sparse; make it dense (sparse=False in nn.Embedding)")
                layout = layout_of(p)
                yield group, p, (p.grad if layout is None else layout.gradient(p)).to(state_dtype(p))

    @torch.no_grad()
    def _come_back(self) -> None:
        for p, origin in self._origins.items():
            local(p).detach().copy_(origin)
        self._origins = {}

    @torch.no_grad()
    def _step_of_base(self) -> None:
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        self._overflowed = found_inf is not None and bool(found_inf)
        if self._overflowed:
            return
        if grad_scale is not None:
            inverse = grad_scale.double().reciprocal()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(inverse.to(p.grad))
        self.base_optimizer.step()

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last call of :meth:`step` left everything as it was, since a gradient was not finite."""
        return self._overflowed or getattr(self.base_optimizer, "step_was_skipped", False)


def _around(
    base_optimizer: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False
) -> tuple[torch.optim.Optimizer, float, bool]:
    return base_optimizer, rho, adaptive


def _from_class(
    params: Any,
    base_optimizer: Callable[..., torch.optim.Optimizer],
    rho: float = 0.05,
    adaptive: bool = False,
    **options: Any,
) -> tuple[torch.optim.Optimizer, float, bool]:
    return base_optimizer(params, **options), rho, adaptive
