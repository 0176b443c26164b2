"""
Likelihood with a bonus for the policy's entropy over the vocabulary at each scored state:

    L = sum over scored tokens of  -log pi(a_t|s_t) - entropy_weight * H(pi(.|s_t))

The baseline "MLE with entropy regularisation" of "Imitating Language via Scalable Inverse Reinforcement Learning"
(arXiv 2409.01369); "Regularizing Neural Networks by Penalizing Confident Output Distributions" (arXiv 1701.06548).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..statistics import Statistics
from .per_token import PerToken


@dataclass(frozen=True)
class Entropy(PerToken):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        entropy_weight (`float`, *optional*, defaults to `0.1`)
    """

    entropy_weight: float = 0.1
    title = "entropy bonus"
    adds = "-entropy_weight * H(pi)"
    uses = ("entropy_weight",)
    statistics = Statistics(entropy=True)

    def penalty(self, terms, output):
        return -self.entropy_weight * output.entropy.masked_fill(~terms.scored, 0)
