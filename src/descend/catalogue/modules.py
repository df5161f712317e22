"""What a model's modules say of its parameters: their names inside wrappers, their kinds, and the order of its blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

Kind = str | type[nn.Module]
Kinds = Kind | Collection[Kind]

#: Kinds of parameters that have a name; every module class is a kind, too.
KINDS = ("norm", "embedding", "bias", "head", "router", "patch", "pooler", "experts")

# Parts of a parameter's name that torch.compile, FSDP and activation checkpointing put there.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

# What output layers are called, outside of numbered blocks.
_HEADS = frozenset(
    ("head", "heads", "lm_head", "classifier", "fc", "output", "output_layer", "to_logits", "logits", "score",
     "qa_outputs", "embed_out", "last_linear")
)  # fmt: skip


def unwrap(model: nn.Module) -> tuple[nn.Module, str]:
    """The user's own module inside its wrappers, and the prefix that they give to its parameters' names."""
    prefix = ""
    while (name := _wrapped_child(model)) is not None:
        model, prefix = model.get_submodule(name), f"{prefix}{name}."
    return model, prefix


def clean(name: str) -> str:
    """A name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def owner_of(model: nn.Module, method: str) -> tuple[nn.Module, str] | None:
    """The module that has a method, the model or what it alone holds (as PeftModel does), and its names' prefix."""
    module, prefix = unwrap(model)[0], ""
    while not (method in vars(module) or hasattr(type(module), method)):
        inside = [(n, child) for n, child in module.named_children() if next(child.parameters(), None) is not None]
        if len(inside) != 1 or next(module.parameters(recurse=False), None) is not None:
            return None
        name, module = inside[0]
        prefix = f"{prefix}{clean(name)}." if clean(name) else prefix
    return module, prefix


def parameters_of(model: nn.Module, kinds: Kinds, argument: str) -> frozenset[nn.Parameter]:
    """The parameters of these kinds, by the modules that hold them.

    Args:
        model: whose parameters.
        kinds: "norm" (torch's normalisation layers and every class with Norm in its name), "embedding" (nn.Embedding,
            and parameters that are called so), "bias", "head" (see :func:`output_layers`), "router" (the gate of a
            mixture of experts), "patch" (patch embeddings), "pooler", "experts" (expert matrices that are stacked in
            one parameter), or module classes.
        argument: the name of the argument that they came by, for the message.

    Raises:
        ValueError: for an unknown kind, with the nearest.
    """
    wanted: tuple[Kind, ...] = (kinds,) if isinstance(kinds, (str, type)) else tuple(kinds)
    for kind in wanted:
        if isinstance(kind, str) and kind not in KINDS:
            near = get_close_matches(kind, KINDS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{argument} has {kind!r}{hint}, expected a module class or one of {', '.join(map(repr, KINDS))}"
            )
    if not wanted:
        return frozenset()
    modules = dict(unwrap(model)[0].named_modules())
    found = {p for layer in output_layers(model) for p in layer.parameters()} if "head" in wanted else set()
    for path, module in modules.items():
        labels: list[str] = []
        for name, p in module.named_parameters(recurse=False):
            labels = labels or list(_labels(modules, path))
            if any(_is_kind(kind, modules, path, labels, name, p) for kind in wanted):
                found.add(p)
    return frozenset(found)


