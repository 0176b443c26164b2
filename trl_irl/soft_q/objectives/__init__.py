"""Objectives, one in a file: formula, paper, and code from terms to a scalar sum."""

from .dft import DFT
from .focal import Focal
from .nll import NLL
from .objective import Objective
from .offline import InverseSoftQ
from .online import CHI2_ON, OnlineInverseSoftQ
from .penalised import Penalised
from .squared_nll import SquaredNLL
from .value_consistency import ValueConsistency
from .z_loss import ZLoss


# By the name that `IRLConfig.objective` has for them. The fields of each are keys of IRLConfig.
OBJECTIVES: dict[str, type[Objective]] = {
    "soft_q": InverseSoftQ,
    "value_consistency": ValueConsistency,
    "squared_nll": SquaredNLL,
    "nll": NLL,
    "dft": DFT,
    "focal": Focal,
    "z_loss": ZLoss,
}

__all__ = [
    "CHI2_ON",
    "DFT",
    "NLL",
    "OBJECTIVES",
    "Focal",
    "InverseSoftQ",
    "Objective",
    "OnlineInverseSoftQ",
    "Penalised",
    "SquaredNLL",
    "ValueConsistency",
    "ZLoss",
]
