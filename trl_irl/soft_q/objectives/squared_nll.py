"""
The part of the inverse soft-Q objective that is of the likelihood alone:

    L = sum over scored tokens of  -log pi(a_t|s_t) + lambda_td * (log pi(a_t|s_t))^2

where the inverse soft-Q objective has a term, that is, wherever the next state is known. It asks what is left of r^2
without the values; see [`~soft_q.objectives.value_consistency`].
"""

from __future__ import annotations

from dataclasses import dataclass

from .penalised import Penalised


@dataclass(frozen=True)
class SquaredNLL(Penalised):
    """The objective above."""

    formula = "squared likelihood: nll + lambda_td / td_scale * (log pi)^2"

    def squares(self, terms, output):
        return terms.nll.masked_fill(~terms.has_reward, 0).square(), terms.has_reward
