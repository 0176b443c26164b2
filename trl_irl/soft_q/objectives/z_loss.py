"""
Likelihood with the log-partition held near 0:

    L = sum over scored tokens of  -log pi(a_t|s_t) + z_loss_weight * V(s_t)^2

V is the logarithm of the softmax's normaliser, to which likelihood is blind. The weight is 1e-4 in "PaLM: Scaling
Language Modeling with Pathways" (arXiv 2204.02311), for stability; at 0.1 it is a rival of the inverse soft-Q
objective, which holds V from moving along the text rather than in place.
"""

from __future__ import annotations

from dataclasses import dataclass

from .objective import Objective


@dataclass(frozen=True)
class ZLoss(Objective):
    """
    Args:
        z_loss_weight (`float`, *optional*, defaults to `1e-4`), lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weights of V^2 and of the KL to a reference, where the output has one.
    """

    z_loss_weight: float = 1e-4
    lambda_kl: float = 0.0
    formula = "z-loss: nll + z_loss_weight * V^2"
    uses = ("z_loss_weight",)

    def __call__(self, terms, output, lambda_td):
        squares = output.v.masked_fill(~terms.scored, 0).square()
        return self.with_kl(terms.nll.sum() + self.z_loss_weight * squares.sum(), output)
