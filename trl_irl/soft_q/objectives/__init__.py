"""Objectives, one in a file: formula, paper, and code from terms to a scalar sum."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from ..._named import named
from .dft import DFT
from .entropy import Entropy
from .focal import Focal
from .gem import GEM
from .label_smoothing import LabelSmoothing
from .nll import NLL
from .objective import Objective
from .offline import InverseSoftQ
from .online import CHI2_ON, OnlineInverseSoftQ
from .per_token import SCHEDULE, Combined, PerToken
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


# What a class of the user's own is told beside what it `uses`: all that the reward depends on.
_OF_REWARD = ("gamma", "td_target_grad", "terminal_value")


def kinds_of(name: str) -> list[type[Objective]]:
    """
    The objectives that a name such as `soft_q` or `value_consistency+z_loss` names; `module:Class` is of the user's.

    Raises:
        `ValueError`: one is unknown, or named twice.
    """
    names = [part.strip() for part in name.split("+")]
    for one in names:
        if names.count(one) > 1:
            raise ValueError(f"{one} is named twice.")
    return [_own(one) if ":" in one else _known(one) for one in names]


def _known(name: str) -> type[PerToken]:
    if name not in OBJECTIVES:
        raise ValueError(
            f"there is no {name!r}; there are {', '.join(OBJECTIVES)}, several joined by +, and `module:Class` "
            "of your own."
        )
    return OBJECTIVES[name]


def _own(name: str) -> type[Objective]:
    kind = named("objective", name)
    if not (isinstance(kind, type) and issubclass(kind, Objective)) or kind.__call__ is Objective.__call__:
        raise ValueError(
            f"`{name}` names no subclass of `trl_irl.soft_q.objectives.Objective`; see docs/extending.md."
        )
    return kind


def keys_of(kind: type[Objective]) -> tuple[str, ...]:
    """The keys of IRLConfig that mean something to an objective, beside `lambda_kl`."""
    if kind in OBJECTIVES.values():
        return kind.uses
    # A `PerToken` that has neither squares nor a sum of its own is never told `lambda_td`'s weight.
    plain = issubclass(kind, PerToken) and (kind.squares, kind.__call__) == (PerToken.squares, PerToken.__call__)
    return (*(() if plain else SCHEDULE), *_OF_REWARD, *kind.uses)


def objective_of(name: str, settings) -> Objective:
    """
    The objective of this name, with its strengths and `lambda_kl` from the attributes of `settings`.

    Raises:
        `ValueError`: one is unknown, or two of several do not go together.
    """
    parts = [_made(kind, settings) for kind in kinds_of(name)]
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        if not isinstance(part, PerToken):
            raise ValueError(f"{type(part).__name__} is no `PerToken`, and only those can be joined by +.")
    return Combined(settings.lambda_kl, tuple(parts))


def _made(kind: type[Objective], settings) -> Objective:
    told = {"lambda_kl", *keys_of(kind)} & {x.name for x in fields(kind)} if is_dataclass(kind) else ()
    try:
        objective = kind(**{name: getattr(settings, name) for name in told})
    except TypeError as error:
        raise ValueError(f"a {kind.__name__} cannot be made from IRLConfig's keys alone: {error}") from error
    if is_dataclass(kind):
        if objective.lambda_kl != settings.lambda_kl:
            raise ValueError(f"{kind.__name__} is a dataclass without a field `lambda_kl: float = 0.0`. Give it one.")
    else:
        objective.lambda_kl = settings.lambda_kl
    return objective


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
    "keys_of",
    "kinds_of",
    "objective_of",
]
