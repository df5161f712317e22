"""The text of one step: what every rule has around it, in the order that it happens.

:func:`advance` prepares the gradient; :func:`take` goes from the rule's direction to the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from descend.engine.context import Known, State
from descend.engine.storage import ElementRng, StorageSpec
from descend.terms import Quotient, add_product, add_scaled, clip_ratio, finite_else, plus, scale, value_of

Direction = Tensor | Quotient


class Rule(Protocol):
    """The part of an optimizer class that the text needs."""

    reach: ClassVar[Any]
    own_stages: ClassVar[bool]

    @classmethod
    def move(cls, p: Tensor, g: Tensor, s: State, k: Known) -> None:
        """Change the parameter by one step."""

    @classmethod
    def direction(cls, p: Tensor, g: Tensor, s: State, k: Known) -> Direction | tuple[Direction, Any]:
        """The direction in which the parameter descends, and how much of it decays where that is the tensor's own."""


def apply_update(rule: type[Rule], p: Tensor, g: Tensor, s: State, k: Known) -> None:
    """Carry one parameter, or one list of parameters, over one step."""
    if k.unscales:
        g = g * k.inverse_scale
    if k.maximize:
        g = -g
    if k.adaptive_grad_clip is not None:
        g = clip_to_units(g, p, k)
    if k.centralize_grad and k.ndim > 1:
        g = g - k.means_over((g, tuple(range(1, k.ndim))))[0]
    if rule.reach == "matrix":
        g = finite_else(g, 0.0, reads=not k.capturable)  # a NaN would spread over the whole matrix
    if k.decay == "coupled":
        g = plus(g, p, k.weight_decay)
    rule.move(p, g, s, k)


def apply_direction(
    rule: type[Rule], p: Tensor, g: Tensor, s: State, k: Known, rescale: Callable[..., Any] | None = None
) -> None:
    """p ← decay·p − step_size·d: the rule's direction, the stages, weight decay, the rule's rescale, the step."""
    d, amount = given if isinstance(given := rule.direction(p, g, s, k), tuple) else (given, None)
    if has_stages(k) and not rule.own_stages:
        d = shape_direction(value_of(d), g, k)
    if k.hyperball:
        keep_norm(p, value_of(d), k)
        return
    if k.decay in ("decoupled", "fixed"):
        decay_weights(p, d, k, amount)
    elif k.decay == "direction":
        d = plus(value_of(d), p, k.weight_decay if amount is None else amount)
    if rescale is None:
        add_scaled(p, d, -k.step_size)
    else:
        u = value_of(d)
        add_product(p, u, rescale(p, u, k), -k.step_size)
    if k.decay == "after":
        decay_weights(p, d, k, amount)


