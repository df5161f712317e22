"""A parameter group's options and the scalars that follow from them, for the length of one step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from descend.engine.options import plain
from descend.engine.rule import Rule
from descend.engine.update import decay_amount


class Resolved:
    """The options of one group, sorted into numbers and flags.

    Args:
        rule: the group's rule.
        names: the names of its options; what else users put into a group is their own.
        group: the parameter group.
        scaling: what a GradScaler leaves on an optimizer that unscales by itself, for the length of one step: the scale,
            and whether a gradient has an infinity. None where there is no scaler.

    Attributes:
        h: all of them as attributes, which is how the rule's static methods see them. Numbers are floats, or 0-d
            float64 tensors where they were tensors and the step is capturable.
        numbers: options that may change from step to step without another text.
        flags: options that decide what the text is.
        made: what :meth:`at` gave so far.
        fallback: the same for parameters of the group that the rule does not serve; None: it serves all.
    """

    def __init__(
        self,
        rule: type[Rule],
        names: Iterable[str],
        group: dict[str, Any],
        scaling: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> None:
        self.rule = rule
        self.group = group
        self.numbers: dict[str, Any] = {}
        self.flags: dict[str, Any] = {}
        self._sort(names, *scaling)
        self.h = SimpleNamespace(**self.numbers, **self.flags)
        self.decay = self.rule.decay(self.h)
        self.fallback: Resolved | None = None
        self.made: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {}

    def of(self, p: Tensor) -> Resolved:
        """The rule of one parameter of the group, and its options."""
        return self if self.fallback is None or self.rule.serves(self.h, p) else self.fallback

    def key(self, p: Tensor) -> tuple[Any, ...]:
        """What the jobs of a group depend on, as its options and its first parameter show it."""
        mine = self.of(p)
        own = (self.rule, *self.flags.items(), self.decay, *self.numbers, *mine.rule.slots(mine.h, p))
        return own if self.fallback is None else (*own, self.fallback.rule, *self.fallback.flags.items())

    def _sort(self, names: Iterable[str], grad_scale: Tensor | None, found_inf: Tensor | None) -> None:
        group, structural = self.group, self.rule.structural
        for name in (*names, "max_lr_snapshot"):
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
        self.flags["unscales"] = grad_scale is not None
        if grad_scale is not None:
            scale = self._number(grad_scale)
            # A scale of 0 makes infinities, as a tensor's division does: a GradScaler then skips the step.
            self.numbers["inverse_scale"] = math.inf if isinstance(scale, float) and scale == 0 else 1 / scale
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
        made = self.made.get(key)
        if made is None:
            before = dict(zip(self.rule.carried, carried, strict=True))
            made = self.made[key] = self.known(t, before, dict(traits))
        return made

    def known(self, t: Any, carried: dict[str, Any], traits: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values that the text knows at step t, and the carried scalars after it."""
        c = SimpleNamespace(**carried)
        known = {**self.flags, "decay": self.decay, "t": t, "gain": 1.0, **traits}
        for name, value in self.numbers.items():
            if isinstance(value, tuple):
                suffix = name.removeprefix("betas")
                known.update({f"beta{i + 1}{suffix}": beta for i, beta in enumerate(value)})
            else:
                known[name] = value
        own = self._own_scalars(t, c)
        for name, value in own.items():
            if type(value) is int:
                raise TypeError(
                    f"{self.rule.__name__}: scalars() gives {name}={value}, an int, which is neither a scalar nor a flag; "
                    f"write {value}.0"
                )
        known.update(own)
        if self.decay in ("decoupled", "fixed", "after"):
            if "decay_amount" not in own:
                known["decay_amount"] = self.h.weight_decay if self.decay == "fixed" else decay_amount(self.h)
            known.setdefault("decay_factor", 1 - known["decay_amount"])
        if "step_size" not in known:
            known["step_size"] = known["gain"] if known["lr"] is None else known["lr"] * known["gain"]
        return known, vars(c)

    def _own_scalars(self, t: Any, c: SimpleNamespace) -> dict[str, Any]:
        """The rule's scalars; names that nothing declares are its author's slips."""
        kind = self.rule.__name__
        try:
            own = self.rule.scalars(t, self.h, c)
        except AttributeError as error:
            for name, namespace, declared in (("h", self.h, "is no option"), ("c", c, "`carried` does not declare")):
                if error.obj is namespace:
                    raise AttributeError(f"{kind}: scalars() reads {name}.{error.name}, which {declared}") from None
            raise
        for name in vars(c).keys() - self.rule.carried.keys():
            raise AttributeError(f"{kind}: scalars() assigns c.{name}, which `carried` does not declare")
        return own
