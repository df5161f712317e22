"""The data and the models of a race: real, small, and on every machine without a download."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Data:
    """Examples to train on and examples to be judged by."""

    inputs: Tensor
    targets: Tensor
    val_inputs: Tensor
    val_targets: Tensor
    note: str

    def order(self, seed: int, steps: int, batch: int) -> Tensor:
        """The examples of each step, `[steps, batch]`: whole passes in an order that only `seed` decides."""
        generator = torch.Generator().manual_seed(seed)
        count = len(self.inputs)
        passes = -(-steps * batch // count)
        order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
        return order[: steps * batch].view(steps, batch)

    def to(self, device: str) -> Data:
        """The same data on another device."""
        return Data(
            self.inputs.to(device),
            self.targets.to(device),
            self.val_inputs.to(device),
            self.val_targets.to(device),
            self.note,
        )

    def fingerprint(self) -> str:
        """A hash of every example, so that two reports can be known to speak of the same data."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets, self.val_inputs, self.val_targets):
            digest.update(tensor.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """One thing to learn: its data, its model, how it is judged, and how long it takes by default."""

    name: str
    title: str
    metric: str
    target: float
    steps: int
    batch: int
    threads: int
    load: Callable[[], Data]
    model: Callable[[], nn.Module]

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is one to raise."""
        return self.metric == "accuracy"

    def reached(self, metric: float, target: float) -> bool:
        """Whether `metric` is as good as `target`."""
        return metric >= target if self.higher_is_better else metric <= target

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over every prediction of the batch, in float32 whatever the model's dtype."""
        return F.cross_entropy(model(inputs).float().flatten(0, -2), targets.flatten().long())

    @torch.no_grad()
    def judge(self, model: nn.Module, data: Data) -> tuple[float, float]:
        """Loss and metric on the validation examples."""
        model.eval()
        loss, right, count = 0.0, 0.0, 0
        for inputs, targets in zip(*(torch.split(x, 256) for x in (data.val_inputs, data.val_targets)), strict=True):
            logits, wanted = model(inputs).float().flatten(0, -2), targets.flatten().long()
            loss += F.cross_entropy(logits, wanted, reduction="sum").item()
            right += (logits.argmax(-1) == wanted).sum().item()
            count += len(wanted)
        model.train()
        return loss / count, (right if self.metric == "accuracy" else loss) / count


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


def tasks() -> dict[str, Task]:
    """Every task by its name."""
    every = (
        Task("digits-conv", "a small ConvNet on handwritten digits", "accuracy", 0.975, 100, 128, 1, digits, ConvNet),
        Task("digits-vit", "a small ViT on handwritten digits", "accuracy", 0.93, 250, 128, 1, digits, ViT),
        Task("gpt", "a byte-level GPT on Python's standard library", "loss", 2.4, 300, 32, 2, stdlib_source, GPT),
    )
    return {task.name: task for task in every}
