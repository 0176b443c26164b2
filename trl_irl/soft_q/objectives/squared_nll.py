"""
The part of the inverse soft-Q objective that is of the likelihood alone:

    L = sum over scored tokens of  -log pi(a_t|s_t) + lambda_td * (log pi(a_t|s_t))^2

where the inverse soft-Q objective has a term, that is, wherever the next state is known. It asks what is left of r^2
without the values; see [`~soft_q.objectives.value_consistency`].
"""

from __future__ import annotations

from dataclasses import dataclass

from .per_token import SCHEDULE, PerToken


@dataclass(frozen=True)
class SquaredNLL(PerToken):
    """The objective above."""

    title = "squared likelihood"
    adds = "lambda_td / td_scale * (log pi)^2"
    uses = SCHEDULE
    squares_logged = ("log_pi_squared",)

    def squares(self, terms, output):
        return terms.nll.masked_fill(~terms.has_reward, 0).square(), terms.has_reward

    def metrics(self, terms, output):
        return {"log_pi_squared": self.squares(terms, output)}
