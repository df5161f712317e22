"""The parameter shapes that steps are timed on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

Shapes = list[tuple[int, ...]]


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


def shapes_of(model: str) -> Shapes:
    """The shapes of a model by its name, or of what `module:callable` returns.

    Raises:
        ValueError: if there is no such model; the message says what there is.
    """
    if model in MODELS:
        return MODELS[model]()
    module, colon, name = model.partition(":")
    if not colon:
        raise ValueError(f"there is no model {model!r}; there are {', '.join(MODELS)}, or write module:callable")
    try:
        made = getattr(_imported(module), name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"{model!r} cannot be called for a model: {error}") from error
    shapes = [tuple(p.shape) for p in _parameters(made)]
    if not shapes:
        raise ValueError(f"{model!r} returned {type(made).__name__}, which has no parameters to train")
    return shapes


def _imported(module: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look where it is called
        sys.path.append(here)
    return importlib.import_module(module)


def _parameters(made: object) -> Iterable[Tensor]:
    found = made.parameters() if isinstance(made, nn.Module) else made
    if not isinstance(found, Iterable):
        return []
    return [p for p in found if isinstance(p, Tensor) and p.requires_grad]


def _convolution(out: int, into: int, size: int) -> Shapes:
    return [(out, into, size, size), (out,), (out,)]
