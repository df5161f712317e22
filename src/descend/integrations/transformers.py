"""For the Trainer of transformers: optimizers by name or pattern, and the modes of schedule-free ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from descend.catalogue.factory import create_optimizer_v2

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "descend.integrations.transformers needs the package transformers: pip install transformers"
    ) from error


def optimizer_cls_and_kwargs(args: Any, opt: str | None = None, **options: Any) -> tuple[Callable[[], Any], Any]:
    """The Trainer's argument of the same name, for any optimizer of :func:`~descend.create_optimizer_v2`.

    Args:
        args: the Trainer's ``TrainingArguments``. Their ``learning_rate`` and ``weight_decay`` are the optimizer's.
        opt: one of :func:`~descend.list_optimizers`. None: "adamw", or what `options` have as ``rules``.
        **options: further arguments of :func:`~descend.create_optimizer_v2`; `lr` and `weight_decay` replace those of
            `args`.

    Example::

        Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(args, "muon"))
    """
    given = {"lr": args.learning_rate, "weight_decay": args.weight_decay, **options}
    if opt is not None or "rules" not in options:
        given["opt"] = opt or "adamw"
    # The Trainer calls what is no class without arguments, and what that returns with the model.
    return (lambda: create_optimizer_v2), given


class ScheduleFreeCallback(TrainerCallback):
    """Puts the average into the model before each save and evaluation, and at the end.

    The Trainer itself calls ``train()`` before each batch and ``eval()`` before each evaluation, but not before it saves.
    Other optimizers are left alone. A callback that decides when to save stands before this one in the Trainer's list.

    Example::

        Trainer(model, args, train_dataset=data, callbacks=[ScheduleFreeCallback()])
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Put the point of training back."""
        _call(given, "train")

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Put the average into the parameters if they are about to be saved or evaluated."""
        if control.should_save or control.should_evaluate or control.should_training_stop:
            _call(given, "eval")

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Leave the average in the parameters."""
        _call(given, "eval")


def _call(given: dict[str, Any], mode: str) -> None:
    getattr(given.get("optimizer"), mode, lambda: None)()
