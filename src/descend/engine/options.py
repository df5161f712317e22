"""The options that every optimizer shares, and the checks of names and parameters."""

from __future__ import annotations

import difflib
import numbers
import operator
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from descend.engine.ranges import ActsWith, Needs, OneOf, Positive
from descend.engine.storage import BITS, DTYPES

Dtype = Annotated[torch.dtype | str, OneOf((*DTYPES.values(), *DTYPES))]
Storage = Annotated[torch.dtype | str, OneOf((*DTYPES.values(), *DTYPES, *BITS))]
NOT_DECOUPLED = "it is a form of decoupled weight decay in units of lr, which is not what this rule does here"
StateDtype = Storage | Mapping[str, Storage] | None


class Common(TypedDict, total=False):
    """Keyword-only options with one name and one meaning on every optimizer, valid in any parameter group.

    Attributes:
        foreach: run as multi-tensor operations. None: torch's own default for the device, and on the CPU for small tensors.
        fused: run as one compiled pass over memory. None: where ``foreach`` is None and one kernel serves all parameters,
            on CUDA with Triton, on Linux for groups of 131,072 elements or more with a C++ compiler; else off.
        capturable: keep the step counter on the parameter's device and never synchronise with the host.
        maximize: ascend instead of descending.
        caution: keep only the components of the step whose sign agrees with the gradient's, scaled up by the share
            kept: u·1[u·g > 0] / max(mean(1[u·g > 0]), 1e-3) (Liang et al., Cautious Optimizers, 2024,
            arXiv 2411.16085).
        corrected_weight_decay: decoupled decay of lr²/max_lr·weight_decay instead of lr·weight_decay, where max_lr is
            the lr given to the constructor (Defazio, Why Gradients Rapidly Increase Near the End of Training, 2025,
            arXiv 2506.02285).
        cautious_weight_decay: decoupled decay only where the parameter and the step have the same sign (Chen et al.,
            Cautious Weight Decay, 2025, arXiv 2510.12402).
        grams: the step's magnitude with the gradient's sign (Cao et al., Grams, 2024, arXiv 2412.17107).
        update_clip: the step's root mean square is brought down to this where it is larger. > 0.
        centralize_grad: gradients of two and more dimensions lose their mean over all dimensions but the first
            (Yong et al., Gradient Centralization, 2020, arXiv 2004.01461).
        adaptive_grad_clip: the norm of every unit's gradient is at most this share of the unit's own norm, which counts
            as at least 1e-3; a unit is a slice of dimension 0, or a whole vector, as in the authors' code (Brock et al.,
            High-Performance Large-Scale Image Recognition Without Normalization, 2021, arXiv 2102.06171). > 0.
        hyperball: the step keeps the norm of the parameter and is measured in it: p' = p − lr·‖p‖·u/‖u‖, then
            p'·‖p‖/‖p'‖; there is no weight decay (Hyperball).
        state_dtype: what state is stored in: a floating-point dtype or its name ("bfloat16"), or "int8" for averages of the parameter's shape, in
            blocks of up to 256 elements with a scale each; what has one dimension, and points in parameter space, stay
            float32. "int4": half of that again, rounded so that the mean over the steps is right; state that
            is too sensitive for that, and blocks of odd length, stay "int8". A mapping from names of the state to these chooses for each.
            None: float32 for half-precision parameters, the parameter's dtype for others.
        master: how half-precision parameters keep what their dtype cannot hold: "kahan", the default, the rounding
            error in the same dtype; "split", the bits that bfloat16 lacks of float32; "stochastic", rounding at random
            whose mean is right. None: rounding to the nearest, which loses small steps.
        skip_nonfinite: leave out a step, on all processes, where a gradient has an infinity or a NaN; takes a pass over
            the gradients, and reads its result back to the host.
        offload_state: the state of parameters on an accelerator is kept in the host's memory, pinned, and visits the device
            batch by batch in every step; the results are the same. For parameters on the CPU it changes nothing.
    """

    foreach: bool | None
    fused: bool | None
    capturable: bool
    maximize: bool
    caution: bool
    corrected_weight_decay: Annotated[
        bool,
        ActsWith("weight_decay", hyperball=False),
        ActsWith(decay=("decoupled", "after", "own"), why=NOT_DECOUPLED),
    ]
    cautious_weight_decay: Annotated[
        bool,
        ActsWith("weight_decay", hyperball=False),
        Needs(decay=("decoupled", "fixed", "after", "own"), why=NOT_DECOUPLED),
    ]
    grams: Annotated[bool, Needs(caution=False)]
    update_clip: Positive | None
    centralize_grad: bool
    adaptive_grad_clip: Positive | None
    hyperball: bool
    state_dtype: StateDtype
    master: Literal["kahan", "split", "stochastic"] | None
    skip_nonfinite: bool
    offload_state: bool


