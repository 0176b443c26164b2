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

from .penalised import Penalised


@dataclass(frozen=True)
class InverseSoftQ(Penalised):
    """The objective above: the square is that of the implied reward."""

    formula = "inverse soft-Q: nll + lambda_td / td_scale * r^2"

    def squares(self, terms, output):
        return terms.reward.square(), terms.has_reward
