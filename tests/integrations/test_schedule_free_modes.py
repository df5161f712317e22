"""What frameworks save of a schedule-free training is the average, whether they evaluate before or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import frameworks
import pytest
import torch
from plain import BATCH, CASES, STEPS, TOTAL, loader, train

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("ignore")]
CASE = CASES["schedule_free"]


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close({name.removeprefix("net."): value for name, value in found.items()}, dict(expected))


def test_transformers_saves_the_average(tmp_path: Path) -> None:
    frameworks.transformers(CASE, tmp_path, resume=False)
    from safetensors.torch import load_file

    close(load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors"), train(CASE).middle)


def test_lightning_saves_the_average(tmp_path: Path) -> None:
    frameworks.lightning(CASE, tmp_path, resume=False)
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=False)
    close(saved["state_dict"], train(CASE).middle)
    assert not saved["optimizer_states"][0]["param_groups"][0]["train_mode"]


@pytest.mark.parametrize("best", (False, True), ids=("last", "best"))
def test_transformers_evaluates_the_average_and_ends_with_it(best: bool, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from descend.integrations.transformers import ScheduleFreeCallback, optimizer_cls_and_kwargs

    model = CASE.model()
    args = transformers.TrainingArguments(
        str(tmp_path),
        max_steps=TOTAL,
        per_device_train_batch_size=BATCH,
        max_grad_norm=0.0,
        learning_rate=1e-2,
        weight_decay=0.1,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=STEPS,
        save_steps=STEPS,
        load_best_model_at_end=best,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=CASE.data(),
        eval_dataset=CASE.data(),
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(args, **CASE.options),
        callbacks=[ScheduleFreeCallback()],
    )
    trainer.train()
    plain = train(CASE)
    torch.testing.assert_close([p.detach() for p in model.parameters()], plain.parameters)
    plain.model.eval()
    loss = sum(plain.model(**batch)["loss"].item() for batch in loader(CASE)) / STEPS
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated[-1] == pytest.approx(loss, rel=1e-4)


def test_lightning_refuses_checkpoints_that_ask_no_callback(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    from descend.integrations.lightning import ScheduleFreeCallback

    callbacks = [ScheduleFreeCallback(), ModelCheckpoint(tmp_path, save_weights_only=True)]
    trainer = Trainer(max_steps=1, callbacks=callbacks, default_root_dir=tmp_path, **frameworks.quiet)
    with pytest.raises(ValueError, match="save_weights_only"):
        trainer.fit(BoringModel())
