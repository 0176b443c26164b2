"""Rows made to prompt and completion: of columns that the user names, of messages, of preference pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np
from trl import extract_prompt

from ..text.messages import Turns, check_no_images, checked, read_as_date
from .data import PLACEHOLDER, TaskData


class NoSuchColumn(ValueError):
    """What is read is in no column of a row, as in the others of its file."""


def from_columns(row: Mapping, data: TaskData, where: str) -> dict:
    """`prompt` and, if there is a column for it, `completion`."""
    made = {"prompt": prompt_from_columns(row, data, where)}
    if data.target_column is None:
        return made
    text = _column(row, data.target_column, where)
    if data.kind.target is not None:
        text = data.kind.target(text, data)
    return {**made, "completion": _behind(made["prompt"], text)}


def _behind(prompt, text: str) -> str:
    """A completion of its own column, one space behind the prompt, unless that ends in white space."""
    ends_open = isinstance(prompt, str) and prompt[-1:].isspace()
    return text.lstrip() if ends_open else f" {text.lstrip()}"


def format_row(row: Mapping, data: TaskData, where: str = "A row", reference: bool = True) -> dict:
    """
    A row of [`~tasks.splits.load_task`] with `formatted=False` as [`as_prompt_completion`] gives it.

    Args:
        row (`Mapping`), data (`TaskData`)
        where (`str`, *optional*):
            Which row, for the message of an error.
        reference (`bool`, *optional*, defaults to `True`):
            Whether it must have a completion, of a preference pair the chosen one. Without one it may be its prompt
            alone.

    Raises:
        `ValueError`: it cannot be read so.
    """
    if data.source_column is None:
        check_no_images(row, f"{where} has")
    row = row_with_columns(row, data, where)
    if {"chosen", "rejected"} <= row.keys() and "completion" not in row and data.source_column is None:
        row["completion"] = row["chosen"]
    if data.chat_format:
        row = as_chat(row, where)
    return as_prompt_completion(row, where, reference)


def row_with_columns(row: Mapping, data: TaskData, where: str = "A row") -> dict:
    """
    A row with the `prompt` and `completion` that are to be made of its columns, if the user has named some; else with
    the `prompt` that both sides of a preference pair begin with, if it has none of its own.
    """
    if data.source_column is not None:
        return {**row, **from_columns(row, data, where)}
    if {"chosen", "rejected"} <= row.keys() and "prompt" not in row:
        return {**row, **extract_prompt({key: row[key] for key in ("chosen", "rejected")})}
    return dict(row)


def prompt_from_columns(row: Mapping, data: TaskData, where: str = "A row") -> str:
    """
    The prompt of a row, made of its columns by the task's template; `where` says which row, for the message.

    Raises:
        `ValueError`: a column that is named is missing, or the row has nothing (null) in it, or no text or number.
    """

    def fill(match: re.Match) -> str:
        return _column(row, data.source_column if match[1] == "source" else match[1], where)

    if data.target_column is not None:
        _column(row, data.target_column, where)
    return PLACEHOLDER.sub(fill, _template(data))


def _template(data: TaskData) -> str:
    return data.prompt_template or data.kind.prompt


def columns_of_prompt(data: TaskData) -> list[str]:
    """The columns that [`prompt_from_columns`] puts into a prompt."""
    return [data.source_column if name == "source" else name for name in PLACEHOLDER.findall(_template(data))]


def nested(row: Mapping, name: str):
    """
    What is in a column; a dot reaches into a nested one, and there is nothing in one that is null.

    Raises:
        `ValueError`: there is no such column.
    """
    value = row
    for part in [name] if name in row else name.split("."):
        if value is None:
            break
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(value) if isinstance(value, Mapping) else "no nested ones"
            raise NoSuchColumn(f"`{name}` is not among the dataset's columns: at `{part}` there are {there}.")
        value = value[part]
    return value


def with_nested(row: Mapping, name: str, value) -> dict:
    """The row with this in a column, nested or not."""
    if name in row:
        return {**row, name: value}
    first, _, rest = name.partition(".")
    return {**row, first: with_nested(row[first], rest, value) if rest else value}


def _column(row: Mapping, name: str, where: str = "A row") -> str:
    """The text, or the number as text, that is in a column."""
    value = nested(row, name)
    if value is None or value != value:  # NaN, as data frames write null among numbers
        raise ValueError(
            f"{where} has nothing (null) in the column `{name}`, which prompts and completions are made from. Leave "
            "such rows out of the data, or fill them."
        )
    if not isinstance(value, str | int | float | Decimal):
        shown = repr(value)
        within = f"Name a column in it with a dot (`{name}.text`), or make" if isinstance(value, Mapping) else "Make"
        raise ValueError(
            f"{where} has {shown if len(shown) <= 120 else shown[:117] + '...'} in the column `{name}`, which is "
            f"neither text nor a number, and prompts and completions are made from it. {within} text of it "
            f"first.{read_as_date(value)}"
        )
    if isinstance(value, float) and value.is_integer():  # one fraction, or one null, makes floats of whole numbers
        if abs(value) >= 2**53:
            raise ValueError(
                f"{where} has {value!r} in the column `{name}`, a number so large that reading it as a fraction has "
                "rounded its last digits. Write such numbers as text, in quotes."
            )
        value = int(value)
    elif isinstance(value, float):  # 0.1 of four bytes reads as 0.10000000149011612, and only such a number is just so
        with np.errstate(over="ignore"):
            short = np.float32(value)
        value = float(str(short)) if float(short) == value else value
    return str(value)


def as_prompt_completion(row: dict, where: str = "", reference: bool = True) -> dict:
    """
    A row in any of TRL's supervised formats, ready to be asked and scored.

    Args:
        row (`dict`):
            With `prompt` and `completion`, as text or as messages, or with `messages` (or `conversations`) that end in
            the assistant's. With `references`, a list of texts, it needs no completion: the first of them is it.
        where (`str`, *optional*):
            Which row, for the message of an error.
        reference (`bool`, *optional*, defaults to `True`):
            Whether it must have a completion; if not, messages that do not end in the assistant's are the prompt.

    Returns:
        `dict`: the row's columns with `prompt` (text, messages or token ids) and `completion` (text; of several
        messages or a tool call [`~text.messages.Turns`], which [`~text.encode.encode_row`] encodes whole).

    Raises:
        `ValueError`: it has neither, or something that is no text in their place.
    """
    row = with_references(row, where)
    key = next((key for key in ("messages", "conversations") if key in row), None)
    if key is not None and "prompt" not in row:
        messages = checked(row[key], key, where)
        if not reference and not isinstance(messages, str) and messages[-1]["role"] != "assistant":
            return {**row, "prompt": messages}
        if isinstance(messages, str) or messages[-1]["role"] != "assistant":
            at = f"{where}: its" if where else "A row's"
            last = "text" if isinstance(messages, str) else f"a message of the role `{messages[-1]['role']}`"
            raise ValueError(
                f"{at} `{key}` end in {last}, and not in the assistant's, so there is nothing to compare with."
            )
        return {**row, "prompt": messages[:-1], "completion": one_text(messages[-1:])}
    if not ({"prompt", "completion"} if reference else {"prompt"}) <= row.keys():
        there = "There is no `completion`" if "prompt" in row else "There are no `prompt` and `completion`"
        raise NoSuchColumn(
            f"{there}, and no `messages`: this data has the columns {', '.join(row)}. Name the columns to make them "
            "from with `source_column` and `target_column`."
            if reference
            else f"There is no prompt: this data has the columns {', '.join(row)}. Name the one to make it from with "
            "`source_column`; for text without a prompt give an empty `prompt`."
        )
    prompt = row["prompt"]
    if not (isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt)):
        prompt = checked(prompt, "prompt", where)
    if "completion" not in row:
        return {**row, "prompt": prompt}
    return {**row, "prompt": prompt, "completion": one_text(checked(row["completion"], "completion", where))}


def references_of(row: Mapping) -> list[str]:
    """The texts that a completion of this row is compared with: its `references`, or else its `completion`."""
    return list(row.get("references") or [row["completion"]])


def with_references(row: dict, where: str) -> dict:
    """
    The row with the first of its `references`, if it has any, as the completion that it lacks.

    Raises:
        `ValueError`: they are no list of texts.
    """
    references = row.get("references")
    if references is None:
        return row
    at = f"{where}: its" if where else "A row's"
    rename = "`references` are what a completion is compared with: give a column of another kind another name"
    if isinstance(references, str) or not isinstance(references, Sequence):
        shown = repr(references)
        raise ValueError(f"{at} `references` are {shown[:80]}, and no list of texts. {rename}.")
    if not references:
        raise ValueError(f"{at} `references` are an empty list, so there is nothing to compare with. {rename}.")
    wrong = [one for one in references if not isinstance(one, str) or not one.strip()]
    if wrong:
        raise ValueError(f"{at} `references` have {wrong[0]!r} among them, which is no text. {rename}.")
    if row.get("completion") is not None:
        return row
    return {**row, "completion": _behind(row.get("prompt"), references[0])}


def as_chat(row: Mapping, where: str = "A row") -> dict:
    """
    The row with `prompt` and `completion` as messages of a user and of the assistant, so that a chat template is asked
    with them. What is messages already stays.

    Raises:
        `ValueError`: there is no prompt.
    """
    if "prompt" not in row:
        if "messages" in row or "conversations" in row:
            return dict(row)
        raise ValueError(
            f"{where} has no prompt to write as a user's message: the columns are {', '.join(row)}. Unset "
            "`chat_format`, or name the columns to make one from with `source_column` and `target_column`."
        )
    roles = {"prompt": "user"} | dict.fromkeys(("completion", "chosen", "rejected"), "assistant")
    texts = {key: row[key] for key in roles if isinstance(row.get(key), str)}
    return {**row, **{key: [{"role": roles[key], "content": text.strip()}] for key, text in texts.items()}}


def one_text(completion: str | list[dict]) -> str:
    """A completion as text; of several messages or a tool call [`~text.messages.Turns`]."""
    if isinstance(completion, str):
        return completion
    (first, *more) = completion
    is_plain = not more and set(first) <= {"role", "content"} and first["role"] == "assistant"
    return first["content"] if is_plain else Turns.of(completion)
