"""Saving and loading optimizer state: named, versioned, in the dtypes that were asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from descend.engine.offload import is_far, on_host
from descend.engine.options import plain_group
from descend.engine.sharding.layout import Layout, fresh, full, layout_of, local
from descend.engine.slots import Slot
from descend.engine.storage import MASTERS_STATE, packed, rest, rests_alike, unpacked

if TYPE_CHECKING:
    from descend.engine.optimizer import Optimizer

FORMAT = 1
# How and where state rests is for the optimizer that loads to choose; what it loads is converted.
_OWN = ("state_dtype", "master", "offload_state")
_FORMAT_KEY = "descend_format"
_NAME_KEY = "descend_optimizer"
# What timm and torch keep in a state beside a rule's slots, and we need not.
_FOREIGN_KEYS = frozenset(("RMS", "hessian step", "exp_avg_lr_2"))


def stamped(state_dict: dict[str, Any], kind: str) -> dict[str, Any]:
    """The state_dict with the optimizer's name and the version of the format, and numbers as Python's own."""
    groups = [plain_group(group) for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups, _FORMAT_KEY: FORMAT, _NAME_KEY: kind}


def load(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Load a state_dict of ours, of timm's or of torch's; see ``Optimizer.load_state_dict``."""
    given = dict(state_dict)
    for hook in optimizer._optimizer_load_state_dict_pre_hooks.values():
        changed = hook(optimizer, given)
        if changed is not None:
            given = changed
    kind = type(optimizer).__name__
    if given.get(_FORMAT_KEY, FORMAT) > FORMAT:
        raise ValueError(f"{kind}: state_dict has format {given[_FORMAT_KEY]}, this version reads up to {FORMAT}")
    if given.get(_NAME_KEY, kind) != kind:
        raise ValueError(f"{kind}: state_dict is one of {given[_NAME_KEY]}, expected one of {kind}")
    saved_groups = [copy.deepcopy(group) for group in given["param_groups"]]  # no group shares a tensor with another
    _check_groups(optimizer, saved_groups)
    state: dict[Tensor, dict[str, Any]] = {}
    matched = set()
    for p, group, index, saved_group in _pairs(optimizer, saved_groups):
        matched.add(index)
        if index in given["state"]:
            entry = _adopt(optimizer, given["state"][index], saved_group)
            state[p] = _placed(optimizer, p, {**group, **_options(saved_group)}, entry)
    others = {key: value for key, value in given["state"].items() if key not in matched and not isinstance(key, int)}

    groups = [
        {**group, **_options(saved), "params": group["params"]}
        for group, saved in _group_pairs(optimizer, saved_groups)
    ]
    optimizer.__setstate__({"state": {**state, **others}, "param_groups": groups})
    optimizer.state = _default_dict(optimizer.state)
    for post_hook in optimizer._optimizer_load_state_dict_post_hooks.values():
        post_hook(optimizer)


def _default_dict(state: Mapping[Any, Any]) -> Any:
    from collections import defaultdict

    return defaultdict(dict, state)


def _options(saved_group: Mapping[str, Any]) -> dict[str, Any]:
    others = ("params", "param_names", "step", *_OWN)
    return {name: value for name, value in saved_group.items() if name not in others}


def _check_groups(optimizer: Optimizer, saved: list[dict[str, Any]]) -> None:
    kind = type(optimizer).__name__
    own = optimizer.param_groups
    if len(own) != len(saved):
        raise ValueError(f"{kind}: state_dict has {len(saved)} parameter groups, expected {len(own)}")
    if _by_name(optimizer, saved):
        return
    for i, (group, saved_group) in enumerate(zip(own, saved, strict=True)):
        if len(group["params"]) != len(saved_group["params"]):
            raise ValueError(
                f"{kind}: group {i} of the state_dict has {len(saved_group['params'])} parameters, "
                f"expected {len(group['params'])}"
            )


def _by_name(optimizer: Optimizer, saved: list[dict[str, Any]]) -> bool:
    named = all("param_names" in group for group in (*optimizer.param_groups, *saved))
    if not named:
        return False
    own_names = {name for group in optimizer.param_groups for name in group["param_names"]}
    return own_names == {name for group in saved for name in group["param_names"]}


