"""Lookahead: slow weights that follow any optimizer's fast ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from descend.engine import serial
from descend.engine.exact import read, write
from descend.engine.options import plain
from descend.engine.slots import state_dtype

SLOW = "lookahead_slow_buff"


class Lookahead(torch.optim.Optimizer):
    """Lookahead, k steps forward, one step back.

    ::

        θ ← one step of the base optimizer
        every k steps:  φ ← φ + alpha·(θ − φ),  θ ← φ

    It shares groups and state with the base optimizer: hyper-parameters, schedulers and checkpoints see one optimizer.
    The slow weights φ lie in the state under ``lookahead_slow_buff``; ``lookahead_alpha`` and ``lookahead_k`` are group
    options.

    Args:
        base_optimizer: any optimizer, of descend or of torch.
        alpha: how far the slow weights go towards the fast ones, in [0, 1].
        k: steps between two synchronisations, ≥ 1.

    Raises:
        TypeError: if base_optimizer is no optimizer.
        ValueError: for alpha or k out of range.

    Example:
        >>> from descend import AdamW
        >>> layer = torch.nn.Linear(2, 1)
        >>> optimizer = Lookahead(AdamW(layer.parameters()), alpha=0.5, k=6)
        >>> layer(torch.ones(2)).backward()
        >>> optimizer.step()

    Reference:
        Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, 2019, arXiv 1907.08610. As in timm the slow
        weights start from the fast ones at the first synchronisation, so that this one changes nothing.
    """

    def __init__(self, base_optimizer: torch.optim.Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        if not isinstance(base_optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"Lookahead: base_optimizer is a {type(base_optimizer).__name__}, expected a torch.optim.Optimizer"
            )
        alpha, k = plain(alpha), plain(k)
        if not (isinstance(alpha, (int, float)) and 0.0 <= alpha <= 1.0):
            raise ValueError(f"Lookahead: alpha={alpha!r}, expected a number in [0, 1]")
        if not (isinstance(k, int) and k >= 1):
            raise ValueError(f"Lookahead: k={k!r}, expected an integer >= 1")
        own = {"lookahead_alpha": alpha, "lookahead_k": k, "lookahead_step": 0}
        super().__init__(base_optimizer.param_groups, {**base_optimizer.defaults, **own})
        self._share(base_optimizer)

    def _share(self, base_optimizer: torch.optim.Optimizer) -> None:
        self.base_optimizer = base_optimizer
        self.param_groups = base_optimizer.param_groups
        self.state = base_optimizer.state

    @property
    def is_second_order(self) -> bool:
        """Whether the base optimizer needs ``backward(create_graph=True)``."""
        return getattr(self.base_optimizer, "is_second_order", False)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base optimizer, and a synchronisation where it is due."""
        rehearses = getattr(self.base_optimizer, "rehearses", None)
        counts = rehearses is None or not rehearses()
        loss = self.base_optimizer.step(closure)
        self.state = self.base_optimizer.state
        if counts:
            for group in self.param_groups:
                group["lookahead_step"] += 1
                if group["lookahead_step"] % group["lookahead_k"] == 0:
                    self._sync(group)
        return loss

    @torch.no_grad()
    def _sync(self, group: dict[str, Any]) -> None:
        for fast in group["params"]:
            if fast.grad is None:
                continue
            state = self.state[fast]
            value = read(self.base_optimizer, group, fast)
            if SLOW not in state:
                state[SLOW] = value.clone()
            slow = state[SLOW]
            slow.add_(value - slow, alpha=group["lookahead_alpha"])
            write(self.base_optimizer, group, fast, slow)

    def sync_lookahead(self) -> None:
        """Synchronise now, before an evaluation for example."""
        for group in self.param_groups:
            self._sync(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with Lookahead's options."""
        base = self.__dict__.get("base_optimizer")
        if base is None:
            super().add_param_group(param_group)
            return
        base.add_param_group(param_group)
        for name in ("lookahead_alpha", "lookahead_k", "lookahead_step"):
            base.param_groups[-1].setdefault(name, self.defaults[name])

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict, with the slow weights in its state."""
        return serial.stamped(super().state_dict(), type(self.base_optimizer).__name__)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state_dict of Lookahead, ours or timm's, or one of the base optimizer alone."""
        given = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            given = hook(self, given) or given
        self.base_optimizer.load_state_dict(given)
        self._share(self.base_optimizer)
        for group in self.param_groups:
            for name in ("lookahead_alpha", "lookahead_k", "lookahead_step"):
                group.setdefault(name, self.defaults[name])
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def state_bytes(self, param: torch.Tensor, group: dict[str, Any] | None = None) -> int:
        """Bytes of state for one parameter: the base optimizer's and the slow weights."""
        base: Any = self.base_optimizer
        slow = torch.empty((), dtype=state_dtype(param)).element_size() * param.numel()
        return int(base.state_bytes(param, group)) + slow

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "base_optimizer": self.base_optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        base = state.pop("base_optimizer", None) or self.base_optimizer
        super().__setstate__({**state, "param_groups": base.param_groups, "state": base.state})
        self._share(base)
