"""
Label smoothing: part of the target's weight goes to the whole vocabulary, alike to each of its n tokens,

    L = sum over scored tokens of  -(1 - w) log pi(a_t|s_t) - w / n sum_j log pi(j|s_t),    w = label_smoothing_weight

which is `torch.nn.functional.cross_entropy(..., label_smoothing=w)`. The sum over j is the mean logit less V, so that
no full logits are needed. Paper: "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..statistics import Statistics
from .per_token import PerToken


@dataclass(frozen=True)
class LabelSmoothing(PerToken):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        label_smoothing_weight (`float`, *optional*, defaults to `0.1`):
            w, from 0 to 1.
    """

    label_smoothing_weight: float = 0.1
    title = "label smoothing"
    says = "(1 - label_smoothing_weight) * nll + label_smoothing_weight * mean over the vocabulary of -log pi"
    uses = ("label_smoothing_weight",)
    statistics = Statistics(mean=True)

    def _uniform(self, terms, output):
        return (output.v - output.mean_logit).masked_fill(~terms.scored, 0)

    def likelihood(self, terms, output):
        weight = self.label_smoothing_weight
        return (1 - weight) * terms.nll + weight * self._uniform(terms, output)

    def metrics(self, terms, output):
        return {"uniform_nll": (self._uniform(terms, output), terms.scored)}
