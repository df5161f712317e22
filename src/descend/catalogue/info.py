"""What the catalogue knows about one optimizer name."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from descend.engine.ranges import Option

OptimizerClass = Callable[..., "Optimizer"]


@dataclass(frozen=True)
class Paper:
    """Where an optimizer was published.

    Attributes:
        title: the title.
        authors: the authors, shortened.
        year: the year of the first version.
        link: where to read it.
    """

    title: str
    authors: str
    year: int
    link: str


@dataclass(frozen=True)
class OptimInfo:
    """One name of the catalogue: a class, the options bound to it, and where it comes from.

    Attributes:
        name: the name, lower case.
        opt_class: the class, or its dotted path, which is imported when it is first used.
        description: one line.
        has_eps: the class takes ``eps``.
        has_momentum: the class takes ``momentum``; the factory passes its own, 0.9 unless told otherwise.
        has_betas: the class takes ``betas``.
        num_betas: how many betas, if it has them.
        second_order: needs ``backward(create_graph=True)``.
        defaults: options that the name binds; arguments of the caller win.
        paper: the publication. Its year is also here, as ``year``.
        suggested_lr: lowest and highest learning rate to try first. None where no source gives one.
        lr_source: who says so.
        has_weight_decay: the class takes ``weight_decay``.
    """

    name: str
    opt_class: str | OptimizerClass
    description: str = ""
    has_eps: bool = True
    has_momentum: bool = False
    has_betas: bool = False
    num_betas: int = 2
    second_order: bool = False
    defaults: dict[str, Any] | None = None
    paper: Paper | None = None
    suggested_lr: tuple[float, float] | None = None
    lr_source: str = ""
    has_weight_decay: bool = True

    @property
    def year(self) -> int | None:
        """The year of the publication."""
        return self.paper.year if self.paper else None

    @property
    def reach(self) -> str | None:
        """What the rule must see at once, as its class says: elementwise, tensor, rows or matrix. None: it doesn't."""
        try:
            reach: str | None = getattr(self.load(), "reach", None)
        except ImportError:
            return None
        return reach

    @property
    def options(self) -> Mapping[str, Option]:
        """The arguments of the class by name, each with its default and its range, as the constructor declares them."""
        from descend.engine.ranges import declared

        kind = self.load()
        known = declared(kind) if isinstance(kind, type) else {}
        return {name: known[name] for name in inspect.signature(kind).parameters if name in known}

    def load(self) -> OptimizerClass:
        """The class itself.

        Raises:
            ImportError: if its package is not installed, or does not have it.
        """
        if not isinstance(self.opt_class, str):
            return self.opt_class
        return import_class(self.opt_class, f"optimizer {self.name!r}")

    def bound(self) -> OptimizerClass:
        """The class with the options that the name binds; the class itself if it binds none."""
        return functools.partial(self.load(), **self.defaults) if self.defaults else self.load()


def import_class(path: str, needed_by: str) -> OptimizerClass:
    """The class at a dotted path.

    Args:
        path: module and class, such as "descend.optimizers.AdamW".
        needed_by: who needs it, for the message.

    Raises:
        ImportError: if the package is not installed, or does not have the class.
    """
    module_path, _, class_name = path.rpartition(".")
    package = module_path.partition(".")[0]
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        raise ImportError(
            f"{needed_by} needs the package {package}, which cannot be imported here ({error}): "
            f"install {package}, or choose a name that is not from {package}"
        ) from error
    found: OptimizerClass | None = getattr(module, class_name, None)
    if found is None:
        raise ImportError(f"{needed_by} needs {path}, which the installed {package} does not have")
    return found
