"""What a model says about every token of given completions: Q, V, likelihood and implied reward, as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from .._modes import in_mode
from ..text.context import context_length, over
from ..text.padding import padded, padded_batch


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenValues:
    """
    One completion, a number per token; each array has the shape `(tokens,)`, float32 unless said otherwise.

    Attributes:
        token_ids (`np.ndarray`, int64): the completion's tokens.
        q (`np.ndarray`): Q(s_t, a_t), in nats.
        v (`np.ndarray`): V(s_t), in nats; the first is V(s_0), the value of the prompt.
        reward (`np.ndarray`): Q(s_t, a_t) - gamma * V(s_{t+1}), in nats; 0 where the next state is unknown.
        has_reward (`np.ndarray`, bool): whether the next state is known: not at the end of a completion that was cut.
    """

    token_ids: np.ndarray
    q: np.ndarray
    v: np.ndarray
    reward: np.ndarray
    has_reward: np.ndarray

    @property
    def log_pi(self) -> np.ndarray:
        """log pi(a_t|s_t), in nats: also the advantage Q(s_t, a_t) - V(s_t)."""
        return self.q - self.v


@torch.no_grad()
def token_values(
    model: PreTrainedModel,
    encoded: Sequence[tuple[list[int], list[int]]],
    stop_tokens: Iterable[int],
    gamma: float = 1.0,
    terminal_value: str = "mask",
    batch_size: int = 8,
    description: str = "",
    value_temperature: float = 1.0,
) -> list[TokenValues]:
    """
    Values of every completion's tokens, in batches of rows of similar length. No logits of a whole sequence ever
    exist: see [`~soft_q.head`].

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Its logits are read as Q-values, whatever it was trained by. It is left as it was.
        encoded (`Sequence[tuple[list[int], list[int]]]`):
            Token ids of prompt and completion, and labels, -100 on the prompt; also of an encoder-decoder, which is
            given the two apart.
        stop_tokens (`Iterable[int]`):
            Tokens after which the state is terminal.
        gamma (`float`, *optional*, defaults to `1.0`)
        terminal_value (`str`, *optional*, defaults to `"mask"`):
            Both as in [`~soft_q.terms.soft_q_terms`].
        batch_size (`int`, *optional*, defaults to `8`)
        description (`str`, *optional*):
            Label of the progress bar; empty for none.
        value_temperature (`float`, *optional*, defaults to `1.0`):
            Of the values in the reward; see [`~soft_q.objectives.offline`].

    Returns:
        `list[TokenValues]`, in the order of `encoded`.

    Raises:
        `ValueError`: a row does not fit into the model's context, or has a token that the model does not know.
    """
    from ..soft_q import Statistics, soft_q_head, soft_q_terms

    asked = Statistics(temperature=None if value_temperature == 1 else value_temperature)
    _check(model, encoded)
    values: list[TokenValues | None] = [None] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i][0]))  # little padding
    with soft_q_head(model), in_mode(model, training=False):
        seen = None if description else True  # a bar only where somebody sees it move
        for start in tqdm(range(0, len(order), batch_size), desc=description, leave=False, disable=seen):
            chosen = order[start : start + batch_size]
            ids, of_rows = zip(*(encoded[i] for i in chosen), strict=True)
            if model.config.is_encoder_decoder:
                ids, of_rows = zip(*map(_apart, ids, of_rows), strict=True)
            # Any id will do as padding: it is masked, and follows what is scored.
            batch = padded_batch(ids, 0, device=model.device)
            labels = padded(of_rows, -100, device=model.device)
            output = model(**batch, labels=labels, soft_q="values", statistics=asked)
            terms = soft_q_terms(
                output.q,
                output.v,
                output.labels,
                stop_tokens,
                gamma,
                terminal_value,
                soft_v=output.v_tempered,
            )
            grid = (output.labels, output.q, output.v, terms.reward, terms.has_reward)
            for row, i in enumerate(chosen):
                scored = terms.scored[row]
                values[i] = TokenValues(*(tensor[row][scored].cpu().numpy() for tensor in grid))
    return values


def _apart(ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
    """The prompt's ids, and the completion's labels."""
    start = next((i for i, label in enumerate(labels) if label != -100), len(labels))
    return ids[:start], labels[start:] or [-100]


def _check(model: PreTrainedModel, encoded: Sequence[tuple[list[int], list[int]]]) -> None:
    from ..soft_q.own_forward import embedding_rows

    vocabulary, context = embedding_rows(model), context_length(model.config)
    lengths, what = {i: len(ids) for i, (ids, _) in enumerate(encoded)}, "prompt and completion together"
    if model.config.is_encoder_decoder:
        lengths = {i: max(map(len, _apart(*row))) for i, row in enumerate(encoded)}
        what = "prompt or completion"
    for i, length in over(context, lengths).items():
        raise ValueError(
            f"Row {i} has {length} tokens, {what}, and the model's context is {context}. "
            "Leave such rows out, or shorten them."
        )
    for i, (ids, _) in enumerate(encoded):
        if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ValueError(
                f"Row {i} has the token id {max(ids) if max(ids) >= vocabulary else min(ids)}, and the model's "
                f"vocabulary has {vocabulary}. These ids are of another tokenizer: give text, or use the model's own."
            )
