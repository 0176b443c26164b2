"""
Dynamic fine-tuning: each token's likelihood is weighted by its own probability, held constant,

    L = sum over scored tokens of  -pi(a_t|s_t) log pi(a_t|s_t),  no gradient through the factor

so that unlikely tokens pull less. It is TRL's `loss_type="dft"`.

Paper: "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification" (arXiv
2508.05629).
"""

from __future__ import annotations

from dataclasses import dataclass

from .objective import Objective


@dataclass(frozen=True)
class DFT(Objective):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
    """

    lambda_kl: float = 0.0
    formula = "dynamic fine-tuning: pi * nll, no gradient through pi"

    def __call__(self, terms, output, lambda_td):
        return self.with_kl((terms.nll * (-terms.nll.detach()).exp()).sum(), output)
