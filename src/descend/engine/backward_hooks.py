"""Hooks that move parameters inside backward, for as long as their optimizer lives."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from descend.engine.plan import Owner, Plan


class BackwardOwner(Owner, Protocol):
    """What hooks need of their optimizer."""

    _in_backward: BackwardHooks | None

    def _step_alone(self, plan: Plan) -> None:
        """Move the parameters of a plan."""


class BackwardHooks:
    """The hooks of one optimizer: each moves a parameter as soon as its gradient is there, and frees the gradient.

    Parameters outlive optimizers, and Python cannot collect a cycle through a tensor's hooks. So a hook refers to its
    optimizer weakly, all else is the optimizer's, and the hooks are removed with it.

    Attributes:
        moved: the parameters that have moved since the last step() or zero_grad().
        remove: removes the hooks.
    """

    def __init__(self, owner: BackwardOwner) -> None:
        self.moved: set[Tensor] = set()
        self._places = {
            p: (i, j)
            for i, group in enumerate(owner.param_groups)
            for j, p in enumerate(group["params"])
            if p.requires_grad
        }
        self.plans = {p: Plan([place]) for p, place in self._places.items()}
        hook = _Hook(owner)
        handles = [p.register_post_accumulate_grad_hook(hook) for p in self._places]
        self.remove = weakref.finalize(owner, _remove, handles)
        self.remove.atexit = False

    def move(self, owner: BackwardOwner, p: Tensor) -> None:
        """Move one parameter by its gradient; whatever happens, the gradient is used up."""
        index, position = self._places[p]
        params = owner.param_groups[index]["params"] if index < len(owner.param_groups) else ()
        if position >= len(params) or params[position] is not p:
            return  # its groups have changed since: it moves in step(), if it still belongs to one
        try:
            if p in self.moved:
                raise RuntimeError(
                    f"{type(owner).__name__}: parameter {owner.name_of(index, position)} has moved already and gets "
                    "another gradient: this is a second backward pass before optimizer.step(), and step_in_backward() "
                    "cannot accumulate gradients (call step() after every backward; switch accumulation off, "
                    "gradient_accumulation_steps=1, or take a larger batch), or a layer that several activation "
                    "checkpoints share (make them with use_reentrant=False). After an error inside backward, "
                    "zero_grad() begins again"
                )
            owner._step_alone(self.plans[p])
            self.moved.add(p)
        finally:
            p.grad = None


def owner_of(p: Tensor) -> BackwardOwner | None:
    """The optimizer that moves a parameter inside backward."""
    hooks = getattr(p, "_post_accumulate_grad_hooks", None) or {}
    return next((hook.owner() for hook in hooks.values() if isinstance(hook, _Hook)), None)


class _Hook:
    """Moves the parameter that it is called with."""

    def __init__(self, owner: BackwardOwner) -> None:
        self.owner = weakref.ref(owner)

    def __call__(self, p: Tensor) -> None:
        owner = self.owner()
        if owner is not None and owner._in_backward is not None:
            owner._in_backward.move(owner, p)


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
