"""
Value consistency, the part of the inverse soft-Q objective that holds the values still along the text:

    L = sum over scored tokens of  -log pi(a_t|s_t) + lambda_td * (V(s_t) - gamma V(s_{t+1}))^2

Since r = log pi + (V - gamma V'), the square of the implied reward is (log pi)^2 + 2 log pi (V - gamma V') +
(V - gamma V')^2: this objective keeps its last term alone. What is known of the next state decides where there is one,
as for r.

Paper: none has it alone, as far as we know; r is that of arXiv 2106.12142 and 2409.01369.
"""

from __future__ import annotations

from dataclasses import dataclass

from .penalised import Penalised


@dataclass(frozen=True)
class ValueConsistency(Penalised):
    """The objective above."""

    formula = "value consistency: nll + lambda_td / td_scale * (V - gamma V')^2"

    def squares(self, terms, output):
        # r = Q - gamma V' and -log pi = V - Q: their sum is V - gamma V', wherever there is an r.
        drop = (terms.nll + terms.reward).masked_fill(~terms.has_reward, 0)
        return drop.square(), terms.has_reward
