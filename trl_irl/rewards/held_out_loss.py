"""Likelihood and temporal-difference error of given completions, token by token, with the rules of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..text.encode import encode_rows, warn_of_seams
from ..text.stop_tokens import stop_token_ids
from .token_values import token_values


def held_out_sums(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    gamma: float = 1.0,
    terminal_value: str = "mask",
    batch_size: int = 8,
    description: str = "Held-out loss",
    value_temperature: float = 1.0,
) -> dict[str, np.ndarray]:
    """
    Negative log-likelihood and squared implied reward of each row's completion, summed over its tokens.

    Args:
        model ([`~transformers.PreTrainedModel`])
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        rows (`Sequence[dict]`):
            See [`~text.encode.encode_row`].
        gamma, terminal_value, batch_size, description, value_temperature:
            See [`~rewards.token_values.token_values`].

    Returns:
        `dict[str, np.ndarray]`: `nll` (nats) and `td_loss` (nats squared), each of shape `(rows, 2)`, float64: the
        sum, and how many tokens it is over. `td_loss` leaves out tokens whose next state is unknown.

    Raises:
        `ValueError`: a row does not fit into the model's context.
    """
    encoded = encode_rows(tokenizer, rows, apart=model.config.is_encoder_decoder)
    warn_of_seams(encoded)
    values = token_values(
        model,
        [row.ids_and_labels for row in encoded],
        stop_token_ids(model, tokenizer),
        gamma=gamma,
        terminal_value=terminal_value,
        batch_size=batch_size,
        description=description,
        value_temperature=value_temperature,
    )
    nll = [(-row.log_pi.sum(dtype=np.float64), len(row.token_ids)) for row in values]
    td_loss = [(np.square(row.reward, dtype=np.float64).sum(), row.has_reward.sum()) for row in values]
    return {"nll": np.array(nll, dtype=np.float64), "td_loss": np.array(td_loss, dtype=np.float64)}
