"""A package whose names are imported when the first of them is used: `descend --help` is there at once."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def attributes(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose module `public` has its names."""

    def find(name: str) -> Any:
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        missing = AttributeError(f"module {package!r} has no attribute {name!r}")
        if name.startswith("_") and name != "__all__":
            raise missing
        public = importlib.import_module(f"{package}.public")
        if name != "__all__" and name not in public.__all__:
            raise missing
        return vars(sys.modules[package]).setdefault(name, getattr(public, name))

    return find
