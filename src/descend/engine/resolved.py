"""A parameter group's options and the scalars that follow from them, for the length of one step."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from descend.engine.options import plain
from descend.engine.text import decay_scalars

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer


class Resolved:
    """The options of one group, sorted into numbers and flags.

    Attributes:
        h: all of them as attributes, which is how the rule's static methods see them. Numbers are floats, or 0-d
            float64 tensors where they were tensors and the step is capturable.
        numbers: options that may change from step to step without another text.
        flags: options that decide what the text is.
    """

    def __init__(self, optimizer: Optimizer, group: dict[str, Any]) -> None:
        self.rule = type(optimizer)
        self.group = group
        self.numbers: dict[str, Any] = {}
        self.flags: dict[str, Any] = {}
        self._sort(optimizer)
        self.h = SimpleNamespace(**self.numbers, **self.flags)
        self.decay = self.rule.decay(self.h) if hasattr(self.h, "weight_decay") else "none"
        self._made: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {}

    def _sort(self, optimizer: Optimizer) -> None:
        group, structural = self.group, self.rule.structural
        for name in (*optimizer.defaults, "max_lr_snapshot"):
            value = plain(group.get(name))
            if value is None or isinstance(value, (bool, str)) or name in structural:
                self.flags[name] = value
            elif name.startswith("betas"):
                self.numbers[name] = tuple(self._number(beta) for beta in value)
            elif isinstance(value, (int, float, Tensor)):
                self.numbers[name] = self._number(value)
            elif isinstance(value, Mapping):
                self.flags[name] = tuple(value.items())
            else:
                self.flags[name] = tuple(value) if isinstance(value, list) else value
        # A GradScaler leaves these two on an optimizer that unscales by itself, for the length of one step.
        grad_scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        self.flags["unscales"] = grad_scale is not None
        if grad_scale is not None:
            self.numbers["inverse_scale"] = 1 / self._number(grad_scale)
        self.flags["skips"] = found_inf is not None and group["capturable"]
        if self.flags["skips"]:
            self.numbers["found_inf"] = self._number(found_inf)

    def _number(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.double().reshape(()) if self.group["capturable"] else float(value)
        return value if value is None else float(value)

    def at(self, t: float, carried: tuple[float, ...], traits: tuple[Any, ...]) -> Any:
        """What :meth:`known` gives for these numbers, made once: parameters at the same step share it."""
        key = (t, carried, traits)
        made = self._made.get(key)
        if made is None:
            before = dict(zip(self.rule.carried, carried, strict=True))
            made = self._made[key] = self.known(t, before, dict(traits))
        return made

    def known(self, t: Any, carried: dict[str, Any], traits: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values that the text knows at step t, and the carried scalars after it."""
        c = SimpleNamespace(**carried)
        known = {**self.flags, **traits, "decay": self.decay, "t": t, "gain": 1.0}
        for name, value in self.numbers.items():
            if isinstance(value, tuple):
                suffix = name.removeprefix("betas")
                known.update({f"beta{i + 1}{suffix}": beta for i, beta in enumerate(value)})
            else:
                known[name] = value
        known.update(decay_scalars(self.decay, self.h))
        known.update(self.rule.scalars(t, self.h, c))
        if "step_size" not in known:
            known["step_size"] = known["gain"] if known["lr"] is None else known["lr"] * known["gain"]
        return known, vars(c)
