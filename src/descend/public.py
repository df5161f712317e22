"""What `descend` offers, imported when the first of it is used."""

from descend import optimizers as _optimizers
from descend.catalogue import public as _catalogue
from descend.catalogue.public import *  # noqa: F403
from descend.engine.in_backward import step_in_backward
from descend.engine.master_weights import load_master_weights, master_weights
from descend.engine.optimizer import Optimizer
from descend.engine.warmup import WarmUp, warm_up
from descend.engine.zero import partitioned
from descend.optimizers import *  # noqa: F403

__all__ = ["Optimizer", "WarmUp", "load_master_weights", "master_weights", "partitioned", "step_in_backward", "warm_up"]
__all__ += _catalogue.__all__
__all__ += _optimizers.__all__
