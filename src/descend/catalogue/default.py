"""The registry of all names."""

from __future__ import annotations

import functools

from descend.catalogue.names import ALIASES, all_names
from descend.catalogue.registry import OptimizerRegistry


@functools.cache
def default_registry() -> OptimizerRegistry:
    """The registry that the functions of this module use, made at its first use. Register your own names here.

    Example:
        >>> default_registry().get_optimizer_info("nesterov").name
        'sgd'
    """
    registry = OptimizerRegistry()
    for info in all_names():
        registry.register(info)
    for alias, target in ALIASES.items():
        registry.register_alias(alias, target)
    return registry
