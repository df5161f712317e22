"""Lookahead: slow weights that follow any optimizer's fast ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from descend.engine.master_weights import read, write
from descend.engine.optimizer import Optimizer, rehearses
from descend.engine.options import plain
from descend.engine.ranges import Count, Fraction, declared
from descend.engine.sharding.layout import fresh, full, layout_of, local
from descend.engine.slots import position, state_dtype
from descend.engine.unwrapped import unwrapped
from descend.optimizers.wrapper import Wrapper

SLOW = "lookahead_slow_buff"
SYNCED = "lookahead_synced"  # the group's step at the last synchronisation, 0 before the first


class Lookahead(Wrapper):
    """Lookahead, k steps forward, one step back.

    ::

        θ ← one step of the base optimizer
        every k steps:  φ ← φ + alpha·(θ − φ),  θ ← φ

    It shares groups and state with the base optimizer: hyper-parameters, schedulers and checkpoints see one optimizer.
    The slow weights φ lie in the state under ``lookahead_slow_buff``; ``lookahead_alpha`` and ``lookahead_k`` are group
    options. A synchronisation that is due while a parameter has no gradient waits for the next that is due, which takes
    place in any case. Steps that a GradScaler or ``skip_nonfinite`` leaves out do not count.

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

    own_options: ClassVar[tuple[str, ...]] = ("lookahead_alpha", "lookahead_k", "lookahead_step")

    def __init__(self, base_optimizer: torch.optim.Optimizer, alpha: Fraction = 0.5, k: Count = 6) -> None:
        super().__init__(
            base_optimizer, {"lookahead_alpha": plain(alpha), "lookahead_k": plain(k), "lookahead_step": 0}
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        keeper = self.innermost
        if isinstance(keeper, Optimizer):
            keeper.extra_state = {**keeper.extra_state, SLOW: position(), SYNCED: 0.0}

    @classmethod
    def _check(cls, group: Mapping[str, Any]) -> None:
        for name in ("alpha", "k"):
            if wrong := declared(cls)[name].fault(plain(group[f"lookahead_{name}"])):
                raise ValueError(f"Lookahead: {wrong}")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """GradScaler asks this."""
        return getattr(self.base_optimizer, "_step_supports_amp_scaling", False)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base optimizer, and a synchronisation where it is due."""
        rehearsal = closure is None and rehearses(self)
        with self._scaler_of_base():
            loss = self.base_optimizer.step(closure)
        overflows = bool(vars(self).get("found_inf", False))  # which a capturable base does not look at
        skipped = overflows or getattr(self.base_optimizer, "step_was_skipped", False)
        for group in self.param_groups:
            self._start(group)
            if not (rehearsal or skipped):
                group["lookahead_step"] += 1
                if group["lookahead_step"] % group["lookahead_k"] == 0:
                    for p in group["params"]:
                        if p.grad is not None or self._is_overdue(p, group):
                            self._sync(p, group)
        return loss

    def _is_overdue(self, p: Tensor, group: Mapping[str, Any]) -> bool:
        """Whether the synchronisation before was due too, and the parameter had no gradient."""
        state = self.state.get(p, {})
        moves = p.requires_grad and SYNCED in state
        return moves and group["lookahead_step"] - float(state[SYNCED]) >= 2 * group["lookahead_k"]

    @contextmanager
    def _scaler_of_base(self) -> Iterator[None]:
        """Hand over what a GradScaler leaves on an optimizer for the length of a step."""
        left = {name: vars(self)[name] for name in ("grad_scale", "found_inf") if name in vars(self)}
        vars(self.base_optimizer).update(left)
        try:
            yield
        finally:
            for name in left:
                delattr(self.base_optimizer, name)

    def _start(self, group: Mapping[str, Any]) -> None:
        """Make the slow weights of parameters that have moved, or whose state a distributed checkpoint has had made."""
        for p in group["params"]:
            if (p.grad is not None or p in self.state) and SLOW not in self.state[p]:
                self.state[p] |= {SLOW: fresh(position(), p), SYNCED: torch.tensor(0.0)}

    @torch.no_grad()
    def _sync(self, fast: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[fast]
        value, slow = local(read(self.innermost, group, fast)), local(state[SLOW])
        if state[SYNCED] == 0:
            slow.copy_(value)
        slow.add_(value - slow, alpha=group["lookahead_alpha"])
        write(self.innermost, group, fast, state[SLOW])
        state[SYNCED].fill_(group["lookahead_step"])

    def sync_lookahead(self) -> None:
        """Synchronise now, before an evaluation for example.

        Raises:
            RuntimeError: around a schedule-free optimizer after ``eval()``, while the parameters hold the average.
        """
        self._check_mode()
        for group in self.param_groups:
            self._start(group)
            for p in group["params"]:
                if p in self.state:
                    self._sync(p, group)

    @unwrapped
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state_dict of Lookahead, ours or timm's, or one of the base optimizer alone."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for state, p in ((self.state[p], p) for p in group["params"] if SLOW in self.state.get(p, ())):
                synced = local(state.get(SYNCED, max(group["lookahead_step"], 1)))  # timm does not keep it
                state |= {SLOW: _placed(p, state[SLOW]), SYNCED: torch.tensor(float(synced))}

    def state_bytes(self, param: Tensor, group: dict[str, Any] | None = None) -> int:
        """Bytes of state for one parameter: the base optimizer's and the slow weights."""
        slow = torch.empty((), dtype=state_dtype(param)).element_size() * param.numel()
        return super().state_bytes(param, group) + slow + 4


@torch.no_grad()
def _placed(p: Tensor, slow: Tensor) -> Tensor:
    """Slow weights that were loaded, in the dtype and layout of such as are made here."""
    placed, layout = fresh(position(), p), layout_of(p)
    local(placed).copy_(full(slow) if layout is None else layout.here(slow, layout.placed(position())))
    return placed
