"""The optimizers, one family a file."""

from descend.optimizers.adabelief import AdaBelief
from descend.optimizers.adafactor import Adafactor
from descend.optimizers.adahessian import Adahessian
from descend.optimizers.adam import Adam, AdamW, NAdamW
from descend.optimizers.adan import Adan
from descend.optimizers.adopt import Adopt
from descend.optimizers.classic import ASGD, Adadelta, Adagrad, Adamax, Rprop
from descend.optimizers.lamb import Lamb
from descend.optimizers.laprop import LaProp
from descend.optimizers.lion import Lion
from descend.optimizers.lookahead import Lookahead
from descend.optimizers.madgrad import MADGRAD
from descend.optimizers.mars import Mars
from descend.optimizers.muon import Muon, NorMuon
from descend.optimizers.nadam import Nadam, NAdam
from descend.optimizers.novograd import NvNovoGrad
from descend.optimizers.projected import SGDP, AdamP
from descend.optimizers.radam import RAdam
from descend.optimizers.rmsprop import RMSprop, RMSpropTF
from descend.optimizers.sgd import SGD, SGDW, Lars

__all__ = [
    "ASGD",
    "MADGRAD",
    "SGD",
    "SGDP",
    "SGDW",
    "AdaBelief",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adahessian",
    "Adam",
    "AdamP",
    "AdamW",
    "Adamax",
    "Adan",
    "Adopt",
    "LaProp",
    "Lamb",
    "Lars",
    "Lion",
    "Lookahead",
    "Mars",
    "Muon",
    "NAdam",
    "NAdamW",
    "Nadam",
    "NorMuon",
    "NvNovoGrad",
    "RAdam",
    "RMSprop",
    "RMSpropTF",
    "Rprop",
]
