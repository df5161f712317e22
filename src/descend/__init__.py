"""descend: optimizers for PyTorch, each written once, with every capability on all of them."""

from descend.engine.optimizer import Optimizer
from descend.engine.warmup import WarmUp, warm_up
from descend.optimizers import *  # noqa: F403

__version__ = "0.1.0"
