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

from .per_token import SCHEDULE, PerToken, of_values


@dataclass(frozen=True)
class ValueConsistency(PerToken):
    """
    The objective above.

    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
        value_origin (`str`, *optional*, defaults to `"zero"`):
            What V is taken from, see [`~soft_q.objectives.per_token`].
    """

    value_origin: str = "zero"
    title = "value consistency"
    uses = (*SCHEDULE, "gamma", "td_target_grad", "value_origin")
    squares_logged = ("value_drop_squared",)

    @property
    def adds(self) -> str:
        return f"lambda_td / td_scale * (V - gamma V')^2{of_values(self)}"

    def squares(self, terms, output):
        return terms.value_drop.square(), terms.has_reward

    def metrics(self, terms, output):
        return {"value_drop_squared": self.squares(terms, output)}
