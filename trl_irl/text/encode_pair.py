"""A row as an encoder-decoder reads it: the prompt for the encoder, and what the decoder should write."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from .messages import RowError, as_messages, completion_text
from .templates import check_eos, from_template, template_arguments


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping,
    max_prompt: int | None = None,
    max_completion: int | None = None,
    stop_tokens: Collection[int] = (),
    ended: bool = True,
) -> tuple[list[int], list[int]]:
    """
    Token ids of a row as an encoder-decoder reads it: the prompt's, with the special tokens that the tokenizer puts
    around an input, and the completion's, with those of a target and, if none of `stop_tokens` ends it, EOS. The space
    that begins a completion behind a text prompt is none of the decoder's.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        row (`Mapping`):
            `prompt`, text, messages or ids, and `completion`, text or messages (it may be left out), or `messages`
            that end in the assistant's. Messages are written by the chat template; without one, a single user's
            message is its text.
        max_prompt, max_completion (`int`, *optional*):
            Longest, in tokens. A prompt keeps its special tokens; a completion that is cut has no end.
        stop_tokens (`Collection[int]`, *optional*)
        ended (`bool`, *optional*, defaults to `True`):
            If not, the completion was cut, and nothing follows its text.

    Raises:
        `ValueError`: messages that no chat template can write, or a tokenizer without EOS.
    """
    if "messages" in row and "prompt" not in row:
        row = {**row, "prompt": row["messages"][:-1], "completion": row["messages"][-1:]}
    check_eos(tokenizer)
    text = completion_text(row.get("completion", "")).lstrip()
    answer = list(tokenizer(text_target=text)["input_ids"])
    stops = {tokenizer.eos_token_id, *stop_tokens}
    if not ended:
        while answer and answer[-1] in stops:
            answer.pop()
    elif not answer or answer[-1] not in stops:
        answer.append(tokenizer.eos_token_id)
    return _prompt(tokenizer, row, max_prompt), answer[:max_completion]


def _prompt(tokenizer: PreTrainedTokenizerBase, row: Mapping, longest: int | None) -> list[int]:
    prompt = row["prompt"]
    if not isinstance(prompt, str) and (not prompt or isinstance(prompt[0], int)):
        return list(prompt)[:longest]
    options = {} if longest is None else {"truncation": True, "max_length": longest}
    if not isinstance(prompt, str):
        prompt = as_messages(prompt)
        if tokenizer.chat_template is not None:
            asking = {"tokenize": False, "add_generation_prompt": True}
            prompt = from_template(tokenizer, prompt, **asking, **template_arguments(row))
            options["add_special_tokens"] = False
        elif len(prompt) == 1:
            prompt = prompt[0]["content"]
        else:
            raise RowError(
                f"its prompt is {len(prompt)} messages, and the tokenizer has no chat template to write them with. "
                "Give one text, or a tokenizer with a `chat_template`."
            )
    return list(tokenizer(prompt, **options)["input_ids"])
