"""
A row as token ids: the prompt as the policy is asked, and after it what the policy should write.

SFTTrainer writes prompt and completion together and takes the first tokens of the whole for the prompt. Where these
are the prompt's own tokens, so is it here, token for token. Where they are not, TRL 1.12 drops tokens of the answer,
and 1.16 trains after another prompt than the policy is asked with. The rule here is, on both: the prompt's own ids,
since a policy goes on from these, then the completion's own.

- Text ("Answer: " and "Paris" merge into " Paris"): then the ids of completion and EOS, encoded alone.
- Messages whose generation prompt is no beginning of the written conversation (templates that ask with "<think>" and
  write answers without): then what the conversation has after their common beginning, never later than where the
  answer's own text starts. An answer that holds the thoughts that it is asked for goes on after them in full, where
  the template would drop them.
- Completions that begin with another's turn (a user's, a tool's): no answer is asked for there. The prompt is what
  the whole has of it, to the end of its last message, and what follows is the completion's.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .encode_pair import encode_pair
from .messages import RowError, Turns, as_messages, completion_text, naming_row
from .templates import check_eos, from_template, template_arguments
from .unasked import prompt_unasked


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoded(NamedTuple):
    """
    Attributes:
        prompt (`list[int]`): token ids, as the policy is asked.
        completion (`list[int]`): token ids, as it should answer.
        as_sft (`bool`): whether both are what SFTTrainer makes of the row; if not, the rule above joined them.
    """

    prompt: list[int]
    completion: list[int]
    as_sft: bool = True

    @property
    def ids_and_labels(self) -> tuple[list[int], list[int]]:
        """All ids, and labels, -100 on the prompt."""
        return self.prompt + self.completion, [-100] * len(self.prompt) + self.completion

    def needs(self, apart: bool) -> int:
        """The context that it needs, in tokens; with `apart` an encoder and a decoder have one each."""
        lengths = (len(self.prompt), len(self.completion))
        return max(lengths) if apart else sum(lengths)


def asked(row: Mapping):
    """
    What a policy is asked with in a row, for whoever takes prompts: its `prompt` or, where the row has `tools` or
    `chat_template_kwargs`, which the chat template writes into it, a mapping of the three.
    """
    own = {key: row[key] for key in ("tools", "chat_template_kwargs") if row.get(key)}
    return {"prompt": row["prompt"], **own} if own else row["prompt"]


def as_row(prompt) -> dict:
    """A row of a prompt as [`asked`] gives it."""
    return dict(prompt) if isinstance(prompt, Mapping) else {"prompt": prompt}


def with_template_arguments(prompts: Sequence, arguments: Mapping | None) -> list:
    """The prompts, those of messages with arguments of the chat template that they do not have of their own."""
    if not arguments:
        return list(prompts)
    rows = [prompt if isinstance(prompt, str) else as_row(prompt) for prompt in prompts]
    return [
        row
        if isinstance(row, str)
        else {**row, "chat_template_kwargs": {**arguments, **(row.get("chat_template_kwargs") or {})}}
        for row in rows
    ]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict] | list[int] | Mapping,
    apart: bool = False,
    **template_kwargs,
) -> list[int]:
    """
    Token ids of a prompt: text as it is, messages by the chat template (with its arguments), ids themselves, and of a
    mapping ([`asked`]) those of its `prompt`, whose `tools` and `chat_template_kwargs` reach the template. With
    `apart` it is an encoder's: see [`~text.encode_pair`].
    """
    if apart:
        return encode_pair(tokenizer, as_row(prompt))[0]
    if isinstance(prompt, Mapping):
        template_kwargs = template_arguments(prompt, **template_kwargs)
        prompt = prompt["prompt"]
    if isinstance(prompt, str):
        return _text_ids(tokenizer, prompt)
    if not prompt or isinstance(prompt[0], int):
        return list(prompt)
    return _written(tokenizer, as_messages(prompt), add_generation_prompt=True, **template_kwargs)


def encode(tokenizer: PreTrainedTokenizerBase, row: Mapping, **template_kwargs) -> tuple[list[int], list[int]]:
    """
    Token ids of a row in TRL's prompt-completion format, and its labels: see [`encode_row`].

    Returns:
        `tuple[list[int], list[int]]`: all ids, and labels, -100 on the prompt.
    """
    return encode_row(tokenizer, row, **template_kwargs).ids_and_labels


def encode_row(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping,
    ended: bool = True,
    apart: bool = False,
    answers: bool = False,
    **template_kwargs,
) -> Encoded:
    """
    Token ids of a row in TRL's prompt-completion format, as training has them: see [`~text.encode`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        row (`Mapping`):
            `prompt`, text, messages or token ids, and `completion`, text or messages. After a text prompt an EOS token
            follows; messages are written by the chat template, which ends a turn by itself. `tools` and
            `chat_template_kwargs` reach the template.
        ended (`bool`, *optional*, defaults to `True`):
            If not, the completion was cut: nothing follows its text, neither EOS nor what the template ends a turn
            with.
        apart (`bool`, *optional*, defaults to `False`):
            Whether for an encoder-decoder, which reads the prompt and writes the completion: see
            [`~text.encode_pair`].
        answers (`bool`, *optional*, defaults to `False`):
            Whether a policy is to answer as the completion does: it must then begin where an answer is asked for.
        **template_kwargs:
            Arguments of the chat template.

    Raises:
        `ValueError`: the chat template cannot write the row, or it is no answer.
    """
    if apart:
        return Encoded(*encode_pair(tokenizer, row, ended=ended))
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], int):
        options = template_arguments(row, **template_kwargs)
        prompt, turns = as_messages(prompt), _turns(completion)
        unasked = prompt_unasked(tokenizer, prompt, turns, options)
        if answers and unasked is not None:
            raise RowError(
                f"its `completion` begins with a turn of the role {turns[0].get('role')!r}, and a policy is asked for "
                "the assistant's answer. Move that turn into the `prompt`, or call the role `assistant`."
            )
        of_row = _conversation if ended else _cut_conversation
        return of_row(tokenizer, prompt, turns, unasked, options)
    text = completion_text(completion)
    text = with_eos(tokenizer, text) if ended else text
    asked = prompt_ids(tokenizer, prompt)
    if isinstance(prompt, str):
        whole = _text_ids(tokenizer, prompt + text)
        if whole[: len(asked)] == asked:
            return Encoded(asked, whole[len(asked) :])
    return Encoded(asked, _alone(tokenizer, text), not isinstance(prompt, str))


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping],
    of: str = "",
    ended: Sequence[bool] | None = None,
    apart: bool = False,
    answers: bool = False,
) -> list[Encoded]:
    """
    [`encode_row`] of several rows; `of` says what they are of, for the message of an error, and `ended` which of their
    completions did, all if it is not given. `apart` is for an encoder-decoder, `answers` for what a policy imitates.

    Raises:
        `ValueError`: the chat template cannot write a row.
    """
    encoded = []
    for i, row in enumerate(rows):
        with naming_row(f"Row {i} of {of}" if of else f"Row {i}"):
            encoded.append(encode_row(tokenizer, row, ended is None or ended[i], apart, answers))
    return encoded


def whole_ids(tokenizer: PreTrainedTokenizerBase, row: Mapping, ended: bool = True) -> list[int]:
    """
    Token ids of a row as RewardTrainer makes them: written and encoded as one, wherever the prompt ends. `prompt` may
    be left out, where the completion has it in itself. With `ended=False` the completion was cut: nothing follows its
    text, neither EOS nor what the chat template ends a turn with.
    """
    prompt, completion = row.get("prompt"), row["completion"]
    if isinstance(prompt, str) or (prompt is None and isinstance(completion, str)):
        text = (prompt or "") + completion_text(completion)
        if not ended:
            return _text_ids(tokenizer, text)
        return list(tokenizer(with_eos(tokenizer, text))["input_ids"])
    messages = [*as_messages(prompt or []), *_turns(completion)]
    if not ended:
        options = {**template_arguments(row), "tokenize": False}
        text = _until_cut(tokenizer, messages, from_template(tokenizer, messages, **options), options)
        return _ids(tokenizer, text)
    return _written(tokenizer, messages, **template_arguments(row))


def with_eos(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """
    A text with the EOS token at its end, once.

    Raises:
        `ValueError`: see [`check_eos`].
    """
    check_eos(tokenizer)
    return text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token


def warn_of_seams(rows: Sequence[Encoded]) -> None:
    """One warning, with a count, if some rows are not as SFTTrainer would have made them."""
    count = sum(not row.as_sft for row in rows)
    if count:
        warnings.warn(seam_message(f"{count} of {len(rows)} rows"), stacklevel=3)


def seam_message(which: str) -> str:
    return (
        f"In {which} the prompt's tokens are not how prompt and completion begin when they are written together: the "
        "two merge into one token, or the chat template asks for an answer otherwise than it writes one. There the "
        "prompt's own tokens are taken, and the completion's own after them, as in sampling. Or the completion begins "
        "with a turn other than the assistant's: there all of that turn is the completion's. Nothing is dropped."
    )


def _turns(completion: str | Sequence[Mapping]) -> list[dict]:
    if isinstance(completion, Turns):
        return completion.messages
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion}]
    return as_messages(completion)


def _conversation(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict], completion: list[dict], unasked: str | None, options: dict
) -> Encoded:
    asked = _asked_ids(tokenizer, prompt, unasked, options)
    whole = _written(tokenizer, prompt + completion, **options)
    _check_tool_calls(tokenizer, completion, whole)
    if whole[: len(asked)] == asked:
        return Encoded(asked, whole[len(asked) :], unasked is None)
    options = {**options, "tokenize": False}
    asked_text = _asked_text(tokenizer, prompt, unasked, options)
    return Encoded(asked, _alone(tokenizer, _answer(tokenizer, prompt, completion, asked_text, options)), False)


def _cut_conversation(
    tokenizer: PreTrainedTokenizerBase, prompt: list[dict], completion: list[dict], unasked: str | None, options: dict
) -> Encoded:
    asked = _asked_ids(tokenizer, prompt, unasked, options)
    options = {**options, "tokenize": False}
    asked_text = _asked_text(tokenizer, prompt, unasked, options)
    answer = _answer(tokenizer, prompt, completion, asked_text, options)
    unclosed = re.match(r"\s*<(\w+)>\s*</\1>\s*(?=<\1>)", answer)
    if unclosed:  # cut in its thought, which the template takes for an answer without one
        answer = answer[unclosed.end() :]
    answer = _until_cut(tokenizer, prompt + completion, answer, options)
    both = _ids(tokenizer, asked_text + answer)
    if both[: len(asked)] == asked:
        return Encoded(asked, both[len(asked) :], unasked is None)
    return Encoded(asked, _alone(tokenizer, answer), False)


def _asked_ids(tokenizer, prompt: list[dict], unasked: str | None, options: dict) -> list[int]:
    if unasked is not None:
        return _ids(tokenizer, unasked)
    return _written(tokenizer, prompt, add_generation_prompt=True, **options)


def _asked_text(tokenizer, prompt: list[dict], unasked: str | None, options: dict) -> str:
    if unasked is not None:
        return unasked
    return from_template(tokenizer, prompt, add_generation_prompt=True, **options)


def _until_cut(tokenizer: PreTrainedTokenizerBase, messages: list[dict], text: str, options: dict) -> str:
    """A written conversation, or its end, without what the template writes behind the last message's own text."""
    *before, last = messages
    said = last.get("content") or ""
    if isinstance(said, str) and not last.get("tool_calls"):
        a, b = (from_template(tokenizer, [*before, {**last, "content": letter}], **options) for letter in "ab")
        ending = os.path.commonprefix([a[::-1], b[::-1]])[::-1]
        if text.endswith(ending):
            return text[: len(text) - len(ending)]
    said = said if said in text else said.strip()  # as many templates write it
    return text[: text.rfind(said) + len(said)] if said in text else text


