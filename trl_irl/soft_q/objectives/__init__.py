"""Objectives, one in a file: formula, paper, and code from terms to a scalar sum."""

from __future__ import annotations

from dataclasses import fields

from .dft import DFT
from .entropy import Entropy
from .focal import Focal
from .gem import GEM
from .label_smoothing import LabelSmoothing
from .nll import NLL
from .objective import Objective
from .offline import InverseSoftQ
from .online import CHI2_ON, OnlineInverseSoftQ
from .per_token import Combined, PerToken
from .squared_nll import SquaredNLL
from .value_consistency import ValueConsistency
from .z_loss import CENTERS, ZLoss


# By the name that `IRLConfig.objective` has for them. What an objective `uses` are keys of IRLConfig.
OBJECTIVES: dict[str, type[PerToken]] = {
    "soft_q": InverseSoftQ,
    "value_consistency": ValueConsistency,
    "squared_nll": SquaredNLL,
    "nll": NLL,
    "dft": DFT,
    "gem": GEM,
    "entropy": Entropy,
    "label_smoothing": LabelSmoothing,
    "focal": Focal,
    "z_loss": ZLoss,
}


def kinds_of(name: str) -> list[type[PerToken]]:
    """
    The objectives that a name such as `soft_q` or `value_consistency+z_loss` names.

    Raises:
        `ValueError`: one is unknown, or named twice.
    """
    names = [part.strip() for part in name.split("+")]
    for one in names:
        if one not in OBJECTIVES:
            raise ValueError(f"there is no {one!r}; there are {', '.join(OBJECTIVES)}, and several joined by +.")
        if names.count(one) > 1:
            raise ValueError(f"{one} is named twice.")
    return [OBJECTIVES[one] for one in names]


def objective_of(name: str, settings) -> PerToken:
    """
    The objective of this name, with its strengths and `lambda_kl` from the attributes of `settings`.

    Raises:
        `ValueError`: one is unknown, or two of several do not go together.
    """
    kinds = kinds_of(name)
    lambda_kl = settings.lambda_kl
    parts = [
        kind(lambda_kl, **{x.name: getattr(settings, x.name) for x in fields(kind) if x.name in kind.uses})
        for kind in kinds
    ]
    return parts[0] if len(parts) == 1 else Combined(lambda_kl, tuple(parts))


__all__ = [
    "CENTERS",
    "CHI2_ON",
    "DFT",
    "GEM",
    "NLL",
    "OBJECTIVES",
    "Combined",
    "Entropy",
    "Focal",
    "InverseSoftQ",
    "LabelSmoothing",
    "Objective",
    "OnlineInverseSoftQ",
    "PerToken",
    "SquaredNLL",
    "ValueConsistency",
    "ZLoss",
    "kinds_of",
    "objective_of",
]
