"""The same optimizers from other libraries, wherever these are installed; none has to be, and none can stop a run."""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

Options = Mapping[str, Any]
Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Peer:
    """A library, and what it calls the rules that both have.

    Args:
        library: its name.
        package: its distribution, whose version says whether it is installed.
        module: what to import.
        names: our names and its classes; for timm, its registered names.
        extra: options beside the common ones that make a class compute the same, or as nearly as it can.
        slow: it compiles whole models, which takes a minute for each.
    """

    library: str
    package: str
    module: str
    names: Mapping[str, str]
    extra: Mapping[str, Options] = field(default_factory=dict)
    slow: bool = False

    def version(self) -> str | None:
        """The installed version; None: it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def ways(self, rule: str, options: Options) -> Iterator[tuple[str, Make]]:
        """How this library runs a rule, with what makes the optimizer each way. Nothing where it lacks the rule."""
        if rule not in self.names:
            return
        yield "default", lambda params: self._make(rule, params, options)
        if self.library == "torch" and rule in TORCH_FUSED:
            yield "fused", lambda params: self._make(rule, params, {**options, "fused": True})

    def _make(self, rule: str, params: Sequence[nn.Parameter], options: Options) -> torch.optim.Optimizer:
        theirs, options = self.names[rule], {**options, **self.extra.get(rule, {})}
        if self.library == "timm":
            named = {name: options[name] for name in ("lr", "weight_decay") if name in options}
            return cast(torch.optim.Optimizer, _timm().create_optimizer_v2(params, opt=theirs, **named))
        kind = getattr(importlib.import_module(self.module), theirs)
        known = inspect.signature(kind).parameters
        made = kind(params, **{name: value for name, value in options.items() if name in known})
        return cast(torch.optim.Optimizer, made)


def _timm() -> types.ModuleType:
    """timm.optim, which runs without torchvision, although timm's own __init__ doesn't."""
    spec = find_spec("timm") if "timm" not in sys.modules else None
    if spec is not None and spec.submodule_search_locations and find_spec("torchvision") is None:
        root = spec.submodule_search_locations[0]
        for name, folder in (("timm", root), ("timm.models", f"{root}/models")):
            bare = types.ModuleType(name)
            bare.__path__ = [folder]
            sys.modules[name] = bare
        sys.modules["timm.models"].group_parameters = None  # type: ignore[attr-defined]
    return importlib.import_module("timm.optim")


TORCH_FUSED = frozenset(("adam", "adamw", "sgd", "adagrad"))

_TORCH = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adam": "Adam",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "asgd": "ASGD",
    "muon": "Muon",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
    "sgd": "SGD",
    "torchadafactor": "Adafactor",
}

# timm's own code; its other names are torch's classes.
_TIMM = {
    **{
        name: name
        for name in (
            "adabelief", "adafactor", "adafactorbv", "adahessian", "adamp", "adan", "adopt", "kron", "lamb", "laprop",
            "lars", "lion", "madgrad", "mars", "muon", "nadamlegacy", "nadamw", "novograd", "rmsproptf", "sgdp", "sgdw",
        )
    },
    "adamw": "adamwlegacy",
    "radam": "radamlegacy",
}  # fmt: skip

_PYTORCH_OPTIMIZER = {
    "adabelief": "AdaBelief",
    "adafactor": "AdaFactor",
    "adahessian": "AdaHessian",
    "adamp": "AdamP",
    "adan": "Adan",
    "ademamix": "AdEMAMix",
    "adopt": "ADOPT",
    "came": "CAME",
    "kron": "Kron",
    "lamb": "Lamb",
    "laprop": "LaProp",
    "lars": "LARS",
    "lion": "Lion",
    "madgrad": "MADGRAD",
    "mars": "MARS",
    "muon": "Muon",
    "normuon": "NorMuon",
    "novograd": "NovoGrad",
    "prodigy": "Prodigy",
    "radam": "RAdam",
    "schedulefreeadamw": "ScheduleFreeAdamW",
    "schedulefreeradam": "ScheduleFreeRAdam",
    "schedulefreesgd": "ScheduleFreeSGD",
    "scion": "SCION",
    "sgdp": "SGDP",
    "sgdw": "SGDW",
    "shampoo": "ScalableShampoo",
    "soap": "SOAP",
    "stableadamw": "StableAdamW",
}

# Our blocks, our schedule, and the length of RMSprop's step, which is its nearest to Adam's; shapes as they are.
_BLOCKED_SHAMPOO: Options = {
    "block_size": 1024,
    "no_preconditioning_for_layers_with_dim_gt": sys.maxsize,
    "shape_interpretation": False,
    "start_preconditioning_step": 50,
    "preconditioning_compute_steps": 50,
    "graft_type": 3,
    "moving_average_for_momentum": True,
    "nesterov": False,
    "decoupled_weight_decay": True,
}

_HEAVYBALL = {
    "ademamix": "AdEMAMix",
    "adamw": "AdamW",
    "adopt": "ADOPT",
    "klsoap": "KLSOAP",
    "kron": "PSGDKron",
    "laprop": "LaProp",
    "muon": "Muon",
    "nadam": "NAdam",
    "rmsprop": "RMSprop",
    "schedulefreeadamw": "SFAdamW",
    "scion": "Scion",
    "sgd": "SGD",
    "soap": "SOAP",
}

_OPTIMI = {
    "adam": "Adam",
    "adamw": "AdamW",
    "adan": "Adan",
    "lion": "Lion",
    "radam": "RAdam",
    "sgd": "SGD",
    "stableadamw": "StableAdamW",
}

PEERS: tuple[Peer, ...] = (
    Peer("timm", "timm", "timm.optim", _TIMM),
    Peer("torch", "torch", "torch.optim", _TORCH),
    Peer(
        "pytorch_optimizer",
        "pytorch_optimizer",
        "pytorch_optimizer",
        _PYTORCH_OPTIMIZER,
        {
            "adafactor": {"betas": (None, 0.999), "relative_step": False, "scale_parameter": False},
            "kron": {"max_size_triangular": 2048, "weight_decouple": False},
            "shampoo": _BLOCKED_SHAMPOO,
        },
    ),
    Peer("optimi", "torch-optimi", "optimi", _OPTIMI),
    Peer("heavyball", "heavyball", "heavyball", _HEAVYBALL, slow=True),
)


def chosen(words: str) -> list[Peer]:
    """The peers that a list of names stands for: `installed`, `none`, or libraries separated by commas.

    Raises:
        ValueError: for a library that is not known, or not installed.
    """
    here = {peer.library: peer for peer in PEERS if peer.version()}
    if words in ("installed", "none"):
        return list(here.values()) if words == "installed" else []
    names = [name.strip() for name in words.split(",") if name.strip()]
    for name in names:
        if name not in {peer.library for peer in PEERS}:
            known = ", ".join(peer.library for peer in PEERS)
            raise ValueError(f"--peers names {name!r}; expected installed, none, or some of {known}")
        if name not in here:
            raise ValueError(f"{name} is not installed; make bench sets up an environment with all peers")
    return [here[name] for name in names]