def output_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a model says are its output.

    They are what ``get_classifier()`` or ``get_output_embeddings()`` returns, what ``pretrained_cfg["classifier"]``
    names, or else its last linear layer if that is called head, lm_head, classifier, fc or the like.
    """
    for method in ("get_classifier", "get_output_embeddings"):
        owner = owner_of(model, method)
        found = getattr(owner[0], method)() if owner else None
        if found is not None:
            layers = found if isinstance(found, (tuple, list)) else (found,)
            return [layer for layer in layers if isinstance(layer, nn.Module)]
    inner, _ = unwrap(model)
    named = (getattr(inner, "pretrained_cfg", None) or {}).get("classifier") or ()
    modules = dict(inner.named_modules())
    if layers := [modules[n] for n in ((named,) if isinstance(named, str) else named) if n in modules]:
        return layers
    path, last = last_linear(inner)
    for part in clean(path).split("."):
        if part.isdigit():
            break
        if part in _HEADS and last is not None:
            return [last]
    return []


def last_linear(model: nn.Module) -> tuple[str, nn.Module | None]:
    """The last linear layer in the order of the modules, and its path."""
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else ("", None)


def layers_of_blocks(model: nn.Module) -> dict[str, int]:
    """Number the layers of a model by its blocks, the elements of its longest nn.ModuleList.

    What comes before them is layer 0, a norm behind them joins the last block, and the rest is the layer after it.
    Lists inside of blocks don't count; lists of the same class of blocks do (the encoder's and the decoder's).

    Returns:
        The layer's number for each parameter's name; nothing if there is no list of two blocks or more.
    """
    lists = [
        (f"{clean(path)}.", module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and not any(map(str.isdigit, path.split(".")))
    ]
    if not lists:
        return {}
    block = type(max(lists, key=lambda item: len(item[1]))[1][0])
    alike = [(prefix, len(module)) for prefix, module in lists if type(module[0]) is block]
    starts = {prefix: 1 + sum(n for _, n in alike[:i]) for i, (prefix, _) in enumerate(alike)}
    last = sum(n for _, n in alike)
    norms = parameters_of(model, "norm", "kinds")
    layers: dict[str, int] = {}
    current = 0
    for raw, p in model.named_parameters():
        name = clean(raw)
        prefix = next((prefix for prefix in starts if name.startswith(prefix)), None)
        if prefix is not None:
            current = starts[prefix] + int(name.removeprefix(prefix).partition(".")[0])
        elif current == last and p not in norms:
            current = last + 1
        layers[name] = current
    return layers


def _labels(modules: Mapping[str, nn.Module], path: str) -> Iterator[str]:
    """What the modules from the model to this one are called, and what their classes are, without underscores."""
    parts = path.split(".") if path else []
    for i, part in enumerate(parts, 1):
        for label in (part, type(modules[".".join(parts[:i])]).__name__):
            yield label.lower().replace("_", "")


def _is_kind(
    kind: Kind, modules: Mapping[str, nn.Module], path: str, labels: Collection[str], name: str, p: nn.Parameter
) -> bool:
    module = modules[path]
    if not isinstance(kind, str):
        return isinstance(module, kind)
    if kind == "bias":
        return name.endswith("bias")
    if kind == "norm":
        return is_norm(module)
    if kind == "embedding":
        return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "embed" in name
    if kind == "router":
        return any("router" in label for label in labels) or _is_gate(modules, path)
    if kind == "experts":
        stacked = p.dim() == 3 and not isinstance(module, _ConvNd) and not name.endswith("bias")
        return stacked and any("expert" in label for label in labels)
    word = {"patch": "patchembed", "pooler": "pooler"}.get(kind)
    return word is not None and any(word in label for label in labels)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: one of torch's, or one whose class has Norm in its name."""
    return any("Norm" in base.__name__ for base in type(module).__mro__)


def _is_gate(modules: Mapping[str, nn.Module], path: str) -> bool:
    """Whether a module is, or lies in, what is called gate and stands next to experts."""
    parts: list[Any] = path.split(".")
    return any(
        part == "gate" and any("expert" in name for name, _ in modules[".".join(parts[:i])].named_children())
        for i, part in enumerate(parts)
    )


def _wrapped_child(model: nn.Module) -> str | None:
    """The name of the one module that `model` only wraps; None if `model` is the user's own."""
    if any(hasattr(type(model), method) for method in ("no_weight_decay", "group_matcher")):
        return None
    children = [name for name, _ in model.named_children()]
    for name in _WRAPPERS:
        if name in children:
            return name
    own = next(model.parameters(recurse=False), None)
    return "module" if children == ["module"] and own is None else None
