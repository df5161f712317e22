"""The training that every framework repeats: a model that notes its losses, data in order, and the loop by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import descend

EPOCHS, STEPS, BATCH, TOKENS, WORDS = 2, 3, 4, 8, 16
TOTAL = EPOCHS * STEPS


@dataclass(frozen=True)
class Case:
    """What is trained how: arguments of :func:`descend.create_optimizer_v2`, and what frameworks do about gradients."""

    options: Mapping[str, Any] = field(default_factory=lambda: {"opt": "adamw"})
    dtype: torch.dtype = torch.float32
    clip: float | None = None
    accumulate: int = 1

    def model(self) -> Net:
        torch.manual_seed(0)
        return Net().to(self.dtype)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return descend.create_optimizer_v2(model, lr=1e-2, weight_decay=0.1, **self.options)

    def data(self) -> list[dict[str, Tensor]]:
        """The examples of an epoch."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(WORDS, (STEPS * self.accumulate * BATCH, 2, TOKENS), generator=generator)
        return [{"x": x, "labels": labels} for x, labels in tokens]


RULES = {"rules": [("*up.*weight", "muon", {"lr": 0.02}), ("*", "adamw")]}
CASES = {
    "plain": Case(),
    "mixture": Case(RULES),
    "int8_bf16": Case({"opt": "adamw", "state_dtype": "int8"}, torch.bfloat16),
    "clipped": Case(clip=0.05),
    "accumulated": Case(accumulate=2),
    "schedule_free": Case({"opt": "schedulefreeadamw"}),
    "all_together": Case({**RULES, "state_dtype": "int8"}, torch.bfloat16, clip=0.05, accumulate=2),
}


class Net(nn.Module):
    """Notes the loss of each batch that it is trained with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 32)
        self.up = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, WORDS)
        self.losses: list[float] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.norm(torch.tanh(self.up(self.embed(x)))))
        loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())
        if self.training:
            self.losses.append(loss.item())
        return {"loss": loss, "logits": logits}


def loader(case: Case) -> torch.utils.data.DataLoader[dict[str, Tensor]]:
    return torch.utils.data.DataLoader(case.data(), BATCH)  # type: ignore[arg-type]


def schedule(optimizer: torch.optim.Optimizer, done: int = 0) -> torch.optim.lr_scheduler.LambdaLR:
    """The Trainer's linear one, without a warm-up."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (TOTAL - step) / TOTAL), done - 1)


def mode(optimizer: Any, name: str) -> None:
    """Call ``train`` or ``eval`` of a schedule-free optimizer."""
    getattr(optimizer, name, lambda: None)()


@dataclass
class Result:
    """What a training leaves behind; of the loop by hand also what it would save after the first epoch."""

    losses: list[float]
    model: nn.Module
    middle: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = [p.detach().clone() for p in self.model.parameters()]


def train(case: Case, model: nn.Module | None = None) -> Result:
    """The loop by hand."""
    model = model or case.model()
    optimizer = case.optimizer(model)
    scheduler = schedule(optimizer)
    losses, saved = [], []
    for _ in range(EPOCHS):
        mode(optimizer, "train")
        for i, batch in enumerate(loader(case), 1):
            loss = model(**batch)["loss"]
            losses.append(loss.item())
            (loss / case.accumulate).backward()
            if i % case.accumulate == 0:
                if case.clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), case.clip)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        mode(optimizer, "eval")
        saved.append({name: value.clone() for name, value in model.state_dict().items()})
    return Result(losses, model, saved[0])
