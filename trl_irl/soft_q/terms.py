"""
The terms that objectives are made of, one number per token:

    log pi(a_t|s_t) = Q(s_t, a_t) - V(s_t)
    r(s_t, a_t)     = Q(s_t, a_t) - gamma * V(s_{t+1})                      the implied reward, in nats

Papers: "IQ-Learn: Inverse soft-Q Learning for Imitation" (arXiv 2106.12142); "Imitating Language via Scalable Inverse
Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn.functional import pad


TERMINAL_VALUES = ("zero", "mask")


def check_terminal_value(terminal_value: str) -> None:
    """
    Raises:
        `ValueError`: there is no such one.
    """
    if terminal_value not in TERMINAL_VALUES:
        raise ValueError(f"`terminal_value: {terminal_value}` is unknown; there are {', '.join(TERMINAL_VALUES)}.")


@dataclass(frozen=True)
class SoftQTerms:
    """
    The terms of the objective, each of shape `(batch, positions)`; numbers are 0 where their mask is False.

    Attributes:
        nll (`torch.Tensor`): -log pi(a_t|s_t), in nats.
        reward (`torch.Tensor`): r(s_t, a_t), in nats.
        scored (`torch.Tensor`, bool): positions whose label is not -100; `nll` is defined here.
        has_reward (`torch.Tensor`, bool): positions with a known next state; `reward` and `value_drop` are defined
            here.
        is_terminal (`torch.Tensor`, bool): positions whose label is a stop token.
        value_drop (`torch.Tensor`): V(s_t) - gamma * V(s_{t+1}), the part of the reward that is not of the action, in
            nats.
        value (`torch.Tensor`): V(s_t), in nats, where `nll` is defined.
    """

    nll: torch.Tensor
    reward: torch.Tensor
    scored: torch.Tensor
    has_reward: torch.Tensor
    is_terminal: torch.Tensor
    value_drop: torch.Tensor
    value: torch.Tensor


def soft_q_terms(
    q: torch.Tensor,
    v: torch.Tensor,
    labels: torch.Tensor,
    stop_token_ids: Iterable[int],
    gamma: float = 1.0,
    terminal_value: str = "mask",
    td_target_grad: bool = True,
    soft_v: torch.Tensor | None = None,
    origin: torch.Tensor | None = None,
) -> SoftQTerms:
    """
    Negative log-likelihood and implied reward of each scored token.

    What V' (the value of the next state) is at position t:

    - the label at t is a stop token: the state after it is terminal, V' = 0, whatever follows it in the row;
    - position t + 1 is scored too: V' is V at t + 1;
    - otherwise (a completion cut by `max_length`, or a masked next label) the next state is unknown: no reward there.

    So nothing leaks across packed documents, padding, prompts or turns, and no padding id is ever looked at.

    Args:
        q (`torch.Tensor` of shape `(batch, positions)`):
            Q(s_t, a_t), a_t being the label.
        v (`torch.Tensor` of shape `(batch, positions)`):
            V(s_t).
        labels (`torch.Tensor` of shape `(batch, positions)`, int64):
            a_t, -100 where not scored. Aligned with `q`: already shifted.
        stop_token_ids (`Iterable[int]`):
            Tokens after which the state is terminal.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount of the next state's value.
        terminal_value (`str`, *optional*, defaults to `"mask"`):
            `"zero"`: V' = 0 after a stop token. `"mask"`: no reward there, since pretrained logits can have a large V
            (NLL does not see a constant added to all logits of a state) that would dominate an early loss.
        td_target_grad (`bool`, *optional*, defaults to `True`):
            Whether gradients flow through V'. `False` is a semi-gradient, as in fitted Q-iteration.
        soft_v (`torch.Tensor` of shape `(batch, positions)`, *optional*):
            The values of the reward, where they are of another temperature than the policy's.
        origin (`torch.Tensor` of shape `(batch, positions)`, *optional*):
            What Q and V are taken from at each state, such as the V of a reference: it is subtracted from both, which
            leaves log pi as it is, and V' = 0 of a terminal state is there from its own.

    Returns:
        [`SoftQTerms`]
    """
    check_terminal_value(terminal_value)
    scored = labels != -100
    is_terminal = torch.zeros_like(scored)
    for token in stop_token_ids:  # a few; a tensor of them would have to be copied to the device, and waited for
        is_terminal |= labels == token
    continues = scored & ~is_terminal & pad(scored[:, 1:], (0, 1), value=False)
    has_reward = continues | is_terminal if terminal_value == "zero" else continues

    soft_v = v if soft_v is None else soft_v
    if origin is not None:
        q, v, soft_v = q - origin, v - origin, soft_v - origin
    next_v = pad(soft_v[:, 1:], (0, 1)).masked_fill(~continues, 0)
    if not td_target_grad:
        next_v = next_v.detach()
    return SoftQTerms(
        nll=(v - q).masked_fill(~scored, 0),
        reward=(q - gamma * next_v).masked_fill(~has_reward, 0),
        scored=scored,
        has_reward=has_reward,
        is_terminal=is_terminal,
        value_drop=(soft_v - gamma * next_v).masked_fill(~has_reward, 0),
        value=v.masked_fill(~scored, 0),
    )
