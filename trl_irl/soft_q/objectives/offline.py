"""
The offline inverse soft-Q objective:

    L = sum over scored tokens of  -log pi(a_t|s_t) + lambda_td * r(s_t, a_t)^2 + lambda_kl * KL(pi || reference)

This is IQ-Learn with the chi-squared divergence and the value on expert states; lambda_td = 1 / (4 alpha). At
lambda_td = 0 it is maximum likelihood.

Papers: "IQ-Learn: Inverse soft-Q Learning for Imitation" (arXiv 2106.12142); "Imitating Language via Scalable Inverse
Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .objective import Objective


if TYPE_CHECKING:
    from ..head import SoftQOutput
    from ..terms import SoftQTerms


@dataclass(frozen=True)
class InverseSoftQ(Objective):
    """
    The objective above.

    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL, where the output has one.
    """

    lambda_kl: float = 0.0
    formula = "inverse soft-Q: nll + lambda_td / td_scale * r^2"

    def __call__(self, terms: SoftQTerms, output: SoftQOutput, lambda_td: float) -> torch.Tensor:
        loss = terms.nll.sum()
        if lambda_td > 0:
            loss = loss + lambda_td * terms.reward.square().sum()
        if output.kl is not None:
            loss = loss + self.lambda_kl * output.kl.sum()
        return loss
