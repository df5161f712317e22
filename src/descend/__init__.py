"""descend: optimizers for PyTorch, each written once, with every capability on all of them."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from descend import optimizers as _optimizers
    from descend.catalogue.public import *  # noqa: F403
    from descend.catalogue.public import __all__ as _catalogue
    from descend.engine.in_backward import step_in_backward
    from descend.engine.master_weights import load_master_weights, master_weights
    from descend.engine.optimizer import Optimizer
    from descend.engine.warmup import WarmUp, warm_up
    from descend.engine.zero import partitioned
    from descend.optimizers import *  # noqa: F403

    __all__ = [
        "Optimizer",
        "WarmUp",
        "load_master_weights",
        "master_weights",
        "partitioned",
        "step_in_backward",
        "warm_up",
        *_catalogue,
        *_optimizers.__all__,
    ]
else:
    from descend.lazy import attributes as _attributes

    __getattr__ = _attributes(__name__)

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
