"""What `descend.catalogue` offers, imported when the first of it is used."""

from descend.catalogue.default import default_registry
from descend.catalogue.factory import (
    create_optimizer,
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    optimizer_kwargs,
    state_bytes_per_parameter,
)
from descend.catalogue.groups import (
    auto_group_layers,
    muon_param_groups,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from descend.catalogue.info import OptimInfo, Paper
from descend.catalogue.mixed import Mixed
from descend.catalogue.registry import OptimizerRegistry
from descend.catalogue.table import ParamRow, ParamTable, param_groups_table

__all__ = [
    "Mixed",
    "OptimInfo",
    "OptimizerRegistry",
    "Paper",
    "ParamRow",
    "ParamTable",
    "auto_group_layers",
    "create_optimizer",
    "create_optimizer_v2",
    "default_registry",
    "get_optimizer_class",
    "get_optimizer_info",
    "list_optimizers",
    "muon_param_groups",
    "optimizer_kwargs",
    "param_groups_layer_decay",
    "param_groups_table",
    "param_groups_weight_decay",
    "state_bytes_per_parameter",
]
