"""Steps inside backward: every parameter moves as soon as its gradient is there, and the gradient is freed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import nn

from descend.engine.backward_hooks import BackwardHooks, owner_of
from descend.engine.executors.profile import profile
from descend.engine.optimizer import Optimizer
from descend.engine.plan import trial_jobs

Made = TypeVar("Made", bound=Optimizer)


def step_in_backward(model: nn.Module, optimizer_fn: Callable[[Iterable[tuple[str, nn.Parameter]]], Made]) -> Made:
    """An optimizer whose parameters move inside ``loss.backward()``, so that no two gradients have to exist at a time.

    ``optimizer.step()`` then only ends the step, and is still to be called after every backward; ``zero_grad()`` finds
    nothing to free. After an error inside backward it begins the step again: parameters that have moved stay moved.
    Schedulers, hooks of ``step()``, checkpoints and resuming are as they are elsewhere: a backward pass uses the options
    that the groups have at the time. Parameters that are frozen now, and trained later, move in ``step()``. A deep copy
    of the optimizer moves all of its parameters there, and so does the optimizer after ``remove_backward_hooks()``.
    The hooks go with the optimizer when it is dropped.

    What needs all gradients at once cannot be had. ``torch.nn.utils.clip_grad_norm_`` finds no gradients, returns 0 and
    clips nothing, which nobody can notice from within the optimizer: switch off the clipping of a training framework
    (``max_grad_norm=0`` for the Trainer of transformers, whose default is 1.0; ``gradient_clip_val=None`` for
    Lightning), and use an optimizer's own ``update_clip`` or ``adaptive_grad_clip``, which look at one parameter.

    Args:
        model: the module that is trained, also under ``fully_shard``; not inside DistributedDataParallel, which
            averages gradients after they are there.
        optimizer_fn: makes the optimizer from the model's named parameters.

    Returns:
        The optimizer that `optimizer_fn` made.

    Raises:
        TypeError: if it is no optimizer of descend, or wraps one (Lookahead, SAM).
        ValueError: if its rule needs the gradients of all parameters before one moves; the message names the option to
            change; for ``skip_nonfinite`` too. Also for second-order optimizers and for a model in DistributedDataParallel.
        RuntimeError: if another optimizer moves one of the parameters in backward. Later, inside backward, at the second
            gradient of a parameter before ``step()``, by which it does not move: gradient accumulation, or a layer that
            several reentrant activation checkpoints share; and by a GradScaler's step.

    Example:
        >>> import descend
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = descend.step_in_backward(model, lambda params: descend.AdamW(params, lr=1e-2))
        >>> model(torch.ones(2)).sum().backward()
        >>> model.weight.grad is None
        True
        >>> optimizer.step()

    Reference:
        Lv et al., Full Parameter Fine-tuning for Large Language Models with Limited Resources, 2023, arXiv 2306.09782.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "step_in_backward: the model is in DistributedDataParallel, which averages gradients after they are there; "
            "use torch.distributed.fsdp.fully_shard"
        )
    optimizer = optimizer_fn(model.named_parameters())
    _check(optimizer)
    optimizer._in_backward = BackwardHooks(optimizer)
    return optimizer


def _check(optimizer: Optimizer) -> None:
    kind = type(optimizer).__name__
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"step_in_backward: optimizer_fn made a {kind}, expected an optimizer of descend that wraps no other"
        )
    for i, group in enumerate(optimizer.param_groups):
        for j, p in enumerate(group["params"]):
            if (other := owner_of(p)) is not None:
                raise RuntimeError(
                    f"step_in_backward: parameter {optimizer.name_of(i, j)} moves in backward already, by "
                    f"{'this' if other is optimizer else 'another'} {type(other).__name__}; call its "
                    "remove_backward_hooks(), or drop all references to it"
                )
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(f"step_in_backward: {kind} differentiates the gradients, which are to be freed; use another")
    if any(group["skip_nonfinite"] for group in optimizer.param_groups):
        raise ValueError(
            "step_in_backward: skip_nonfinite=True needs all gradients before one parameter moves; set skip_nonfinite=False"
        )
    if any(profile(job.rule, job).overall for job in trial_jobs(optimizer)):
        raise ValueError(
            f"step_in_backward: {kind} needs the gradients of all parameters before one moves; {optimizer.waits_for_all}"
        )