# How a step runs, and how state is stored between two: no part of the mathematics, and so for the optimizer to choose that
# loads what another saved.
EXECUTION_DEFAULTS: Mapping[str, Any] = {
    "foreach": None,
    "fused": None,
    "capturable": False,
    "state_dtype": None,
    "master": "kahan",
    "offload_state": False,
}

COMMON_DEFAULTS: Mapping[str, Any] = {
    **EXECUTION_DEFAULTS,
    "maximize": False,
    "caution": False,
    "corrected_weight_decay": False,
    "cautious_weight_decay": False,
    "grams": False,
    "update_clip": None,
    "centralize_grad": False,
    "adaptive_grad_clip": None,
    "hyperball": False,
    "skip_nonfinite": False,
}


def if_averaged(*on: ActsWith) -> Mapping[str, tuple[Needs, ...]]:
    """What ``caution`` and ``grams`` act with, where only an average can leave the gradient's sign; nothing: never."""
    needs = on or (ActsWith(why="the step has the gradient's sign anyway"),)
    return dict.fromkeys(("caution", "grams"), needs)


def if_decoupled(*on: str) -> Mapping[str, tuple[Needs, ...]]:
    """What the two forms of decoupled decay act with, where it is an option of the rule to decouple."""
    return {"corrected_weight_decay": (ActsWith(*on),), "cautious_weight_decay": (Needs(*on),)}


# Why some optimizers refuse options that others have.
COUPLED_DECAY: Mapping[str, str] = dict.fromkeys(
    ("corrected_weight_decay", "cautious_weight_decay"), "weight decay is part of the gradient here"
)
OWN_DECAY: Mapping[str, str] = dict.fromkeys(COUPLED_DECAY, "weight decay is part of the rule here")
OWN_STEP: Mapping[str, str] = {"hyperball": "the step is more than the learning rate times a direction here"}

# Keys that frameworks put into parameter groups; they only ever look like options.
_KEPT_KEYS = frozenset(
    ("params", "param_names", "name", "names", "lr_scale", "initial_lr", "max_lr", "min_lr", "max_lr_snapshot",
     "layer_scale", "base_momentum", "max_momentum", "differentiable", "use_fallback", "swa_lr", "group_name", "beta1")
)  # fmt: skip

# What other libraries call an option of ours, in the spelling that `_spelling` gives.
_OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "learningrate": ("lr",),
    "wd": ("weight_decay",),
    "decay": ("weight_decay",),
    "epsilon": ("eps",),
    "mom": ("momentum", "betas"),
    "momentums": ("momentum", "betas"),
}
_PYTHONS = frozenset((type(None), bool, int, float, str, torch.dtype))


def plain(value: Any) -> Any:
    """The value with the numbers of other libraries, NumPy's scalars and arrays for example, as Python's own."""
    if type(value) in _PYTHONS or isinstance(value, (Tensor, Mapping)):
        return value
    if isinstance(value, (tuple, list)):
        parts = [plain(part) for part in value]
        if all(map(operator.is_, parts, value)):
            return value
        return parts if isinstance(value, list) else tuple(parts)
    if callable(to_python := getattr(value, "tolist", None)):
        value = to_python()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool) else value


