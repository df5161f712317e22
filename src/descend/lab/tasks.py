"""The data and the models of a race: real, small, and on every machine without a download."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from descend.lab import small_tasks
from descend.lab.task import Data, Task, accuracy, read


def digits() -> Data:
    """The 1,797 handwritten digits of scikit-learn, 8x8; a third of them, the same ones always, for validation."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    labels = torch.tensor(bunch.target, dtype=torch.long)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    val, train = order[:599], order[599:]
    note = (
        f"scikit-learn's handwritten digits, 8x8 grey pixels: {len(train):,} images to train on, "
        f"{len(val):,} for validation."
    )
    return Data(images[train], labels[train], images[val], labels[val], note)


def stdlib_source(folder: Path | None = None, context: int = 64, file_cap: int = 32768) -> Data:
    """Bytes of the top-level modules of Python's standard library; every eighth module for validation."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata* is written when Python is built and differs on every machine.
    files = sorted(f for f in folder.glob("*.py") if not f.name.startswith("_sysconfigdata"))
    if len(files) < 16:
        raise FileNotFoundError(
            f"the gpt task reads the source of Python's standard library, and {folder} has {len(files)} .py files; "
            "run a Python that is installed with its sources, or race on digits-conv or digits-vit"
        )

    def windows(part: list[Path], stride: int) -> tuple[Tensor, Tensor]:
        text = b"".join(f.read_bytes()[:file_cap] for f in part)
        cut = torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, context + 1, stride)
        return cut[:, :-1], cut[:, 1:]

    train = [f for i, f in enumerate(files) if i % 8 != 3]
    val = [f for i, f in enumerate(files) if i % 8 == 3]
    inputs, targets = windows(train, context)
    val_inputs, val_targets = windows(val, context)
    pick = torch.linspace(0, len(val_inputs) - 1, min(128, len(val_inputs))).long()
    note = (
        f"The source text of Python {sys.version_info.major}.{sys.version_info.minor}'s own standard library, "
        f"byte by byte: {len(train)} modules ({inputs.numel() / 1e6:.1f} MB) to train on, "
        f"{len(pick)} stretches from {len(val)} other modules for validation."
    )
    return Data(inputs, targets, val_inputs[pick], val_targets[pick], note)


class ConvNet(nn.Sequential):
    """Three convolutions with batch norm for 8x8 images."""

    def __init__(self, width: int = 16) -> None:
        def block(inside: int, outside: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
            return [convolution, nn.BatchNorm2d(outside), nn.ReLU()]

        super().__init__(
            *block(1, width, 1),
            *block(width, 2 * width, 2),
            *block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, 10),
        )


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def attend(self, x: Tensor) -> Tensor:
        """Multi-head attention."""
        batch, length, dim = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out, because torch's fused attention cannot be differentiated twice (Adahessian must).
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, dim))

    def forward(self, x: Tensor) -> Tensor:
        """One block of the residual stream."""
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer for 8x8 images: sixteen patches of 2x2."""

    def __init__(self, dim: int = 48, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 2, 2)
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the ten digits."""
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class GPT(nn.Module):
    """A byte-level language model."""

    def __init__(self, dim: int = 64, depth: int = 2, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, dim)
        self.position = nn.Parameter(0.02 * torch.randn(context, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 256, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the byte after each byte."""
        x = self.embed(text.long()) + self.position[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class GRU(nn.Module):
    """A recurrent byte-level language model."""

    def __init__(self, dim: int = 32, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, dim)
        self.cell = nn.GRU(dim, width, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the byte after each byte."""
        return self.head(self.cell(self.embed(text.long()))[0])


def short_source() -> Data:
    """Shorter stretches of the standard library: a recurrence goes through them byte by byte."""
    return stdlib_source(context=32)


def tasks() -> dict[str, Task]:
    """Every task by its name."""
    conv, vit = "a small ConvNet on handwritten digits", "a small ViT on handwritten digits"
    gpt, gru = "a byte-level GPT on Python's standard library", "a GRU on Python's standard library"
    right: dict[str, Any] = {"metric": accuracy, "metric_name": "accuracy", "higher_is_better": True}
    every = (
        Task("digits-conv", ConvNet, digits, conv, target=0.975, steps=100, batch=128, **right),
        Task("digits-vit", ViT, digits, vit, target=0.93, steps=250, batch=128, **right),
        Task("gpt", GPT, stdlib_source, gpt, target=2.4, steps=300, batch=32, threads=2),
        Task("gru", GRU, short_source, gru, target=2.6, steps=150, batch=16),
        *small_tasks.tasks(digits),
    )
    return {task.name: task for task in every}


def find(name: str) -> Task:
    """A task of the lab by its name, or the user's own: `mytask.py` or `pkg.module:task`.

    Raises:
        ValueError: if there is none, or it lacks a part.
    """
    if name.endswith(".py") or ":" in name:
        return read(name)
    every = tasks()
    if name not in every:
        raise ValueError(
            f"there is no task {name!r}; there are {', '.join(every)}, and your own as mytask.py or pkg.module:task"
        )
    return every[name]
