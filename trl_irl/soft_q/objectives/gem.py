"""
GEM, game-theoretic entropy maximisation: the policy against its own sharpened self,

    L = sum over scored tokens of  sum_j q_j w_j (log pi(j|s_t) - log pi(a_t|s_t))

with q = softmax(Q(s_t, .) / gem_beta) and no gradient through q and w. In the linear form w = 1, and the gradient is
softmax(Q / gem_beta) - onehot(a_t): what is already likely is pushed down by more than likelihood would, what is
unlikely by less. In the log-sigmoid form w_j = sigmoid(0.01 (Q_j - Q_a)), as in the authors' code.

Paper: "Preserving Diversity in Supervised Fine-Tuning of Large Language Models" (arXiv 2408.16673).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..statistics import Statistics
from .per_token import PerToken


@dataclass(frozen=True)
class GEM(PerToken):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        gem_beta (`float`, *optional*, defaults to `0.7`):
            Above 0; at 1 the linear form is maximum likelihood.
        gem_form (`str`, *optional*, defaults to `"linear"`):
            Or `"log_sigmoid"`.
    """

    gem_beta: float = 0.7
    gem_form: str = "linear"
    title = "GEM"
    says = "sum_j q_j w_j (log pi_j - log pi), q = softmax(Q / gem_beta)"
    uses = ("gem_beta", "gem_form")

    @property
    def statistics(self) -> Statistics:
        return Statistics(temperature=self.gem_beta, gem=self.gem_form)

    def likelihood(self, terms, output):
        return output.gem

    def metrics(self, terms, output):
        return {"gem_loss": (output.gem, terms.scored)}
