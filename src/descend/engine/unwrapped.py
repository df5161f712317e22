"""Methods that work on the optimizer itself where a framework's wrapper inherits them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


class Unwrappable(torch.optim.Optimizer):
    """An optimizer that is found again behind its wrappers.

    Lightning and Fabric derive a class from the optimizer's, ``type("LightningAdamW", (LightningOptimizer, AdamW), {})``,
    whose instances delegate attributes, or copy them, and inherit methods: what an inherited method assigns to ``self``
    stays on the wrapper, unseen by the optimizer. Such methods carry the decorator :func:`unwrapped`.
    """

    _itself: Callable[[], Any]

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        self._itself = weakref.ref(self)
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A wrapper is made by neither, so that ``_itself`` is the optimizer's wherever it is read.
        self._itself = weakref.ref(self)
        super().__setstate__(state)


def unwrap(optimizer: Kind) -> Kind:
    """The optimizer behind a wrapper that delegates or copies its attributes; any other is its own."""
    itself: Kind | None = getattr(optimizer, "_itself", lambda: None)()
    return optimizer if itself is None else itself


def unwrapped(method: Callable[Concatenate[Kind, P], R]) -> Callable[Concatenate[Kind, P], R]:
    """A method that runs on the optimizer behind the wrapper that it is called on."""

    @functools.wraps(method)
    def on_itself(self: Kind, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(unwrap(self), *args, **kwargs)

    return on_itself
