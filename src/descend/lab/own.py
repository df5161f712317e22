"""The user's own optimizers: classes of a file or a module, registered for this process."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from descend.catalogue.default import default_registry
from descend.catalogue.info import OptimInfo


def register(source: str) -> list[str]:
    """Give the optimizers of a file, of a module, or one class (`pkg.module:Class`) names in the catalogue.

    Returns:
        Their names: those of the classes, in lower case.

    Raises:
        ValueError: if the source cannot be imported, or has no optimizer; the message says which.
    """
    try:
        found, name = pointed(source)
        kinds = [getattr(found, name)] if name else list(_optimizers(found))
    except Exception as error:  # a file of the user's may raise whatever it likes
        raise ValueError(f"{source!r} cannot be imported: {type(error).__name__}: {error}") from error
    for kind in kinds:
        if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
            raise ValueError(f"{source!r} is {kind!r}, expected a class that derives from torch.optim.Optimizer")
    if not kinds:
        raise ValueError(f"{source!r} defines no optimizer: no class of it derives from torch.optim.Optimizer")
    return [registered(kind) for kind in kinds]


def pointed(source: str) -> tuple[ModuleType, str]:
    """The module of `file.py`, `file.py:name`, `pkg.module` or `pkg.module:name`, and the name in it; "": none."""
    module, _, name = source.partition(":") if not source.endswith(".py") else (source, "", "")
    return load(Path(module)) if module.endswith(".py") else imported(module), name


def imported(module: str) -> ModuleType:
    """A module, looked for where the command was called too."""
    here = str(Path.cwd())
    if here not in sys.path:  # a console script does not look where it is called
        sys.path.append(here)
    return importlib.import_module(module)


def load(path: Path) -> ModuleType:
    """A file as a module."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and pickle look a class up by its module's name
    spec.loader.exec_module(module)
    return module


def _optimizers(module: ModuleType) -> Iterable[Any]:
    """Optimizers that a module defines, those that it only imports left out."""
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind.__module__ == module.__name__:
            yield kind


def registered(kind: type[torch.optim.Optimizer]) -> str:
    """The name of a class in the catalogue, which it has from now on."""
    name, registry = kind.__name__.lower(), default_registry()
    if name in registry.list_optimizers():
        there = registry.get_optimizer_info(name).opt_class
        if there is kind:
            return name
        if isinstance(there, str):
            raise ValueError(
                f"{kind.__name__} has the name of an optimizer of the catalogue; give the class another, or derive one of "
                "another name from it"
            )
    takes = set(_options(kind))
    betas = inspect.signature(kind).parameters.get("betas")
    info = OptimInfo(
        name,
        kind,
        (inspect.getdoc(kind) or "").partition("\n")[0] if kind.__doc__ else "",
        has_eps="eps" in takes,
        has_momentum="momentum" in takes,
        has_betas="betas" in takes,
        num_betas=len(betas.default) if betas is not None and isinstance(betas.default, tuple) else 2,
        second_order=bool(getattr(kind, "is_second_order", False)),
        has_weight_decay="weight_decay" in takes,
    )
    registry.register(info)
    return name


def named(kind: type[torch.optim.Optimizer]) -> tuple[str, str]:
    """The name of a class, and the source of which other processes register it; "" for one of the catalogue's own."""
    registry, ends = default_registry(), (kind.__module__.partition(".")[0], kind.__qualname__)
    for name in registry.list_optimizers():
        info = registry.get_optimizer_info(name)
        path = info.opt_class.split(".") if isinstance(info.opt_class, str) else [""]
        if (path[0], path[-1]) == ends and not info.defaults and info.load() is kind:
            return name, ""
    return registered(kind), f"{kind.__module__}:{kind.__qualname__}"


def kind(name: str) -> type[torch.optim.Optimizer]:
    """The class of a name."""
    found: Any = default_registry().get_optimizer_class(name, bind_defaults=False)
    return found


def _options(kind: type) -> Iterable[str]:
    """What the constructor of a class takes; what it passes on as keywords, its bases take."""
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            yield from parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                return