def compute_update(
    rule: type[Rule],
    storage: StorageSpec,
    compute_dtype: torch.dtype,
    p: Tensor,
    g: Tensor,
    s: Mapping[str, Tensor],
    k: Known,
    rng: ElementRng | None,
    apart: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run the text; every stored tensor with what it becomes. `apart`: on copies, so that nothing changes by itself."""
    p_value, state = storage.load(p, s, compute_dtype)
    if apart:
        p_value, state = p_value.clone(), {name: value.clone() for name, value in state.items()}
    apply_update(rule, p_value, g.to(compute_dtype), State(state), k)
    return storage.store(p, s, p_value, state, rng)


def compute_update_in_lanes(
    rule: type[Rule],
    storage: StorageSpec,
    compute_dtype: torch.dtype,
    p: Sequence[Tensor],
    g: Sequence[Tensor],
    s: Sequence[Mapping[str, Tensor]],
    k: Sequence[Known],
    rng: ElementRng | None,
    apart: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same lane by lane, each an update of its own; lanes share bytes of state."""
    values, states = [], []
    for i in range(storage.lanes):
        p_value, state = storage.load_lane(i, p[i], s[i], compute_dtype)
        if apart:
            p_value, state = p_value.clone(), {name: value.clone() for name, value in state.items()}
        apply_update(rule, p_value, g[i].to(compute_dtype), State(state), k[i])
        values.append(p_value)
        states.append(state)
    return storage.store_lanes(p, s, values, states, rng)


def commit(updated: Iterable[tuple[Tensor, Tensor]], k: Known) -> None:
    """Let every stored tensor become what :func:`compute_update` gave for it."""
    for stored, value in updated:
        if k.skips:
            stored.copy_(torch.where(k.found_inf > 0, stored, value.to(stored.dtype)))
        elif value is not stored:
            stored.copy_(value)


def cast_scalars(k: Known, compute_dtype: torch.dtype) -> Known:
    """Scalars that are tensors, in the dtype of the values that they multiply."""
    for name, value in vars(k).items():
        if isinstance(value, Tensor):
            setattr(k, name, value.to(compute_dtype))
    return k


def has_stages(k: Known) -> bool:
    """Whether anything stands between a rule's direction and the step."""
    return bool(k.caution or k.grams or k.update_clip is not None)


def shape_direction(d: Tensor, g: Tensor, k: Known) -> Tensor:
    """The stages between a rule's direction and the step."""
    if k.caution:
        d = cautious(d, g, k)
    if k.grams:
        d = torch.sign(g) * torch.abs(d)
    if k.update_clip is not None:
        d = d / clip_ratio(k.rms(d) * k.gain, k.update_clip)
    return d


def decay_weights(p: Tensor, d: Direction, k: Known, amount: Any = None) -> None:
    """p ← p − amount·p, by default the group's amount; with the cautious form only where p and d have one sign."""
    if k.cautious_weight_decay:
        opposed = torch.sign(p * value_of(d)).clamp_max(0.0)
        add_scaled(p, p + p * opposed, -(k.decay_amount if amount is None else amount))
    else:
        scale(p, k.decay_factor if amount is None else 1 - amount)


def cautious(d: Tensor, g: Tensor, k: Known) -> Tensor:
    """d·1[d·g > 0] / max(mean(1[d·g > 0]), 1e-3)."""
    agrees = torch.sign(d * g).clamp_min(0.0)
    return d * agrees / torch.clamp(k.mean(agrees), min=1e-3)


def clip_to_units(g: Tensor, p: Tensor, k: Known) -> Tensor:
    """g scaled so that no unit (a slice of dimension 0, or a whole vector) has ‖g‖ > clip·max(‖p‖, 1e-3)."""
    if k.ndim > 1:
        dims = tuple(range(1, k.ndim))
        p_norm, g_norm = map(torch.sqrt, k.dots_over(dims, (p, p), (g, g)))
    else:
        p_norm, g_norm = k.norms(p, g)
    limit = torch.clamp(p_norm, min=1e-3) * k.adaptive_grad_clip
    return g * torch.clamp(limit / torch.clamp(g_norm, min=1e-6), max=1.0)


def keep_norm(p: Tensor, d: Tensor, k: Known) -> None:
    """p ← (p − lr·‖p‖·d/‖d‖) brought back to ‖p‖; a zero parameter takes the plain step."""
    p_norm, d_norm = k.norms(p, d)
    usable = (p_norm > 0) & (d_norm > 0)
    reach = torch.where(usable, p_norm / torch.where(usable, d_norm, 1.0), k.gain) * k.lr
    moved = p - d * reach
    back = torch.where(usable, p_norm / torch.where(usable, k.norm(moved), 1.0), 1.0)
    p.copy_(moved * back)


def decay_amount(h: Any) -> Any:
    """What decoupled decay takes from a parameter in this step, as a share: lr·weight_decay, or the corrected form."""
    return (h.lr * h.lr / h.max_lr_snapshot if h.corrected_weight_decay else h.lr) * h.weight_decay
