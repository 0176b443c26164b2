"""Objectives, one in a file: formula, paper, and code from terms to a scalar sum."""

from .objective import Objective
from .offline import InverseSoftQ
from .online import CHI2_ON, OnlineInverseSoftQ


__all__ = ["CHI2_ON", "InverseSoftQ", "Objective", "OnlineInverseSoftQ"]
