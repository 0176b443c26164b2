"""A row as an encoder-decoder reads it: the prompt for the encoder, and what the decoder should write."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from .messages import RowError, Turns, as_messages, completion_text, is_messages
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
    around an input, and the completion's, with those of a target and, if none of `stop_tokens` ends it, EOS. What a
    tokenizer writes behind the end of a target, such as mBART its language, stays there. White space that
    begins a completion is none of the decoder's.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        row (`Mapping`):
            `prompt`, text, messages or ids, and `completion`, text or messages (it may be left out), or `messages`
            that end in the assistant's. Messages are written by the chat template; without one, a single user's
            message is its text.
        max_prompt, max_completion (`int`, *optional*):
            Longest, in tokens. A prompt keeps its special tokens; a completion that is cut has no end, nor what
            follows it.
        stop_tokens (`Collection[int]`, *optional*)
        ended (`bool`, *optional*, defaults to `True`):
            If not, the completion was cut, and nothing follows its text.

    Raises:
        `ValueError`: messages that no chat template can write or that do not end in the assistant's, a prompt without
            a token, or a tokenizer without EOS.
    """
    if "messages" in row and "prompt" not in row:
        messages = as_messages(row["messages"])
        if len(messages) < 2 or messages[-1].get("role") != "assistant":
            raise RowError(
                "its `messages` do not end in the assistant's answer to something, so that there is nothing to ask or "
                "nothing to say."
            )
        row = {**row, "prompt": messages[:-1], "completion": messages[-1:]}
    completion = row.get("completion")
    turns = completion.messages if isinstance(completion, Turns) else completion
    if is_messages(turns) and (role := as_messages(turns)[0]["role"]) != "assistant":
        raise RowError(
            f"its `completion` begins with a turn of the role {role!r}, and a decoder writes what the assistant says. "
            "Move that turn into the `prompt`, or call the role `assistant`."
        )
    check_eos(tokenizer)
    text = completion_text(row.get("completion", "")).lstrip()
    if ended:
        text = text.removesuffix(tokenizer.eos_token)  # of a row that has it already
    said, end, behind = _parts(tokenizer, text, {tokenizer.eos_token_id, *stop_tokens})
    answer = said + (end or [tokenizer.eos_token_id]) if ended else said
    whole = answer + behind
    prompt = _prompt(tokenizer, row, max_prompt)
    if not prompt:
        raise RowError("it has an empty prompt, without one token for the encoder to read.")
    if not ended or (max_completion is not None and len(whole) > max_completion):
        whole = answer  # what follows an end follows no cut
    return prompt, whole[:max_completion]


def _parts(
    tokenizer: PreTrainedTokenizerBase, text: str, stops: Collection[int]
) -> tuple[list[int], list[int], list[int]]:
    """A target's text, the stop tokens that end it, if any, and the special tokens that come behind those."""
    ids = list(tokenizer(text_target=text)["input_ids"])
    last = max((i for i, token in enumerate(ids) if token in stops), default=None)
    if last is None or not set(ids[last + 1 :]) <= set(tokenizer.all_special_ids):
        return ids, [], []
    first = last
    while first and ids[first - 1] in stops:
        first -= 1
    return ids[:first], ids[first : last + 1], ids[last + 1 :]


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
