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
    procs: int = 1,
    storage: str | None = None,
    join: str | None = None,
    **parts: Any,
) -> Result:
    """Race optimizers on a model of your own: an equal search for each, then several seeds.

    Args:
        model: makes the model; or a whole task: a `descend.lab.task.Task`, or one's name (`"digits-mlp"`, `"mytask.py"`,
            `"pkg.module:task"`).
        train: what to learn from: a data set, a DataLoader, a tuple of tensors, or a function that makes one.
        optimizers: names with options, `"adamw,adamw:caution=true"`, or a list that may hold classes too.
        trials: trials that each optimizer may pay for. > 0.
        seeds: final runs of each. > 0.
        seed: everything random follows from it. >= 0.
        search_steps: length of a trial. None: that of a final run.
        weight_decay: where the search for it begins. >= 0.
        device: where to train.
        procs: processes of this machine that share the work; they find the task and the optimizers by their names. > 0.
        storage: where others may join: a journal file, a `.db` of SQLite, or a URL that Optuna takes. None: nowhere.
        join: the storage of a race that the same call has begun elsewhere with `storage`: work on it until all is done.
        **parts: more parts of the task: `validation`, `loss` and `metric` of `(model, batch)`, `metric_name`,
            `higher_is_better`, `title`; and `steps`, `batch`, `target` and `threads`, of a whole task too.

    Returns:
        Every run, the ranking with its ties, and the report; printed, the table.

    Raises:
        ValueError: for a part of the task that is missing or wrong, or an unknown optimizer; the message names it.
    """
    from descend.lab.calling import race as run

    given = {
        "trials": trials, "seeds": seeds, "seed": seed, "search_steps": search_steps, "weight_decay": weight_decay,
        "device": device,
    }  # fmt: skip
    return run(model, {"train": train, **parts}, optimizers, given, procs, storage, join)
