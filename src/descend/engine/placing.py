"""State that came from elsewhere, a checkpoint or a parameter of another dtype, brought to rest as its options say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from descend.engine.host import is_far, on_host
from descend.engine.resolved import Resolved
from descend.engine.sharding.layout import Layout, fresh, full, layout_of, local
from descend.engine.slots import Slot
from descend.engine.storage import MASTERS_STATE, Blocks, packed, plan_storage, stored_alike, unpacked

#: From here on float32 counts no more.
LARGEST_COUNT = 1 << 24


def placed(
    r: Resolved,
    p: Tensor,
    entry: Mapping[str, Any],
    parameter: str,
    extra: Mapping[str, Slot | float],
    strict: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Copies of a state's tensors in the dtype, layout and device that a parameter's state has here.

    Args:
        r: the parameter's rule, and its options.
        p: the parameter.
        entry: state of any blocks: numbers, tensors, blocks with their scales.
        parameter: how messages call the parameter.
        extra: state besides the rule's: tensors as slots, numbers with their start.
        strict: raise for state that is neither the rule's nor extra.

    Returns:
        The state, and the names of what is neither.

    Raises:
        ValueError: for what is no such state, naming it.
    """
    slots = {**r.rule.slots(r.h, p), **{name: slot for name, slot in extra.items() if isinstance(slot, Slot)}}
    stored, storage = plan_storage(slots, r.h, p)
    layout, device = layout_of(p), p.device if r.h.capturable else torch.device("cpu")
    found: dict[str, Any] = {}
    unknown = []
    for name, value in entry.items():
        try:
            if name == "step":
                found[name] = _count(value, device)
            elif name in r.rule.carried:
                found[name] = _number(value, torch.float64, device)
            elif name in extra and name not in slots:
                found[name] = _number(value, torch.float32, torch.device("cpu"))
            elif name in slots:
                blocks = dict(storage.blocks).get(name)
                found |= _rested(name, value, entry.get(f"{name}_scale"), slots[name], blocks, stored, p, layout)
            elif name in stored and name in MASTERS_STATE:
                start = local(fresh(stored[name], p))
                if _tensor(value, p).dtype == start.dtype:  # what another dtype lacked is no part of this one
                    found[name] = _fitted(_here(_tensor(value, p), layout, stored[name]), start)
            elif name not in MASTERS_STATE and name.removesuffix("_scale") not in slots:  # none of another storage's
                unknown.append(name)
        except ValueError as error:
            raise ValueError(f"state {name!r} {error} for {parameter} of shape {tuple(p.shape)}") from None
        if unknown and strict:
            known = ", ".join(["step", *r.rule.carried, *slots])
            raise ValueError(
                f"state_dict has state {name!r}; this optimizer keeps {known}. Is it another's? strict=False leaves it out"
            )
    if r.h.offload_state and is_far(p):
        found |= {name: on_host(found[name]) for name in found.keys() & stored.keys() - extra.keys()}
    if layout is not None:
        for name in found.keys() & stored.keys():
            slot = stored[name]
            found[name] = layout.wrap(found[name], layout.placed(slot), slot.shape_for(p))
    return found, unknown


def _count(value: Any, device: torch.device) -> Tensor:
    """A step counter, in float64 where float32 would stop."""
    count = _number(value, torch.float64, device, 0.0)
    return count if not count.is_meta and count >= LARGEST_COUNT else count.to(torch.float32)


def _rested(
    name: str,
    value: Any,
    scale: Tensor | None,
    slot: Slot,
    blocks: Blocks | None,
    stored: Mapping[str, Slot],
    p: Tensor,
    layout: Layout | None,
) -> dict[str, Tensor]:
    """The tensors that store a slot's value here, however it was stored where it was saved."""
    start, value = local(fresh(slot, p)), _tensor(value, p)
    by_blocks = Slot(per_block=1)
    value = _here(value, layout, slot if scale is None or value.shape == p.shape else by_blocks)
    if scale is not None:
        scale = _here(scale, layout, by_blocks)
        if blocks is not None and stored_alike(value, scale, blocks, start):
            return {name: value.to(p.device, copy=True), f"{name}_scale": scale.to(p.device, copy=True)}
        value = unpacked(value, scale, slot, start.shape)
    value = _fitted(value, start)
    return (
        {name: value.to(stored[name].dtype or value.dtype)} if blocks is None else packed(name, blocks, stored, value)
    )


def _number(value: Any, dtype: torch.dtype, device: torch.device, least: float = -math.inf) -> Tensor:
    """A number, in whatever form it came, as a 0-d tensor of its own."""
    try:
        number = torch.as_tensor(full(value), dtype=dtype, device=device).clone().reshape(())
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"is {_described(value)}, expected one number") from None
    if not (number.is_meta or least <= number < math.inf):
        raise ValueError(f"is {_described(value)}, expected a finite number{' >= 0' if least == 0 else ''}")
    return number


def _tensor(value: Any, p: Tensor) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(value, device=p.device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"is {_described(value)}, expected a tensor") from None


def _fitted(value: Tensor, start: Tensor) -> Tensor:
    """A value in the shape, dtype, device and memory layout of `start`, which it replaces."""
    if value.numel() != start.numel() or (value.shape != start.shape and value.dim() == start.dim()):
        raise ValueError(f"has shape {tuple(value.shape)}, expected {tuple(start.shape)}")
    if value.is_complex() and not start.is_complex():
        raise ValueError(f"has dtype {value.dtype}, expected {start.dtype}")
    return start.copy_(value.reshape(start.shape))


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.dim() else repr(value)


def _here(value: Tensor, layout: Layout | None, slot: Slot) -> Tensor:
    """This process's piece of a value, wherever it has been."""
    return full(value) if layout is None else layout.here(value, layout.placed(slot))
