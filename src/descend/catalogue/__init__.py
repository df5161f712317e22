"""Optimizers by name, parameter groups, and the factory."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from descend.catalogue.public import *  # noqa: F403
    from descend.catalogue.public import __all__ as __all__
else:
    from descend.lazy import attributes as _attributes

    __getattr__ = _attributes(__name__)

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
