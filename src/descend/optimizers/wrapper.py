"""What SAM and Lookahead share: an optimizer around another one is an optimizer like any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from descend.engine.master_weights import innermost
from descend.engine.unwrapped import Unwrappable, unwrapped


def _of_base(name: str) -> Any:
    """An attribute that is the base optimizer's, also where it is assigned."""
    return property(
        lambda self: getattr(self.base_optimizer, name), lambda self, value: setattr(self.base_optimizer, name, value)
    )


class Wrapper(Unwrappable):
    """An optimizer around another one, whose groups and state are its own.

    Schedulers, hyper-parameters and checkpoints see one optimizer. ``train``, ``eval`` and ``averaged`` are there where
    the base optimizer has them, and ``first_step`` where it is a SAM.

    Args:
        base_optimizer: any optimizer, of descend or of torch.
        own: the wrapper's options, under their names in the groups.
    """

    #: The wrapper's options in the groups.
    own_options: ClassVar[tuple[str, ...]] = ()
    #: Methods of the base optimizer that are the wrapper's too.
    _passed_on: ClassVar[frozenset[str]] = frozenset(("train", "eval", "averaged", "first_step"))

    state = _of_base("state")
    param_groups = _of_base("param_groups")

    def __init__(self, base_optimizer: torch.optim.Optimizer, own: Mapping[str, Any]) -> None:
        if not isinstance(base_optimizer, torch.optim.Optimizer):
            kind, came = type(self).__name__, type(base_optimizer).__name__
            raise TypeError(f"{kind}: base_optimizer is a {came}, expected a torch.optim.Optimizer")
        self._check({**own})
        for group in base_optimizer.param_groups:
            self._check({**own, **group})
        # torch's constructor would make groups and state of this optimizer's own.
        self.__setstate__({"defaults": {**base_optimizer.defaults, **own}, "base_optimizer": base_optimizer})

    @classmethod
    def _check(cls, group: Mapping[str, Any]) -> None:
        """Raise ValueError unless the wrapper's options in a group are in their ranges."""
        raise NotImplementedError

    @property
    def innermost(self) -> torch.optim.Optimizer:
        """The optimizer that wraps no other, and moves the parameters."""
        return innermost(self)

    @property
    def is_second_order(self) -> bool:
        """Whether the base optimizer needs ``backward(create_graph=True)``."""
        return getattr(self.base_optimizer, "is_second_order", False)

    def _check_mode(self) -> None:
        """Raise RuntimeError where the parameters are not what gradients belong to."""
        getattr(self.base_optimizer, "_check_mode", lambda: None)()

    def __getattr__(self, name: str) -> Any:
        if name in self._passed_on and "base_optimizer" in self.__dict__:
            return getattr(self.base_optimizer, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with the wrapper's options."""
        self._check({**self.defaults, **param_group})
        self.base_optimizer.add_param_group(param_group)
        self._set_defaults()

    def _set_defaults(self) -> None:
        for group in self.param_groups:
            for name in self.own_options:
                group.setdefault(name, self.defaults[name])

    @unwrapped
    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict; the wrapper's options are among those of the groups."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state_dict = self.base_optimizer.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    @unwrapped
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state_dict of the wrapper, or one of the base optimizer alone."""
        given = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            given = hook(self, given) or given
        self.base_optimizer.load_state_dict(given)
        self._set_defaults()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def state_bytes(self, param: torch.Tensor, group: dict[str, Any] | None = None) -> int:
        """Bytes of state for one parameter."""
        base: Any = self.base_optimizer
        return int(base.state_bytes(param, group))

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "base_optimizer": self.base_optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch puts it there
        self._set_defaults()
