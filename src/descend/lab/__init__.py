"""The lab: what people run to compare and look up optimizers (`descend race`, `list`, `show`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from descend.lab.result import Result

__all__ = ["race"]


def race(
    model: Callable[[], Any] | Any,
    train: Any = None,
    *,
    optimizers: str | Sequence[Any] = "adamw,sgd,lion,muon",
    trials: int = 10,
    seeds: int = 5,
    seed: int = 0,
    search_steps: int | None = None,
    weight_decay: float = 1e-3,
    device: str = "cpu",
    **parts: Any,
) -> Result:
    """Race optimizers on a model of your own: an equal search for each, then several seeds.

    Args:
        model: makes the model; or a whole task: a `descend.lab.task.Task`, or one's name.
        train: what to learn from: a data set, a DataLoader, a tuple of tensors, or a function that makes one.
        optimizers: names with options, `"adamw,adamw:caution=true"`, or a list that may hold classes too.
        trials: trials that each optimizer may pay for. > 0.
        seeds: final runs of each. > 0.
        seed: everything random follows from it. >= 0.
        search_steps: length of a trial. None: that of a final run.
        weight_decay: where the search for it begins. >= 0.
        device: where to train.
        **parts: more parts of the task: `validation`, `loss` and `metric` of `(model, batch)`, `higher_is_better`,
            `steps`, `batch`, `target`.

    Returns:
        Every run, the ranking with its ties, and the report; printed, the table.

    Raises:
        ValueError: for a part of the task that is missing or wrong, or an unknown optimizer; the message names it.
    """
    import descend
    from descend.lab.contender import parse
    from descend.lab.racing import Settings
    from descend.lab.racing import race as run
    from descend.lab.result import Result
    from descend.lab.task import Task, make
    from descend.lab.tasks import find

    if isinstance(model, str):
        task = find(model)
    elif isinstance(model, Task):
        task = model
    else:
        task = make(getattr(model, "__name__", "task"), {"model": model, "train": train, **parts})
    contenders = parse(optimizers, descend)  # type: ignore[arg-type]
    steps, batch = parts.get("steps", task.steps), parts.get("batch", task.batch)
    settings = Settings(
        task.name, steps, search_steps or steps, batch, parts.get("target", task.target), trials, seeds, seed,
        weight_decay=weight_decay, device=device, threads=task.threads,
    )  # fmt: skip
    made: Any = descend.create_optimizer_v2
    return Result(run(task, settings, contenders, made), task)
