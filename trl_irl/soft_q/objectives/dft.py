"""
Dynamic fine-tuning: each token's likelihood is weighted by its own probability, held constant,

    L = sum over scored tokens of  -pi(a_t|s_t) log pi(a_t|s_t),  no gradient through the factor

so that unlikely tokens pull less. It is TRL's `loss_type="dft"`.

Paper: "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification" (arXiv
2508.05629).
"""

from __future__ import annotations

from dataclasses import dataclass

from .per_token import PerToken


@dataclass(frozen=True)
class DFT(PerToken):
    """The objective above."""

    title = "dynamic fine-tuning"
    says = "pi * nll, no gradient through pi"

    def likelihood(self, terms, output):
        return terms.nll * (-terms.nll.detach()).exp()

    def metrics(self, terms, output):
        return {"dft_loss": (self.likelihood(terms, output), terms.scored)}
