"""Likelihood and temporal-difference error of given completions, token by token, with the rules of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .token_values import stop_token_ids, token_values


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict] | list[int], **template_kwargs
) -> list[int]:
    """Token ids of a prompt: text as it is, messages by the chat template (with its arguments), ids themselves."""
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    if not prompt or isinstance(prompt[0], int):
        return list(prompt)
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, **template_kwargs)
    return encoded["input_ids"]


def completion_text(completion: str | list[dict]) -> str:
    """A completion's text, be it text or messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def encode(tokenizer: PreTrainedTokenizerBase, row: dict, **template_kwargs) -> tuple[list[int], list[int]]:
    """
    Token ids of a row as SFTTrainer makes them of prompt-completion data.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        row (`dict`):
            `prompt`, text or messages, and `completion`, text. After a text prompt an EOS token follows; messages are
            written by the chat template, which ends a turn by itself.
        **template_kwargs:
            Arguments of the chat template.

    Returns:
        `tuple[list[int], list[int]]`: all ids, and labels, -100 on the prompt.
    """
    prompt = prompt_ids(tokenizer, row["prompt"], **template_kwargs)
    if isinstance(row["prompt"], str):
        text = row["prompt"] + row["completion"]
        if not text.endswith(tokenizer.eos_token):
            text += tokenizer.eos_token
        ids = tokenizer(text)["input_ids"]
    else:
        answer = [{"role": "assistant", "content": row["completion"]}]
        messages = [*row["prompt"], *answer]
        ids = tokenizer.apply_chat_template(messages, return_dict=True, **template_kwargs)["input_ids"]
    return ids, [-100] * len(prompt) + ids[len(prompt) :]


def held_out_sums(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    gamma: float = 1.0,
    terminal_value: str = "zero",
    batch_size: int = 8,
    description: str = "Held-out loss",
) -> dict[str, np.ndarray]:
    """
    Negative log-likelihood and squared implied reward of each row's completion, summed over its tokens.

    Args:
        model ([`~transformers.PreTrainedModel`])
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        rows (`Sequence[dict]`):
            See [`encode`].
        gamma, terminal_value, batch_size, description:
            See [`~rewards.token_values.token_values`].

    Returns:
        `dict[str, np.ndarray]`: `nll` (nats) and `td_loss` (nats squared), each of shape `(rows, 2)`, float64: the
        sum, and how many tokens it is over. `td_loss` leaves out tokens whose next state is unknown.

    Raises:
        `ValueError`: a row does not fit into the model's context.
    """
    values = token_values(
        model,
        [encode(tokenizer, row) for row in rows],
        stop_token_ids(model, tokenizer),
        gamma=gamma,
        terminal_value=terminal_value,
        batch_size=batch_size,
        description=description,
    )
    nll = [(-row.log_pi.sum(dtype=np.float64), len(row.token_ids)) for row in values]
    td_loss = [(np.square(row.reward, dtype=np.float64).sum(), row.has_reward.sum()) for row in values]
    return {"nll": np.array(nll, dtype=np.float64), "td_loss": np.array(td_loss, dtype=np.float64)}
