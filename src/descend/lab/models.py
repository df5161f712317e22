"""Models as the names and shapes of their parameters: built in, a configuration file, or what a callable returns."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from descend.lab import configs, own

Shape = tuple[int, ...]
Shapes = list[Shape]


@dataclass(frozen=True)
class Model:
    """The parameters that a model trains.

    Attributes:
        title: what people call it.
        parameters: names and shapes, in the model's order.
        shared: names of parameters that more than one layer uses, whose gradient exists through all of backward.
    """

    title: str
    parameters: tuple[tuple[str, Shape], ...]
    shared: frozenset[str] = frozenset()

    @property
    def shapes(self) -> Shapes:
        """Of the parameters."""
        return [shape for _, shape in self.parameters]

    @property
    def elements(self) -> int:
        """Of all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def layers(self) -> list[list[Shape]]:
        """The parameters of each repeated block, and of all that is in none; what FSDP2 usually gathers at once.

        A block is what a name has up to its first number: `model.layers.3`, `blocks.0`.
        """
        found: dict[str, list[Shape]] = {}
        for name, shape in self.parameters:
            block = re.match(r"(?:.*?\.)?\d+(?=\.)", name)
            found.setdefault(block[0] if block else "", []).append(shape)
        return list(found.values())


def vit_s() -> Shapes:
    """ViT-S/16 at 224 pixels, 1000 classes."""
    width, block = 384, [(384,), (384,), (1152, 384), (1152,), (384, 384), (384,)]
    block += [(384,), (384,), (1536, 384), (1536,), (384, 1536), (384,)]
    stem: Shapes = [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    return [*stem, *block * 12, (width,), (width,), (1000, width), (1000,)]


def resnet50() -> Shapes:
    """ResNet-50, 1000 classes; every convolution is followed by the two vectors of its norm."""
    shapes = _convolution(64, 3, 7)
    width = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(blocks):
            shapes += _convolution(inner, width, 1) + _convolution(inner, inner, 3)
            shapes += _convolution(4 * inner, inner, 1)
            if block == 0:
                shapes += _convolution(4 * inner, width, 1)
            width = 4 * inner
    return [*shapes, (1000, width), (1000,)]


def _convolution(out: int, into: int, size: int) -> Shapes:
    return [(out, into, size, size), (out,), (out,)]


def gpt2() -> Shapes:
    """GPT-2 of 124 M parameters, whose output layer is its embedding."""
    width, norm = 768, [(768,), (768,)]
    attention: Shapes = [(3 * width, width), (3 * width,), (width, width), (width,)]
    perceptron: Shapes = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(50257, width), (1024, width), *[*norm, *attention, *norm, *perceptron] * 12, *norm]


def many_tiny() -> Shapes:
    """150 tensors of 16 elements: what a call costs apart from the work."""
    return [(16,)] * 150


MODELS: Mapping[str, Callable[[], Shapes]] = {
    "vit_s": vit_s,
    "resnet50": resnet50,
    "gpt2": gpt2,
    "many_tiny": many_tiny,
}
TITLES = {"vit_s": "ViT-S/16", "resnet50": "ResNet-50", "gpt2": "GPT-2", "many_tiny": "150 tensors of 16 elements"}


def model_of(words: str) -> Model:
    """A built-in model by its name, a transformers configuration file, or what a callable returns.

    `pkg.module:callable` and `file.py:callable` name one; of `file.py` alone, as a race takes it, it is `model`.

    Nothing is allocated: a callable runs with torch's "meta" as the default device.

    Raises:
        ValueError: if there is no such model; the message says what there is.
    """
    if words in MODELS:
        parameters = tuple((f"parameter {i}", shape) for i, shape in enumerate(MODELS[words]()))
        return Model(TITLES[words], parameters, frozenset(("parameter 0",)) if words == "gpt2" else frozenset())
    made: object
    if words.endswith(".json"):
        made = _of_config(Path(words))
    elif ":" in words or words.endswith(".py"):
        made = _called(words)
    else:
        known = ", ".join(MODELS)
        raise ValueError(
            f"there is no model {words!r}; there are {known}, or write mytask.py, module:callable or a config.json"
        )
    if isinstance(made, Model):
        return made
    model = _described(words, made)
    if not model.parameters:
        raise ValueError(f"{words!r} returned {type(made).__name__}, which has no parameters to train")
    return model


def _of_config(path: Path) -> nn.Module | Model:
    config = configs.read(path)
    made = configs.made_by_transformers(config)
    if made is not None:
        return made
    title, parameters, shared = configs.derived(config, path)
    return Model(title, tuple(parameters), frozenset(shared))


def _called(words: str) -> object:
    try:
        module, name = own.pointed(words)
        call = getattr(module, name or "model")
        with torch.device("meta"):
            return call()
    except Exception as error:  # code of the user's may raise whatever it likes
        raise ValueError(f"{words!r} cannot be called for a model: {type(error).__name__}: {error}") from error


def _described(words: str, made: object) -> Model:
    if isinstance(made, nn.Module):
        kept = [(name, p) for name, p in made.named_parameters() if p.requires_grad]
        uses = Counter(id(p) for _, p in made.named_parameters(remove_duplicate=False))
        shared = frozenset(name for name, p in kept if uses[id(p)] > 1)
        return Model(type(made).__name__, tuple((name, tuple(p.shape)) for name, p in kept), shared)
    tensors = [p for p in made if isinstance(p, Tensor) and p.requires_grad] if isinstance(made, Iterable) else []
    return Model(words, tuple((f"parameter {i}", tuple(p.shape)) for i, p in enumerate(tensors)))
