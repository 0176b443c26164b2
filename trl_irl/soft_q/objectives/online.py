"""
The online inverse soft-Q objective: expert tokens E, the policy's own tokens P, and their mixture M of weight w on P.

    L = -E_E[Q - gamma V'] + E_M[V - gamma V'] + lambda_td * E_M[(Q - gamma V')^2],    E_M = (1 - w) E_E + w E_P

Since E_E[V - gamma V'] - E_E[Q - gamma V'] = E_E[V - Q] is the negative log-likelihood, this is

    L = E_E[-log pi] + w * (E_P[V - gamma V'] - E_E[V - gamma V']) + lambda_td * ((1 - w) E_E[r^2] + w E_P[r^2])

and it is computed so: at w = 0 it is the offline objective, term by term.

The middle term compares two completions and not two tokens: that E[V - gamma V'] is what the value of the first state
makes it, whoever acts (IQ-Learn's identity), holds of sums over a whole trajectory. Over a finished completion
V_0 - gamma V_1 + V_1 - gamma V_2 + ... + V_T telescopes to

    D = V_0 + (1 - gamma) (V_1 + ... + V_T)

With D_E and D_P the means over completions, and l_E the expert's mean length, the term is w (D_P - D_E) / l_E. A mean
over tokens instead would leave w (1 / l_P - 1 / l_E) V_0 of it where lengths differ, and V - gamma V' summed up to
where a completion was cut would leave -gamma V of its last state: both fall without an end as a constant is added to
all values, or to those of the states in which the policy is cut off, and neither r^2 with `terminal_value` "mask" nor
the likelihood sees that constant. With gamma = 1 only V_0 is left, which is the same for both completions of a prompt:
the term vanishes where each prompt has as many on both sides, and the policy's tokens come in through r^2 alone.

Papers: "IQ-Learn: Inverse soft-Q Learning for Imitation" (arXiv 2106.12142), whose chi-squared term over E alone
diverges when online; "Imitating Language via Scalable Inverse Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..terms import SoftQTerms
from .objective import Objective


if TYPE_CHECKING:
    from ..head import SoftQOutput


CHI2_ON = ("mixture", "expert")


def value_drop(v: torch.Tensor, scored: torch.Tensor, gamma: float) -> torch.Tensor:
    """
    Each state's part of D, the sum of V - gamma V' over a completion: V of the first scored state, (1 - gamma) V of
    the later ones. Of a completion that was cut it is D of the states that are known.

    Args:
        v (`torch.Tensor` of shape `(batch, positions)`):
            V(s_t).
        scored (`torch.Tensor` of shape `(batch, positions)`, bool)
        gamma (`float`)

    Returns:
        `torch.Tensor` of shape `(batch, positions)`: in nats, 0 where nothing is scored.
    """
    is_first = scored & (scored.cumsum(-1) == 1)
    return torch.where(is_first, v, (1 - gamma) * v).masked_fill(~scored, 0)


@dataclass(frozen=True)
class OnlineInverseSoftQ(Objective):
    """
    The objective above, of some rows of a batch, times the number of the batch's expert tokens.

    Args:
        policy_weight (`float`):
            w, from 0 to 1.
        gamma (`float`):
            Of the terms.
        chi2_on (`str`, *optional*, defaults to `"mixture"`):
            `"expert"` takes the squared reward over expert tokens alone, with their whole weight: it leaves Q free
            where the policy goes, and diverges in practice.
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL's mean over the mixture, where the output has one.

    Raises:
        `ValueError`: `chi2_on` is unknown.
    """

    policy_weight: float
    gamma: float
    chi2_on: str = "mixture"
    lambda_kl: float = 0.0
    measures = ("td_scale",)
    squares_logged = ("td_loss",)
    formula = "online inverse soft-Q: nll + V along the policy's completions + lambda_td / td_scale * r^2"

    def __post_init__(self):
        if self.chi2_on not in CHI2_ON:
            raise ValueError(f"`chi2_on` must be one of {CHI2_ON}, got {self.chi2_on!r}.")

    def first_step(self, terms, output):
        return {"td_scale": (terms.reward.square(), terms.has_reward)}

    def __call__(
        self,
        terms: SoftQTerms,
        output: SoftQOutput,
        lambda_td: float,
        is_policy: torch.Tensor | None = None,
        expert_per_policy: torch.Tensor | None = None,
        expert_rows_per_policy_row: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            terms ([`~soft_q.terms.SoftQTerms`]), output ([`~soft_q.head.SoftQOutput`]):
                Of expert and policy rows together.
            lambda_td (`float`)
            is_policy (`torch.Tensor` of shape `(batch,)`, bool, *optional*):
                Which rows the policy wrote; none if unset.
            expert_per_policy (`torch.Tensor`, scalar, *optional*):
                The whole batch's expert tokens over its policy tokens, of which these rows may hold a part. Without
                policy tokens it is unset, and the objective is the offline one.
            expert_rows_per_policy_row (`torch.Tensor`, scalar, *optional*):
                The same of completions; needed with `expert_per_policy`.

        Returns:
            `torch.Tensor`: a scalar, in nats (and squared nats).
        """
        if is_policy is None:
            is_policy = torch.zeros(len(terms.nll), dtype=torch.bool, device=terms.nll.device)
        is_policy, weight = is_policy[:, None], 0.0 if expert_per_policy is None else self.policy_weight

        def total(
            values: torch.Tensor, of_policy: bool, ratio: torch.Tensor | None = expert_per_policy
        ) -> torch.Tensor:
            summed = values.masked_fill(is_policy != of_policy, 0).sum()
            return summed * ratio if of_policy and ratio is not None else summed

        def mixture(values: torch.Tensor, share: float) -> torch.Tensor:
            return (1 - share) * total(values, False) + share * total(values, True)

        loss = total(terms.nll, False)
        if weight > 0:
            drop = value_drop(output.v, terms.scored, self.gamma)
            loss = loss + weight * (total(drop, True, expert_rows_per_policy_row) - total(drop, False))
        if lambda_td > 0:
            on_policy = weight if self.chi2_on == "mixture" else 0.0
            loss = loss + lambda_td * mixture(terms.reward.square(), on_policy)
        if output.kl is not None:
            loss = loss + self.lambda_kl * mixture(output.kl, weight)
        return loss