def plain_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group as it is saved, so that any reader can load it; a user's own arrays stay what they are."""
    return {name: plain(value) if getattr(value, "shape", ()) == () else value for name, value in group.items()}


def reject_unknown(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first name in `given` that is not in `known`, with the nearest ones."""
    known = list(known)
    for name in given:
        if name not in known:
            near = _other_name(name, known) or difflib.get_close_matches(name, known, n=2, cutoff=0.6)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?" if near else f"help(descend.{kind}) lists those it has"
            )
            raise TypeError(f"{kind} has no option {name!r}; {hint}")


def reject_misspelt(kind: str, keys: Iterable[str], known: Iterable[str]) -> None:
    """Raise for a group key that is plainly an option misspelt or by another name; other strangers are the user's."""
    known = [k for k in known if k != "params"]
    for key in keys:
        if key in known or key in _KEPT_KEYS or not isinstance(key, str):
            continue
        near = _other_name(key, known) or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near:
            raise ValueError(
                f"{kind}: parameter group key {key!r} looks like a misspelt option; did you mean {near[0]!r}?"
            )


def _other_name(name: str, known: Iterable[str]) -> list[str]:
    """The option that is `name` in another spelling, or by the name that other libraries have for it."""
    by_spelling = {_spelling(option): option for option in known}
    spelling = _spelling(name)
    if spelling in by_spelling:
        return [by_spelling[spelling]]
    return [option for option in _OTHER_NAMES.get(spelling, ()) if option in by_spelling.values()][:1]


def _spelling(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def check_params(kind: str, group: Mapping[str, Any]) -> None:
    """Raise unless a parameter group says which parameters are its own."""
    if "params" not in group:
        near = difflib.get_close_matches("params", group, n=1, cutoff=0.6)
        hint = f"did you mean it by {near[0]!r}?" if near else f"it has {', '.join(map(repr, group)) or 'no keys'}"
        raise ValueError(f"{kind}: a parameter group needs the key 'params', the parameters that are its own; {hint}")
    reject_module(kind, group["params"])


def reject_module(kind: str, params: Any) -> None:
    """Raise TypeError where a module stands for its parameters."""
    if isinstance(params, nn.Module):
        raise TypeError(
            f"{kind}: params is a module ({type(params).__name__}), expected its parameters: pass model.parameters(), or "
            "model.named_parameters(), whose names checkpoints and messages then use"
        )


def check_parameter(kind: str, name: str, p: Any) -> None:
    """Raise unless `p` is a tensor that an optimizer can move, or one that stays as it is: see :func:`moves`."""
    if not isinstance(p, Tensor) or is_lazy(p):
        return
    if not (p.is_leaf or p.retains_grad):
        raise ValueError(f"{kind}: parameter {name} is no leaf but computed from others, expected an nn.Parameter")
    frozen = isinstance(p, nn.Parameter) and not p.requires_grad
    if not (moves(p) or frozen):
        raise ValueError(
            f"{kind}: parameter {name} has dtype {p.dtype}, expected a floating-point dtype of 16 bits or more, or a "
            "complex one; a frozen nn.Parameter may have any"
        )
    if p.layout != torch.strided:
        raise ValueError(f"{kind}: parameter {name} has layout {p.layout}, expected dense (torch.strided)")
    if p.is_conj() or p.is_neg():
        lazy = "conj" if p.is_conj() else "neg"
        raise ValueError(
            f"{kind}: parameter {name} is a lazy view with the {lazy} bit, expected its values: p.resolve_{lazy}()"
        )


def moves(p: Tensor) -> bool:
    """Whether steps can change `p` as it is now.

    Integers and 8-bit floating-point numbers (quantised weights) never move. A lazy parameter does once it has a shape.
    """
    return not is_lazy(p) and (p.is_complex() or (p.is_floating_point() and p.dtype.itemsize > 1))
