"""SAM: any optimizer, with its gradients taken where the loss around the parameters is worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from descend.engine.exact import restored
from descend.engine.options import plain
from descend.engine.plan import awaited
from descend.engine.sharding.collectives import norm_of
from descend.engine.sharding.layout import layout_of, local
from descend.engine.slots import state_dtype

_OPTIONS = ("sam_rho", "sam_adaptive")


class SAM(torch.optim.Optimizer):
    """SAM, sharpness-aware minimisation.

    ::

        e = rho·T²g/‖Tg‖           T = |p| with adaptive, else 1; one norm over all parameters
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

    Groups and state are the base optimizer's own: schedulers, hyper-parameters and checkpoints see one optimizer. rho
    and adaptive are group options, as ``sam_rho`` and ``sam_adaptive``.

    Args:
        base_optimizer: any optimizer, of descend or of torch.
        rho: radius of the neighbourhood, ≥ 0; 0.05 in the paper, and 0.5 to 2 with ``adaptive``.
        adaptive: measure the neighbourhood relative to the size of each parameter (ASAM).

    Raises:
        TypeError: if base_optimizer is no optimizer.
        ValueError: for rho or adaptive out of range.
        RuntimeError: for passes in another order than above, and for sparse gradients.

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

    #: GradScaler asks this: an overflow has to bring the parameters back, so the step is to be called in any case.
    _step_supports_amp_scaling = True

    def __init__(self, base_optimizer: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        if not isinstance(base_optimizer, torch.optim.Optimizer):
            kind = type(base_optimizer).__name__
            raise TypeError(f"SAM: base_optimizer is a {kind}, expected a torch.optim.Optimizer")
        own = {"sam_rho": plain(rho), "sam_adaptive": plain(adaptive)}
        for group in base_optimizer.param_groups:
            _check({**own, **group})
        super().__init__(base_optimizer.param_groups, {**base_optimizer.defaults, **own})
        self._origins: dict[Tensor, Tensor] | None = None
        self._versions: dict[Tensor, int] = {}
        self._share(base_optimizer)

    def _share(self, base_optimizer: torch.optim.Optimizer) -> None:
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups
        self.state = base_optimizer.state

    # ------------------------------------------------------------------ the two passes

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Both passes with a closure; without one the second, after :meth:`first_step` and a backward pass.

        Args:
            closure: re-evaluates the model and returns the loss; it runs twice, with gradients enabled.

        Returns:
            What the closure returned at first, at the parameters themselves.
        """
        if closure is None:
            self._finish()
            return None
        if self._origins is not None:
            raise RuntimeError("SAM: step(closure) after first_step(); finish with second_step(), or use it alone")
        with torch.enable_grad():
            loss = closure()
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self._come_back()
            raise
        self._finish()
        return loss

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Go to p + e. The gradient may still be scaled; where it is not finite, the parameters stay.

        Args:
            zero_grad: drop the gradient afterwards, as the second pass needs it.
        """
        if self._origins is not None:
            raise RuntimeError("SAM: first_step() twice; take the second backward pass and call second_step()")
        moving = list(self._moving())
        scaled = [g * local(p).abs() if group["sam_adaptive"] else g for group, p, g in moving]
        norm = norm_of([p for _, p, _ in moving], scaled)
        inverse = torch.where(torch.isfinite(norm) & (norm > 0), 1 / norm, 0.0)
        self._origins, self._versions = {}, {p: p._version for _, p, _ in moving}
        for group, p, g in moving:
            here = local(p).detach()
            self._origins[p] = here.clone()
            uphill = -group["sam_rho"] if group.get("maximize") else group["sam_rho"]
            e = g * (inverse * uphill).to(g.device)
            if group["sam_adaptive"]:
                e = e * here.abs().square()
            here.add_(e.nan_to_num(0.0))
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Come back to p and let the base optimizer step with the gradient that was taken at p + e.

        Args:
            zero_grad: drop the gradient afterwards.
        """
        if self._origins is None:
            raise RuntimeError("SAM: second_step() before first_step(), which goes where the gradient is to be taken")
        self.step()
        if zero_grad:
            self.zero_grad()

    def _moving(self) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Each group, parameter and gradient, the latter what this process has of it in the dtype of the maths."""
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
        for p, origin in (self._origins or {}).items():
            local(p).detach().copy_(origin)
        restored(self.base_optimizer, self._versions)
        self._origins, self._versions = None, {}

    @torch.no_grad()
    def _finish(self) -> None:
        if self._origins is None and any(bool(g.any()) for _, _, g in self._moving()):
            raise RuntimeError("SAM: step() without first_step() and without a closure; it needs two backward passes")
        self._come_back()
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and bool(found_inf):
            return
        if grad_scale is not None:
            inverse = grad_scale.double().reciprocal()
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.mul_(inverse.to(p.grad))
        self.base_optimizer.step()
        self._share(self.base_optimizer)

    # ------------------------------------------------------------------ an optimizer like any other

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with SAM's options."""
        if "base_optimizer" not in self.__dict__:  # torch's constructor takes over the groups that are there
            super().add_param_group(param_group)
            return
        _check({**self.defaults, **param_group})
        self.base_optimizer.add_param_group(param_group)
        self._set_defaults()

    def _set_defaults(self) -> None:
        self._share(self.base_optimizer)
        for group in self.param_groups:
            for name in _OPTIONS:
                group.setdefault(name, self.defaults[name])

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict; ``sam_rho`` and ``sam_adaptive`` are among the group options."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self.base_optimizer.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state_dict of SAM, or one of the base optimizer alone."""
        given = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            given = hook(self, given) or given
        self.base_optimizer.load_state_dict(given)
        self._set_defaults()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def state_bytes(self, param: Tensor, group: dict[str, Any] | None = None) -> int:
        """Bytes of state for one parameter, all of them the base optimizer's."""
        base: Any = self.base_optimizer
        return int(base.state_bytes(param, group))

    def __getstate__(self) -> dict[str, Any]:
        return {
            "defaults": self.defaults,
            "base_optimizer": self.base_optimizer,
            "_origins": self._origins,
            "_versions": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share(self.base_optimizer)


def _check(group: Mapping[str, Any]) -> None:
    rho, adaptive = (plain(group[name]) for name in _OPTIONS)
    if not (isinstance(rho, (int, float)) and 0 <= rho < math.inf):
        raise ValueError(f"SAM: rho={rho!r}, expected a finite number >= 0")
    if not isinstance(adaptive, bool):
        raise ValueError(f"SAM: adaptive={adaptive!r}, expected True or False")
