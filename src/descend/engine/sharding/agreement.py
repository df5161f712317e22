"""Before the first step: whether all processes have the same options and the same parameters in the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from descend.engine.sharding.layout import is_dtensor, meshes


def agree(
    kind: str, groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]], process_group: Any = None
) -> None:
    """Compare with the other processes, once: what differs would otherwise be a hang, or a wrong result.

    Args:
        kind: the optimizer's name.
        groups: its parameter groups.
        names: of the options of each group; what else users put into a group is their own.
        process_group: whose processes have other parameters, and the same options.

    Raises:
        RuntimeError: on all of them, naming the first difference.
    """
    spread = [p for group in groups for p in group["params"]]
    for mesh, i in meshes(spread):
        _compare(kind, [*_options(kind, groups, names), *_parameters(groups)], mesh.get_group(i))
    if process_group is not None:
        _compare(kind, _options(kind, groups, names), process_group)


def _options(kind: str, groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]) -> list[str]:
    told = [f"the optimizer is {kind}", f"there are {len(groups)} groups"]
    return told + [
        f"{name} of group {i} is {_plain(group[name])!r}"
        for i, group in enumerate(groups)
        for name in sorted(names[i])
        if name in group
    ]


def _parameters(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"parameter {j} of group {i} is {tuple(p.shape)} of {p.dtype}, {_placements(p)}"
        for i, group in enumerate(groups)
        for j, p in enumerate(group["params"])
    ]


def _placements(p: Any) -> str:
    return str(tuple(p.placements)) if is_dtensor(p) else "whole"


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value


def _compare(kind: str, told: list[str], group: Any) -> None:
    everyone: list[list[str]] = [[] for _ in range(dist.get_world_size(group))]
    dist.all_gather_object(everyone, told, group=group)
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            pairs = zip(everyone[0], other, strict=False)
            first, here = next((pair for pair in pairs if pair[0] != pair[1]), ("there are more parameters", "fewer"))
            raise RuntimeError(
                f"{kind}: processes differ. On rank 0 of the group {first}; on rank {rank} {here}. "
                "Give every process the same options, and the parameters in the same order"
            )