def _answer(tokenizer, prompt: list[dict], completion: list[dict], asked: str, options: dict) -> str:
    """What is to be written after `asked`, which is no beginning of the written conversation."""

    def write(first: dict) -> str:
        return from_template(tokenizer, [*prompt, first, *completion[1:]], **options)

    first = completion[0]
    whole = write(first)
    if whole.startswith(asked):  # only their tokens merge
        return whole[len(asked) :]
    content = first.get("content")
    if not isinstance(content, str):  # a tool call: where its text starts cannot be told
        return whole[len(os.path.commonprefix([asked, whole])) :]
    others = [write({**first, "content": letter}) for letter in "ab"]
    header = os.path.commonprefix(others)  # what is written before an answer, whatever it says
    ending = others[0][len(header) + 1 :]
    if header.startswith(asked):  # asked for without thoughts, and the answer has some
        return content + ending
    start = os.path.commonprefix([asked, header, whole])
    closed = re.match(r"\s*</(\w+)>", asked[len(start) :])
    if closed:  # asked for with an empty thought, and the answer has one of its own: it is not cut in its middle
        return whole[max(start.rfind(f"<{closed[1]}>"), 0) :]
    unasked = from_template(tokenizer, prompt, **options)
    if not start.startswith(os.path.commonprefix([unasked, asked])):  # earlier turns are written otherwise
        return whole[len(os.path.commonprefix([header, whole])) :]
    opening = asked[len(start) :].strip()  # what the answer is asked to go on from, such as "<think>"
    if opening and content not in whole:  # the template leaves thoughts out
        if content.startswith(opening):
            return content[len(opening) :].lstrip("\n") + ending
        if opening.startswith("<") and f"</{opening[1:]}" in content:  # as it is sampled
            return content + ending
    return whole[len(start) :]


