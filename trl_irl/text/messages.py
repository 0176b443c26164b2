"""What the values of a row mean: text, or messages in the one form that chat templates read."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_RENAMED = {"from": "role", "value": "content"}  # as TRL's `maybe_convert_to_chatml` has them
_ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's, which many chat templates pass over in silence


class RowError(ValueError):
    """What is wrong with one row; [`naming_row`] says which it is."""


@contextmanager
def naming_row(where: str) -> Iterator[None]:
    """Puts `where`, such as "Row 3 of the train dataset", before the message of a [`RowError`] raised inside."""
    try:
        yield
    except RowError as error:
        raise ValueError(f"{where}: {error}") from error.__cause__


class Turns(str):
    """
    The text of a completion of several messages: what the assistant says in them, turn after turn. [`encode`] reads
    `messages`, all of them; what compares texts reads the text.
    """

    messages: list[dict]

    @classmethod
    def of(cls, messages: Sequence[Mapping]) -> Turns:
        texts = [message.get("content") for message in messages if message["role"] == "assistant"]
        turns = cls("\n\n".join(text for text in texts if isinstance(text, str)))
        turns.messages = list(messages)
        return turns

    def __reduce__(self):
        return Turns.of, (self.messages,)


def as_messages(value: Sequence[Mapping]) -> list[dict]:
    """
    Messages as chat templates read them: `from` and `value` renamed, and the roles that go with them (`human`, `gpt`),
    the parts of a text joined (text alone; images stay parts), and keys left out that hold nothing, as a column has
    them where only some rows use a key. `content` stays, whatever it is.
    """
    messages = []
    for message in value:
        named = {}
        for key, x in message.items():  # a file may have both forms, and then each message has the other's keys, empty
            if named.get(_RENAMED.get(key, key)) is None:
                named[_RENAMED.get(key, key)] = x
        if message.get("from") is not None:
            named["role"] = _ROLES.get(named["role"], named["role"])
        parts = named.get("content")
        if isinstance(parts, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
            named["content"] = "".join(part.get("text") or "" for part in parts)
        messages.append({key: x for key, x in named.items() if x is not None or key == "content"})
    return messages


def is_messages(value) -> bool:
    """Whether it is a list of messages, in TRL's form or with `from` and `value`."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and all(isinstance(message, Mapping) and ("role" in message or "from" in message) for message in value)
    )


def completion_text(completion: str | Sequence[Mapping]) -> str:
    """A completion's text: of messages, what the assistant says in them."""
    return completion if isinstance(completion, str) else Turns.of(as_messages(completion))


def last_content(value):
    """A value as it is, of messages what the last one says, text or not."""
    return as_messages(value)[-1].get("content") if is_messages(value) else value


def last_text(value: str | Sequence[Mapping]) -> str:
    """Text as it is, of messages what the last one says; numbers and the like as text."""
    said = last_content(value)
    return said if isinstance(said, str) else str(said)


def written(prompt: str | Sequence[Mapping]) -> str:
    """A prompt for a table's cell: text as it is, messages as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


def read_as_date(value: Any) -> str:
    """Why a value is a date, for the message of an error; nothing if it is none."""
    if not isinstance(value, datetime.date):
        return ""
    return (
        " If it was read from JSON, every text of the column looks like a date: in CSV, and in Parquet's columns of "
        "text, it stays text."
    )


def checked(value, key: str, where: str = ""):
    """
    The value of a row's `prompt` or `completion`: text as it is, messages by [`as_messages`].

    Args:
        value: what the row has.
        key (`str`): its column, for the message.
        where (`str`, *optional*): which row, for the message.

    Raises:
        `ValueError`: it is neither, or a message has no text where one is needed.
    """
    at = f"{where} has" if where else "A row has"
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError(f"{at} nothing (null) as its `{key}`, where text or a list of messages is needed. Remove it.")
    if not is_messages(value):
        raise ValueError(
            f"{at} {_shown(value)} as its `{key}`, which is neither text nor a list of messages (`role`, `content`). "
            f"Convert it, or name another column.{read_as_date(value)}"
        )
    messages = as_messages(value)
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) or (content is None and message.get("tool_calls")):
            continue
        if isinstance(content, list):
            raise ValueError(
                f"{at} a message in its `{key}` with the content {_shown(content)}, of which not every part is text. "
                "Only text can be read here: leave such rows out."
            )
        what = "nothing (null)" if content is None else _shown(content)
        raise ValueError(f"{at} a message in its `{key}` with {what} as its content. Give it text, or leave it out.")
    return messages


def check_alike(**lists: Sequence | None) -> None:
    """
    Raises:
        `ValueError`: one of the arguments is a single value (a text, a row, one conversation, the ids of one text) and
            not a list of them, or their lengths differ.
    """
    there = {name: value for name, value in lists.items() if value is not None}
    for name, value in there.items():
        one = isinstance(value, str | Mapping) or is_messages(value)
        if one or (name == "completion_ids" and isinstance(value, Sequence) and value and isinstance(value[0], int)):
            raise ValueError(f"`{name}` is a single value, {value!r:.60}, where a list is needed: `{name}=[...]`.")
    lengths = {name: len(value) for name, value in there.items() if isinstance(value, Sized)}
    if len(set(lengths.values())) > 1:
        told = " and ".join(f"{length} `{name}`" for name, length in lengths.items())
        raise ValueError(f"There are {told}: there must be as many of each.")


def check_no_images(columns: Mapping, where: str) -> None:
    """
    Args:
        columns (`Mapping`):
            Of a row, or of a batch of rows with a list per column.
        where (`str`):
            What has them, for the message.

    Raises:
        `ValueError`: `image` or `images` hold something, which TRL's trainers put into the prompt.
    """
    for key in ("image", "images"):
        value = columns.get(key)
        if value is None or (isinstance(value, Sequence) and not any(one is not None for one in value)):
            continue
        raise ValueError(
            f"{where} images in the column `{key}`. Only text can be read here, so that the model would be asked "
            "without them. IRLTrainer does train on such rows; sample from the model with its own processor, or "
            "remove the column if it is of no use."
        )


def _shown(value) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def text_behind(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """
    What token ids say that go on from a text. SentencePiece's decoders (Llama 2, Mistral and others) drop the space
    that a text begins with, and that of a completion's first word with it, which stands between the prompt and it.
    """
    before = tokenizer.encode("a", add_special_tokens=False)
    lead, text, whole = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (before, list(ids), [*before, *ids])
    )
    return f" {text}" if whole == f"{lead} {text}" else text


def said_and_read(
    tokenizer: PreTrainedTokenizerBase, completion: str | Sequence[Mapping], ids: Sequence[int], ended: bool = False
) -> tuple[str, str, bool]:
    """
    The text of a completion, what token ids are in a tokenizer, and whether that is the text. Of messages the
    assistant's own must be in it: TRL may have parsed thoughts and tool calls out of the ids. If it is known that they
    `ended`, the last is a stop token, which need be no special one: it is in TRL's texts, and in
    [`~text.sampling.Completion`]'s it is not.
    """
    read = tokenizer.decode(list(ids), skip_special_tokens=True)
    if isinstance(completion, str):
        is_own = completion == read or completion == text_behind(tokenizer, ids)
        if not is_own and ended:
            said = list(ids[:-1])
            without = tokenizer.decode(said, skip_special_tokens=True)
            is_own = completion == without or completion == text_behind(tokenizer, said)
        return completion, read, is_own
    texts = [turn["content"] for turn in completion if turn["role"] == "assistant" and turn.get("content")]
    return "".join(texts), read, all(text.strip() in read for text in texts)
