"""
The offline inverse soft-Q objective:

    L = sum over scored tokens of  -log pi(a_t|s_t) + lambda_td * r(s_t, a_t)^2 + lambda_kl * KL(pi || reference)

This is IQ-Learn with the chi-squared divergence and the value on expert states; lambda_td = 1 / (4 alpha). At
lambda_td = 0 it is maximum likelihood.

Two variants, each to see what r^2 does. Since r = (Q - V) + (V - gamma V'),

    r^2 = w_1 (Q - V)^2 + w_2 2 (Q - V) (V - gamma V') + w_3 (V - gamma V')^2          with td_weights w = (1, 1, 1)

and the V of the reward may be that of another temperature b, V_b = b logsumexp(Q / b), with value_temperature b; the
likelihood keeps b = 1, where Q - V is log pi.

Papers: "IQ-Learn: Inverse soft-Q Learning for Imitation" (arXiv 2106.12142); "Imitating Language via Scalable Inverse
Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..statistics import Statistics
from .per_token import SCHEDULE, PerToken, of_values


@dataclass(frozen=True)
class InverseSoftQ(PerToken):
    """
    The objective above: the square is that of the implied reward.

    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        td_weights (`tuple[float, float, float]`, *optional*, defaults to `(1.0, 1.0, 1.0)`):
            Of the three terms of r^2.
        value_temperature (`float`, *optional*, defaults to `1.0`):
            Of the values in the reward.
        value_origin (`str`, *optional*, defaults to `"zero"`):
            What the values of the reward are taken from, see [`~soft_q.objectives.per_token`].
    """

    td_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    value_temperature: float = 1.0
    value_origin: str = "zero"
    title = "inverse soft-Q"
    uses = (*SCHEDULE, "gamma", "td_target_grad", "td_weights", "value_temperature", "value_origin")

    @property
    def adds(self) -> str:
        return f"lambda_td / td_scale * r^2{of_values(self)}"

    @property
    def statistics(self) -> Statistics:
        return Statistics(temperature=None if self.value_temperature == 1 else self.value_temperature)

    @property
    def squares_logged(self) -> tuple[str, ...]:
        return ("td_loss",) if tuple(self.td_weights) == (1, 1, 1) else ("td_weighted",)

    def squares(self, terms, output):
        if tuple(self.td_weights) == (1, 1, 1):
            return terms.reward.square(), terms.has_reward
        first, second, third = self.td_weights
        log_pi = terms.reward - terms.value_drop
        squares = first * log_pi.square() + second * 2 * log_pi * terms.value_drop + third * terms.value_drop.square()
        return squares, terms.has_reward

    def metrics(self, terms, output):
        return {} if tuple(self.td_weights) == (1, 1, 1) else {"td_weighted": self.squares(terms, output)}
