"""
The focal loss on tokens: what the model is sure of counts less,

    L = sum over scored tokens of  -(1 - pi(a_t|s_t))^focal_gamma log pi(a_t|s_t)

with gradient through the factor. At focal_gamma = 0 it is maximum likelihood. Paper: "Focal Loss for Dense Object
Detection" (arXiv 1708.02002).
"""

from __future__ import annotations

from dataclasses import dataclass

from .per_token import PerToken


@dataclass(frozen=True)
class Focal(PerToken):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        focal_gamma (`float`, *optional*, defaults to `2.0`):
            0 or more.
    """

    focal_gamma: float = 2.0
    title = "focal"
    says = "(1 - pi)^focal_gamma * nll"
    uses = ("focal_gamma",)

    def likelihood(self, terms, output):
        # 1 - pi without cancellation; above 0, since a power below 1 has no gradient there.
        missed = -(-terms.nll).expm1()
        return missed.clamp(min=1e-12).pow(self.focal_gamma) * terms.nll

    def metrics(self, terms, output):
        return {"focal_loss": (self.likelihood(terms, output), terms.scored)}
