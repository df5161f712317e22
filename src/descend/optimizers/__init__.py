"""The optimizers, one family a file."""

from descend.optimizers.adabelief import AdaBelief
from descend.optimizers.adafactor import Adafactor
from descend.optimizers.adafactor_bigvision import AdafactorBigVision, TorchAdafactor
from descend.optimizers.adahessian import Adahessian
from descend.optimizers.adam import Adam, AdamW, NAdamW
from descend.optimizers.adam_mini import AdamMini
from descend.optimizers.adan import Adan
from descend.optimizers.ademamix import AdEMAMix
from descend.optimizers.adopt import Adopt
from descend.optimizers.came import CAME
from descend.optimizers.classic import ASGD, Adadelta, Adagrad, Adamax, Rprop
from descend.optimizers.dion import Dion
from descend.optimizers.kron import Kron
from descend.optimizers.lamb import Lamb
from descend.optimizers.laprop import LaProp
from descend.optimizers.lion import Lion
from descend.optimizers.lookahead import Lookahead
from descend.optimizers.madgrad import MADGRAD
from descend.optimizers.mars import Mars
from descend.optimizers.muon import Muon, NorMuon
from descend.optimizers.nadam import NAdam, Nadam
from descend.optimizers.novograd import NvNovoGrad
from descend.optimizers.prodigy import Prodigy
from descend.optimizers.projected import SGDP, AdamP
from descend.optimizers.radam import RAdam
from descend.optimizers.rmsprop import RMSprop, RMSpropTF
from descend.optimizers.sam import SAM
from descend.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD
from descend.optimizers.scion import Scion
from descend.optimizers.sgd import SGD, SGDW, Lars
from descend.optimizers.shampoo import Shampoo
from descend.optimizers.soap import KLSOAP, SOAP
from descend.optimizers.stable_adamw import StableAdamW

# timm's names for its older classes.
AdamWLegacy, NAdamLegacy, RAdamLegacy = AdamW, Nadam, RAdam

__all__ = [
    "ASGD",
    "CAME",
    "KLSOAP",
    "MADGRAD",
    "SAM",
    "SGD",
    "SGDP",
    "SGDW",
    "SOAP",
    "AdEMAMix",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "AdafactorBigVision",
    "Adagrad",
    "Adahessian",
    "Adam",
    "AdamMini",
    "AdamP",
    "AdamW",
    "AdamWLegacy",
    "Adamax",
    "Adan",
    "Adopt",
    "Dion",
    "Kron",
    "LaProp",
    "Lamb",
    "Lars",
    "Lion",
    "Lookahead",
    "Mars",
    "Muon",
    "NAdam",
    "NAdamLegacy",
    "NAdamW",
    "Nadam",
    "NorMuon",
    "NvNovoGrad",
    "Prodigy",
    "RAdam",
    "RAdamLegacy",
    "RMSprop",
    "RMSpropTF",
    "Rprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "StableAdamW",
    "TorchAdafactor",
]