def _check_tool_calls(tokenizer, completion: list[dict], whole: list[int]) -> None:
    # A template that knows no tool calls writes "None" for a message that is nothing else.
    called = [m["tool_calls"] for m in completion if m.get("content") is None and m.get("tool_calls")]
    names = [call.get("function", call).get("name", "") for calls in called for call in calls]
    if names and not all(name in tokenizer.decode(whole) for name in names):
        raise RowError(
            f"A message of the `completion` is a call of the tool {names[0]!r} without text, and the chat template "
            "does not write tool calls. Take a tokenizer whose template does, or leave such rows out."
        )


def _written(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **options) -> list[int]:
    return list(from_template(tokenizer, messages, tokenize=True, return_dict=True, **options)["input_ids"])


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that begins a row; without the EOS that some tokenizers put behind every text."""
    ids, eos = list(tokenizer(text)["input_ids"]), tokenizer.eos_token_id
    if eos is None or ids[-1:] != [eos]:
        return ids
    if not text.endswith(tokenizer.eos_token):
        return ids[:-1]
    return ids[:-1] if ids[-2:] == [eos, eos] and not text.endswith(2 * tokenizer.eos_token) else ids


def _alone(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that goes on from others: without special tokens, and without a space of its own."""
    if not tokenizer.convert_ids_to_tokens(_ids(tokenizer, "a")[:1])[0].startswith("\u2581"):
        return _ids(tokenizer, text)
    # SentencePiece's tokenizers begin a text with a space of their own. Behind a line they do not.
    line, both = _ids(tokenizer, "\n"), _ids(tokenizer, f"\n{text}")
    return both[len(line) :] if both[: len(line)] == line else _ids(tokenizer, text)
