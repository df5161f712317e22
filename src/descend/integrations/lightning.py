"""For Lightning's Trainer: the modes of schedule-free optimizers."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("descend.integrations.lightning needs the package lightning: pip install lightning") from error


class ScheduleFreeCallback(Callback):
    """Puts the average into the model for each validation and checkpoint, and at the end of training.

    Other optimizers are left alone.

    Raises:
        ValueError: with a ``ModelCheckpoint(save_weights_only=True)``, which asks no callback before it saves.

    Example::

        Trainer(callbacks=[ScheduleFreeCallback()])
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Raise ValueError for checkpoints that would hold the point of training instead of the average."""
        if stage == "fit" and any(getattr(c, "save_weights_only", False) for c in trainer.checkpoint_callbacks):
            raise ValueError(
                "ScheduleFreeCallback: ModelCheckpoint(save_weights_only=True) asks no callback before it saves, and "
                "would save the point of training; save whole checkpoints, or after trainer.fit()"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Put the point of training back."""
        _call(trainer, "train")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the average into the parameters."""
        _call(trainer, "eval")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the average into the parameters and into the checkpoint, which was collected before."""
        _call(trainer, "eval")
        checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
        checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(each) for each in trainer.optimizers]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the average in the parameters."""
        _call(trainer, "eval")


def _call(trainer: Any, mode: str) -> None:
    for optimizer in trainer.optimizers:
        getattr(optimizer, mode, lambda: None)()
