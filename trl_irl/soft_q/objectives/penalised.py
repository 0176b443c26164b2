"""Likelihood with a penalty: what most objectives here are, and differ in what they square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .objective import Objective


if TYPE_CHECKING:
    from ..head import SoftQOutput
    from ..terms import SoftQTerms


@dataclass(frozen=True)
class Penalised(Objective):
    """
    L = sum over scored tokens of  -log pi(a_t|s_t) + lambda_td * x_t^2 + lambda_kl * KL(pi || reference)

    where x_t is what a subclass says. The trainer divides lambda_td by `td_scale`, the mean of x_t^2 before training.

    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL, where the output has one.
    """

    lambda_kl: float = 0.0
    uses = ("lambda_td", "td_scale", "mle_warmup_steps", "lambda_td_warmup_steps", "td_target_grad")

    def squares(self, terms: SoftQTerms, output: SoftQOutput) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: x_t^2 in nats squared, 0 where there is none, and whether there is
            one; both of the shape `(batch, positions)`.
        """
        raise NotImplementedError

    def __call__(self, terms: SoftQTerms, output: SoftQOutput, lambda_td: float) -> torch.Tensor:
        loss = terms.nll.sum()
        if lambda_td > 0:
            loss = loss + lambda_td * self.squares(terms, output)[0].sum()
        return self.with_kl(loss, output)
