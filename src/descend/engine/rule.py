"""A rule: what an optimizer's mathematics consists of. Rules see values; they know nothing of optimizers or executors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from descend.engine.context import Known, State
from descend.engine.ranges import Needs
from descend.engine.slots import Slot
from descend.engine.update import Direction, apply_direction

Reach = Literal["elementwise", "tensor", "rows", "matrix"]
Decay = Literal["none", "coupled", "decoupled", "fixed", "direction", "after", "own"]
Totals = Sequence[tuple[Tensor, ...]]


class Rule:
    """The mathematics of one optimizer: its state, its scalars, its direction.

    All parts are static or class methods: a rule is never instantiated, and has no state of its own.
    """

    reach: ClassVar[Reach] = "elementwise"
    #: Whether a rule of reach "rows" tells no dimensions apart but the first: its sums go over units and over all.
    by_units: ClassVar[bool] = False
    #: Whether ``torch.vmap`` can take the lines, so that parameters of one shape move as one stack. None: not those of a
    #: rule of matrices, which may depend on what numbers are.
    stacks: ClassVar[bool | None] = None
    #: State names that checkpoints of timm or torch use for ours; None: state that we need not keep.
    foreign_names: ClassVar[Mapping[str, str | None]] = {}
    #: Scalars that a parameter carries from step to step on the host, with their start.
    carried: ClassVar[Mapping[str, float]] = {}
    #: Numeric options that shape the text (iteration counts), and so are flags rather than scalars.
    structural: ClassVar[frozenset[str]] = frozenset()
    #: Common options that the rule cannot honour, with the reason.
    refused: ClassVar[Mapping[str, str]] = {}
    #: Common options that act in this rule only with others.
    acts_with: ClassVar[Mapping[str, tuple[Needs, ...]]] = {}
    #: Whether direction() shapes its momentum by the stages itself, with shape_direction(), before it goes on.
    own_stages: ClassVar[bool] = False
    #: What to change where a step must not wait for the gradients of all parameters.
    waits_for_all: ClassVar[str] = ""

    @staticmethod
    def slots(h: Any, p: Tensor) -> dict[str, Slot]:
        """The state that the rule keeps for parameter `p` under the options `h`."""
        return {}

    @staticmethod
    def traits(h: Any, p: Tensor) -> dict[str, Any]:
        """Flags that depend on the parameter's shape: which way of a rule with several ways it goes."""
        return {}

    @staticmethod
    def scalars(t: Any, h: Any, c: Any) -> dict[str, Any]:
        """The scalars of step `t` (1 at a parameter's first), from the options `h` and what is carried, `c`.

        Arithmetic only, so that the same lines run on Python floats and, with ``capturable``, on 0-d tensors. Every
        numeric option is known to the text anyway. ``gain`` multiplies the lr; carried scalars are assigned on `c`.
        """
        return {}

    @staticmethod
    def direction(p: Tensor, g: Tensor, s: State, k: Known) -> Direction | tuple[Direction, Any]:
        """Move the state `s` by the gradient `g` and return the direction in which the parameter descends.

        As a pair with how much of the parameter decays, where that is not the group's ``decay_amount`` (or
        ``weight_decay``, where :meth:`decay` says "direction").
        """
        raise NotImplementedError("an optimizer defines direction(p, g, s, k), or move(p, g, s, k)")

    @staticmethod
    def rescale(p: Tensor, u: Tensor, k: Known) -> Any:
        """The factor on the step `u` of a whole tensor, such as a trust ratio; weight decay has entered by now."""
        return 1.0

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        """Change `p` itself: the door for rules that move other points than the parameter."""
        apply_direction(cls, p, g, s, k, None if cls.rescale is Rule.rescale else cls.rescale)

    @staticmethod
    def decay(h: Any) -> Decay:
        """Where weight decay enters.

        "coupled": weight_decay·p is added to the gradient. "direction": it is added to the direction, after the stages.
        "decoupled": ``decay_amount``·p, by default lr·weight_decay·p, is taken from the parameter before its step, and
        with "after" behind it; "fixed" is "decoupled" whatever lr is. "own": by the rule's lines. "none": nowhere.
        """
        return "decoupled" if hasattr(h, "weight_decay") else "none"

    @classmethod
    def foreign_state(cls, h: Any, p: Tensor) -> dict[str, Any]:
        """What timm reads from the state of parameter `p`, and follows from the options here: saved, never kept."""
        return {}

    @staticmethod
    def check(h: Any) -> None:
        """Raise ValueError where options contradict each other."""

    @staticmethod
    def needs_whole(h: Any) -> str:
        """Why no parameter may be spread over processes, and what to do; empty where they may."""
        return ""

    @classmethod
    def serves(cls, h: Any, p: Tensor) -> bool:
        """Whether the rule moves this parameter; elsewhere the group's fallback does."""
        return True

    @classmethod
    def fallback(cls, h: Any) -> tuple[type[Rule], Mapping[str, Any]] | None:
        """The rule of parameters that this one does not serve, and its options; None: it serves all."""
        return None

    @classmethod
    def check_mode(cls, group: Mapping[str, Any]) -> None:
        """Raise RuntimeError where the parameters are not what gradients belong to."""

    @classmethod
    def before_step(cls, jobs: Sequence[Any], groups: Sequence[dict[str, Any]]) -> None:
        """Find what the parameters' step needs besides their gradients, and write it into their state.

        Args:
            jobs: the parameters that are about to move, each with `param`, `grad`, `state`, `known` and `group`.
            groups: the rule's parameter groups.
        """

    @classmethod
    def after_step(cls, groups: Sequence[dict[str, Any]], totals: Totals, found_inf: Tensor | None) -> None:
        """Write into the groups what follows from the step's sums over all tensors.

        Args:
            groups: the rule's parameter groups.
            totals: the sums, a tuple for each time that the rule asked.
            found_inf: under ``capturable``, whether a GradScaler skips the step.
        """