def _group_pairs(optimizer: Optimizer, saved: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each own group with the saved group that its first parameter was in."""
    if not _by_name(optimizer, saved):
        yield from zip(optimizer.param_groups, saved, strict=True)
        return
    home = {name: group for group in saved for name in group["param_names"]}
    for group, fallback in zip(optimizer.param_groups, saved, strict=True):
        yield group, home[group["param_names"][0]] if group["param_names"] else fallback


def _pairs(
    optimizer: Optimizer, saved: list[dict[str, Any]]
) -> Iterator[tuple[Tensor, dict[str, Any], Any, dict[str, Any]]]:
    """Each parameter and its group with the saved index and group that belong to it."""
    if _by_name(optimizer, saved):
        home = {
            name: (index, group)
            for group in saved
            for name, index in zip(group["param_names"], group["params"], strict=True)
        }
        for group in optimizer.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                yield p, group, *home[name]
        return
    for group, saved_group in zip(optimizer.param_groups, saved, strict=True):
        for p, index in zip(group["params"], saved_group["params"], strict=True):
            yield p, group, index, saved_group


def _adopt(optimizer: Optimizer, entry: Mapping[str, Any], saved_group: Mapping[str, Any]) -> dict[str, Any]:
    """State as we name it: steps counted for the group or not at all, lists, and names that timm or torch has for it."""
    adopted = {name: value for name, value in entry.items() if name not in _FOREIGN_KEYS and value is not None}
    for name in [name for name, value in adopted.items() if isinstance(value, list)]:
        adopted |= {f"{name}_{i}": value for i, value in enumerate(adopted.pop(name))}
    for theirs, ours in optimizer.foreign_names.items():
        if theirs in adopted:
            adopted[ours] = adopted.pop(theirs)
    if adopted and "step" not in adopted:
        adopted["step"] = saved_group.get("step", 1)
    return adopted


def _placed(optimizer: Optimizer, p: Tensor, group: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Copies of the tensors in the dtype, layout and device that this optimizer keeps them in."""
    kind = type(optimizer).__name__
    h = SimpleNamespace(**{**optimizer.defaults, **group})
    slots = optimizer.slots(h, p)
    resting, rests = rest(slots, h, p)
    blocks = dict(rests.blocks)
    layout = layout_of(p)
    placed: dict[str, Any] = {}
    for name, value in entry.items():
        scalar = name == "step" or name in optimizer.carried
        if scalar:
            device = p.device if h.capturable else "cpu"
            dtype = torch.float32 if name == "step" else torch.float64
            placed[name] = torch.as_tensor(value, dtype=dtype, device=device).clone().reshape(())
        elif name in slots:
            start = local(fresh(slots[name], p))
            value, scale = torch.as_tensor(value), entry.get(f"{name}_scale")
            by_blocks = Slot(per_block=1)
            value = _here(value, layout, slots[name] if scale is None or value.shape == p.shape else by_blocks)
            if scale is not None:
                scale = _here(scale, layout, by_blocks)
                if name in blocks and rests_alike(value, scale, blocks[name], start):
                    placed[name] = value.to(p.device, copy=True)
                    placed[f"{name}_scale"] = scale.to(p.device, copy=True)
                    continue
                value = unpacked(value, scale, slots[name], start.shape)
            if value.numel() != start.numel() or (value.shape != start.shape and value.dim() == start.dim()):
                raise ValueError(
                    f"{kind}: state {name!r} has shape {tuple(value.shape)}, expected {tuple(start.shape)} "
                    f"for a parameter of shape {tuple(p.shape)}"
                )
            value = start.copy_(value.reshape(start.shape))
            if name in blocks:
                placed |= packed(name, blocks[name], resting, value)
            else:
                placed[name] = value.to(resting[name].dtype or value.dtype)
        elif name in resting:
            if not name.endswith("_scale"):
                placed[name] = _here(value, layout, resting[name]).to(p.device, copy=True)
        elif name in MASTERS_STATE or name.removesuffix("_scale") in slots:
            continue  # of another storage than this optimizer's
        elif name in optimizer.extra_state:
            placed[name] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        else:
            known = ", ".join(["step", *optimizer.carried, *slots])
            raise ValueError(f"{kind}: state_dict has state {name!r}; this optimizer keeps {known}. Is it another's?")
    if h.offload_state and is_far(p):
        placed |= {name: on_host(placed[name]) for name in placed.keys() & resting.keys()}
    if layout is not None:
        for name in placed.keys() & resting.keys():
            slot = resting[name]
            placed[name] = layout.wrap(placed[name], layout.placed(slot), slot.shape_for(p))
    return placed


def _here(value: Tensor, layout: Layout | None, slot: Slot) -> Tensor:
    """This process's piece of a value, wherever it has been."""
    return full(value) if layout is None else layout.here(value, layout.placed(slot))
