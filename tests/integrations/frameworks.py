"""The same training in each framework, whole or from the checkpoint in its middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain import BATCH, EPOCHS, STEPS, TOTAL, Case, Net, Result, loader, mode, schedule
from torch import nn


def transformers(case: Case, folder: Path, resume: bool, model: Any = None) -> Result:
    transformers = pytest.importorskip("transformers")
    from descend.integrations.transformers import ScheduleFreeCallback, optimizer_cls_and_kwargs

    model = model or case.model()
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=TOTAL,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=case.accumulate,
        max_grad_norm=case.clip or 0.0,
        learning_rate=1e-2,
        weight_decay=0.1,
        save_steps=STEPS,
        lr_scheduler_type="linear",
        train_sampling_strategy="sequential",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model,
        args,
        train_dataset=case.data(),
        optimizer_cls_and_kwargs=optimizer_cls_and_kwargs(args, **case.options),
        callbacks=[ScheduleFreeCallback()],
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STEPS}") if resume else None)
    return Result(_net(model).losses, model)


def peft(case: Case, folder: Path, resume: bool) -> Result:
    return transformers(case, folder, resume, adapted(case))


def adapted(case: Case) -> Any:
    """The model with LoRA, whose factors and head are trained. peft keeps factors of half-precision models in float32."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["up"], modules_to_save=["head"])
    return peft.get_peft_model(case.model(), config)


def lightning(case: Case, folder: Path, resume: bool) -> Result:
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from descend.integrations.lightning import ScheduleFreeCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = case.model()

        def training_step(self, batch: Any, i: int) -> Any:
            return self.net(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer = case.optimizer(self.net)
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}]

    module = Module()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accumulate_grad_batches=case.accumulate,
        gradient_clip_val=case.clip,
        callbacks=[ScheduleFreeCallback(), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        default_root_dir=folder,
        **quiet,
    )
    trainer.fit(module, loader(case), ckpt_path=folder / "epoch=0.ckpt" if resume else None)
    return Result(module.net.losses, module.net)


quiet = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def accelerate(case: Case, folder: Path, resume: bool) -> Result:
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=case.accumulate)
    net = case.model()
    optimizer = case.optimizer(net)
    model, optimizer, batches, scheduler = accelerator.prepare(net, optimizer, loader(case), schedule(optimizer))
    if resume:
        accelerator.load_state(str(folder / "epoch-0"))
    for epoch in range(resume, EPOCHS):
        optimizer.train()
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                if case.clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), case.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        optimizer.eval()
        if not resume:
            accelerator.save_state(str(folder / f"epoch-{epoch}"))
    return Result(net.losses, net)


def skorch(case: Case, folder: Path, resume: bool) -> Result:
    skorch = pytest.importorskip("skorch")
    from skorch.callbacks import Callback, Checkpoint, GradientNormClipping

    class Regular(skorch.NeuralNet):  # type: ignore[misc, name-defined]
        def initialize_optimizer(self, *given: Any, **options: Any) -> Any:
            self.optimizer_ = case.optimizer(self.module_)
            return self

        def get_loss(self, y_pred: Any, y_true: Any, *given: Any, **options: Any) -> Any:
            return y_pred["loss"] / case.accumulate

        def train_step(self, batch: Any, **fit_params: Any) -> Any:
            step = self.train_step_single(batch, **fit_params)
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen % case.accumulate == 0:
                named = list(self.module_.named_parameters())
                self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
                self.optimizer_.step()
                self.optimizer_.zero_grad()
                self.scheduler.step()
            return step

    class Scheduled(Callback):  # type: ignore[misc]
        def on_train_begin(self, net: Any, *given: Any, **options: Any) -> None:
            net.scheduler = schedule(net.optimizer_, STEPS if resume else 0)

        def on_epoch_begin(self, net: Any, *given: Any, **options: Any) -> None:
            mode(net.optimizer_, "train")

        def on_epoch_end(self, net: Any, *given: Any, **options: Any) -> None:
            mode(net.optimizer_, "eval")

    files = {f"f_{part}": f"{{last_epoch[epoch]}}-{part}.pt" for part in ("params", "optimizer")}
    checkpoint = Checkpoint(dirname=folder, monitor=None, **files)
    clip = [] if case.clip is None else [GradientNormClipping(case.clip)]
    net = Regular(
        case.model(),
        nn.Identity,
        batch_size=BATCH,
        max_epochs=1 if resume else EPOCHS,
        train_split=None,
        callbacks=[Scheduled(), *clip, *([] if resume else [checkpoint])],
        verbose=0,
    )
    net.initialize()
    if resume:
        net.load_params(**{part: folder / name.format(last_epoch={"epoch": 1}) for part, name in files.items()})
    data = {name: torch.stack([each[name] for each in case.data()]) for name in ("x", "labels")}
    net.partial_fit(data, data["labels"])
    return Result(_net(net.module_).losses, net.module_)


def torch_fsdp2(case: Case, folder: Path, resume: bool) -> Result:
    """FSDP2 on one process, with distributed checkpoints."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model: Any = case.model()
        fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
        optimizer = case.optimizer(model)
        scheduler = schedule(optimizer)

        def saved() -> dict[str, Any]:
            weights, state = get_state_dict(model, optimizer)
            return {"model": weights, "optimizer": state, "scheduler": scheduler.state_dict()}

        if resume:
            parts = saved()
            dcp.load(parts, checkpoint_id=folder / "epoch-0")
            set_state_dict(model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
            scheduler.load_state_dict(parts["scheduler"])
        for epoch in range(resume, EPOCHS):
            mode(optimizer, "train")
            for i, batch in enumerate(loader(case), 1):
                (model(**batch)["loss"] / case.accumulate).backward()
                if i % case.accumulate == 0:
                    if case.clip is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), case.clip)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
            mode(optimizer, "eval")
            if not resume:
                dcp.save(saved(), checkpoint_id=folder / f"epoch-{epoch}")
        plain = case.model()
        plain.load_state_dict({name: value.full_tensor() for name, value in model.state_dict().items()})
        return Result(model.losses, plain)
    finally:
        dist.destroy_process_group()


def _net(model: nn.Module) -> Net:
    return next(module for module in model.modules() if isinstance(module, Net))


FRAMEWORKS = {each.__name__: each for each in (transformers, peft, lightning, accelerate, skorch, torch_fsdp2)}
