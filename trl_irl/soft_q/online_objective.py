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

import torch
from torch.nn.functional import pad

from .objective import SoftQTerms


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


def online_loss(
    terms: SoftQTerms,
    drop: torch.Tensor,
    is_policy: torch.Tensor,
    policy_weight: float,
    lambda_td: float,
    expert_tokens: torch.Tensor,
    policy_tokens: torch.Tensor,
    chi2_on: str = "mixture",
    kl: torch.Tensor | None = None,
    lambda_kl: float = 0.0,
) -> torch.Tensor:
    """
    The objective above, of some rows of a batch.

    Args:
        terms ([`SoftQTerms`]), drop (`torch.Tensor` of shape `(batch, positions)`):
            Of expert and policy rows together; see [`value_drop`].
        is_policy (`torch.Tensor` of shape `(batch,)`, bool):
            Which rows the policy wrote.
        policy_weight (`float`):
            w, from 0 to 1.
        lambda_td (`float`)
        expert_tokens, policy_tokens (`torch.Tensor`, scalars):
            Scored tokens of the whole batch, of which these rows may be a part: sums are divided by them.
        chi2_on (`str`, *optional*, defaults to `"mixture"`):
            `"expert"` takes the squared reward over expert tokens alone, with their whole weight: it leaves Q free
            where the policy goes, and diverges in practice.
        kl (`torch.Tensor` of shape `(batch, positions)`, *optional*):
            KL(pi || pi_ref) of each state, 0 where nothing is scored.
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of its mean over the mixture.

    Returns:
        `torch.Tensor`: a scalar, in nats (and squared nats).
    """
    if chi2_on not in CHI2_ON:
        raise ValueError(f"`chi2_on` must be one of {CHI2_ON}, got {chi2_on!r}.")
    is_policy = is_policy[:, None]

    def mean(values: torch.Tensor, of_policy: bool) -> torch.Tensor:
        tokens = policy_tokens if of_policy else expert_tokens
        return values.masked_fill(is_policy != of_policy, 0).sum() / tokens.clamp(min=1)

    def mixture(values: torch.Tensor, weight: float) -> torch.Tensor:
        return (1 - weight) * mean(values, False) + weight * mean(values, True)

    loss = mean(terms.nll, False)
    if policy_weight > 0:
        loss = loss + policy_weight * (mean(drop, True) - mean(drop, False))
    if lambda_td > 0:
        on_policy = policy_weight if chi2_on == "mixture" else 0.0
        loss = loss + lambda_td * mixture(terms.reward.square(), on_policy)
    if kl is not None:
        loss = loss + lambda_kl * mixture(kl, policy_weight)
    return loss
