"""Optimizers for torch's own wrapper that gives each process some of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from descend.engine.optimizer import Optimizer

Made = TypeVar("Made", bound=Optimizer)


def partitioned(kind: Callable[..., Made], process_group: Any = None) -> Callable[..., Made]:
    """An optimizer class for ``torch.distributed.optim.ZeroRedundancyOptimizer``, with sums over all tensors right.

    That wrapper gives every process whole parameters, but each only some of them. Rules that look at one parameter at a
    time need nothing; sums over all tensors, such as Lamb's clipping and Prodigy's distance, have to go over the
    processes, which this sees to.

    Args:
        kind: an optimizer class of descend.
        process_group: the wrapper's; None: all processes.

    Returns:
        What to give as ``optimizer_class``.

    Example:
        >>> import descend
        >>> from functools import partial
        >>> from torch.distributed.optim import ZeroRedundancyOptimizer
        >>> sharded = partial(ZeroRedundancyOptimizer, optimizer_class=descend.partitioned(descend.Lamb), lr=1e-3)
    """

    def make(params: Any, **options: Any) -> Made:
        optimizer = kind(params, **options)
        optimizer.sum_over(dist.group.WORLD if process_group is None else process_group)
        return optimizer

    return make
