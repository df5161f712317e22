"""What the catalogue knows about an optimizer, made ready to print by `descend list` and `descend show`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

from descend.catalogue.info import OptimInfo
from descend.catalogue.names import ALIASES, all_names


class Names(Protocol):
    """Names and what is known about them."""

    def list_optimizers(self) -> list[str]:
        """All names."""

    def get_optimizer_info(self, name: str) -> OptimInfo:
        """The entry of a name."""


class Catalogue(Names, Protocol):
    """The part of `descend` that the command line needs; the package itself is one."""

    def create_optimizer_v2(
        self, model_or_params: Any, /, *, opt: str, lr: float, weight_decay: float, **options: Any
    ) -> Any:
        """The optimizer of a name."""


class Table:
    """The names of the package, read from its table without importing torch."""

    def __init__(self) -> None:
        self.infos = {info.name: info for info in all_names()}
        self.infos |= {alias: self.infos[target] for alias, target in ALIASES.items()}

    def list_optimizers(self) -> list[str]:
        """All names."""
        return sorted(self.infos)

    def get_optimizer_info(self, name: str) -> OptimInfo:
        """The entry of a name."""
        return self.infos[name]


LOOKAHEAD = "lookahead_"


def class_name(info: OptimInfo) -> str:
    """The name of the class behind an entry, whether or not it can be imported."""
    found = info.opt_class
    return found.rpartition(".")[2] if isinstance(found, str) else getattr(found, "__name__", "")


def matching(names: Iterable[str], pattern: str | None) -> list[str]:
    """The names that match a wildcard pattern, or that contain it if it has no wildcard."""
    wanted = (pattern or "*").lower()
    if not any(sign in wanted for sign in "*?["):
        wanted = f"*{wanted}*"
    return [name for name in names if fnmatchcase(name, wanted)]


def unknown(name: str, names: Sequence[str]) -> str | None:
    """What to say about a name that is not in the catalogue; None if it is."""
    bare = name.lower().removeprefix(LOOKAHEAD)
    if bare in names:
        return None
    near = difflib.get_close_matches(bare, names, n=3, cutoff=0.5) or matching(names, bare)[:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "descend list shows all names"
    return f"there is no optimizer {name!r}; {hint}"


def bytes_per_parameter(book: Catalogue, name: str, **options: Any) -> str:
    """Bytes of state for each element of a large matrix, as the factory makes the optimizer; `?` if it can't."""
    import torch

    param = torch.nn.Parameter(torch.empty(1024, 1024))
    try:
        optimizer = book.create_optimizer_v2([param], opt=name, lr=1e-3, weight_decay=0.0, **options)
        return f"{optimizer.state_bytes(param, optimizer.param_groups[0]) / param.numel():.3g}"
    except (ImportError, AttributeError, TypeError):
        return "?"


def defaults(info: OptimInfo) -> dict[str, str]:
    """The options and their defaults, as this name binds them."""
    shown = {}
    for name, parameter in inspect.signature(info.bound()).parameters.items():
        if name not in ("params", "base_optimizer") and parameter.kind is not parameter.VAR_KEYWORD:
            shown[name] = "required" if parameter.default is parameter.empty else repr(parameter.default)
    if info.has_momentum and "momentum" not in (info.defaults or {}) and shown["momentum"] != "0.9":
        shown["momentum"] += "; create_optimizer passes 0.9"
    return shown
