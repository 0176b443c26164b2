"""
The online inverse soft-Q objective: expert tokens E, the policy's own tokens P, and their mixture M of weight w on P.

    L = -E_E[Q - gamma V'] + E_M[V - gamma V'] + lambda_td * E_M[(Q - gamma V')^2],    E_M = (1 - w) E_E + w E_P

Since E_E[V - gamma V'] - E_E[Q - gamma V'] = E_E[V - Q] is the negative log-likelihood, this is

    L = E_E[-log pi] + w * (E_P[V - gamma V'] - E_E[V - gamma V']) + lambda_td * ((1 - w) E_E[r^2] + w E_P[r^2])

and it is computed so: at w = 0 it is the offline objective, term by term.

What the middle term is: over one finished completion, V_0 - gamma V_1 + V_1 - gamma V_2 + ... + V_T telescopes to
V_0 + (1 - gamma) (V_1 + ... + V_T). With gamma = 1 only the value of the prompt is left, the same for both completions
of a prompt, so that per completion the middle term vanishes and the policy's tokens come in through r^2 alone. Means
here are over tokens, as the offline objective's are: what is left of it is w (1 / mean policy length - 1 / mean expert
length) V_0, which pulls on the value of prompts, and on no action, where the policy writes shorter or longer than the
expert.

Papers: "IQ-Learn: Inverse soft-Q Learning for Imitation" (arXiv 2106.12142), whose chi-squared term over E alone
diverges when online; "Imitating Language via Scalable Inverse Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from ..terms import SoftQTerms
from .objective import Objective


if TYPE_CHECKING:
    from ..head import SoftQOutput


CHI2_ON = ("mixture", "expert")


def value_drop(v: torch.Tensor, terms: SoftQTerms, gamma: float) -> torch.Tensor:
    """
    V - gamma V' of each token whose next state is known; V' = 0 after a stop token, whatever `terminal_value` says of
    its temporal-difference term.

    Args:
        v (`torch.Tensor` of shape `(batch, positions)`):
            V(s_t).
        terms ([`SoftQTerms`]):
            Of the same tokens.
        gamma (`float`)

    Returns:
        `torch.Tensor` of shape `(batch, positions)`: in nats, 0 where the next state is not known.
    """
    continues = terms.has_reward & ~terms.is_terminal
    next_v = pad(v[:, 1:], (0, 1)).masked_fill(~continues, 0)
    return (v - gamma * next_v).masked_fill(~(continues | terms.is_terminal), 0)


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
    formula = "online inverse soft-Q: nll + value drop of the policy + lambda_td / td_scale * r^2"

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

        Returns:
            `torch.Tensor`: a scalar, in nats (and squared nats).
        """
        if is_policy is None:
            is_policy = torch.zeros(len(terms.nll), dtype=torch.bool, device=terms.nll.device)
        is_policy, weight = is_policy[:, None], 0.0 if expert_per_policy is None else self.policy_weight

        def total(values: torch.Tensor, of_policy: bool) -> torch.Tensor:
            summed = values.masked_fill(is_policy != of_policy, 0).sum()
            return summed * expert_per_policy if of_policy and expert_per_policy is not None else summed

        def mixture(values: torch.Tensor, share: float) -> torch.Tensor:
            return (1 - share) * total(values, False) + share * total(values, True)

        loss = total(terms.nll, False)
        if weight > 0:
            drop = value_drop(output.v, terms, self.gamma)
            loss = loss + weight * (total(drop, True) - total(drop, False))
        if lambda_td > 0:
            on_policy = weight if self.chi2_on == "mixture" else 0.0
            loss = loss + lambda_td * mixture(terms.reward.square(), on_policy)
        if output.kl is not None:
            loss = loss + self.lambda_kl * mixture(output.kl, weight)
        return loss
