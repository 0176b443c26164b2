"""What a task is: where its rows come from, in TRL's prompt-completion format, and how an answer is scored."""

import asyncio
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict
from trl import extract_prompt

from ..text.messages import Turns, checked
from .arithmetic import make_arithmetic, make_arithmetic_facts
from .files import load_from_hub_or_path
from .final_answer import judge_answer
from .gsm8k import HUB_ID as GSM8K
from .gsm8k import PROMPT_TEMPLATE, load_gsm8k, without_annotations


Score = Callable[[str, dict], dict[str, float]]

_FINAL_ANSWER, _ROUGE, _TRANSLATION = ("accuracy", "accuracy_math"), ("rouge",), ("bleu", "chrf")

# Metrics by which each task's completions are judged, beside those that every text has.
TASKS: dict[str, tuple[str, ...]] = {
    "gsm8k": _FINAL_ANSWER,
    "arithmetic": _FINAL_ANSWER,
    "arithmetic_facts": (),
    "tldr": _ROUGE,
    "summarization": _ROUGE,
    "translation": _TRANSLATION,
}
_PROMPTS = {
    "gsm8k": PROMPT_TEMPLATE,
    "summarization": "{source}\n\nTL;DR:",
    "translation": "{source}\n\nTranslation:",
}
_NEED_COLUMNS = ("summarization", "translation")
_GENERATED = ("arithmetic", "arithmetic_facts")
HUB_DATA = {"gsm8k": GSM8K, "tldr": "trl-lib/tldr"}  # a task's own dataset, where `dataset_name` is not set
_PLACEHOLDER = re.compile(r"\{([\w.]+)\}")


@dataclass
class TaskData:
    """
    Where a task's rows come from.

    Args:
        task (`str`, *optional*):
            One of [`TASKS`], or `module:function`; `None` is any dataset in TRL's formats.
        dataset_name (`str`, *optional*):
            A local file or folder, or a Hub id. `gsm8k` and `tldr` have one of their own, `arithmetic` is generated.
        dataset_config (`str`, *optional*)
        streaming (`bool`, *optional*, defaults to `False`)
        source_column, target_column (`str`, *optional*):
            Columns to make prompt and completion from; a dot reaches into a nested one, such as `translation.de`. Of
            `gsm8k` its `question` and `answer`; its rows are then split as they are.
        needs_target (`bool`, *optional*, defaults to `True`):
            Whether rows are of no use without a completion.
        prompt_template (`str`, *optional*):
            The prompt, `{source}` being the source column's text and `{title}` that of a column `title`.
        calculator_annotations (`bool`, *optional*, defaults to `True`):
            GSM8K: whether to keep `<<48/2=24>>`.
        num_train_rows (`int`, *optional*):
            Training rows to generate, or to keep.
        seed (`int`, *optional*, defaults to `42`):
            Of generated rows, or of GSM8K's validation split.
    """

    task: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    streaming: bool = False
    source_column: str | None = None
    target_column: str | None = None
    prompt_template: str | None = None
    calculator_annotations: bool = True
    num_train_rows: int | None = None
    seed: int = 42
    needs_target: bool = True

    def __post_init__(self):
        if self.task is not None and self.task not in TASKS and ":" not in self.task:
            raise ValueError(
                f"`task: {self.task}` is unknown; the tasks are {', '.join(TASKS)}, or `module:function` for a "
                "function of your own that scores a completion."
            )
        if self.task == "arithmetic" and self.dataset_name is not None:
            raise ValueError("`task: arithmetic` is generated. Unset `dataset_name`, or unset `task` to train on it.")
        named = [key for key in ("source_column", "target_column") if getattr(self, key) is not None]
        if named and self.task in _GENERATED:
            raise ValueError(f"`task: {self.task}` is generated, and has no columns to name. Unset `{named[0]}`.")
        needs_target = self.needs_target or self.task in TASKS  # whose metrics compare with references
        alone = len(named) == 1 and (needs_target or named == ["target_column"])
        if alone or (self.task in _NEED_COLUMNS and not named):
            raise ValueError(
                f"`task: {self.task}` with `{named[0] if named else 'source_column'}` "
                f"{'alone' if named else 'not set'}: set both `source_column` and `target_column` to the columns that "
                "hold the text to read and the text to write."
            )
        if self.prompt_template is not None and (not named or not _PLACEHOLDER.search(self.prompt_template)):
            raise ValueError(
                f"`prompt_template: {self.prompt_template}` puts columns into a prompt: set `source_column` and "
                "`target_column` too, and have {source}, or the names of other columns in braces, in it."
            )


def load_task(data: TaskData, train_split: str = "train", formatted: bool = True) -> DatasetDict | IterableDatasetDict:
    """
    The task's splits; `train_split` is the one that `num_train_rows` cuts. Of preference pairs the chosen completions
    are the demonstrations. With `formatted=False` rows keep their own columns, and [`format_row`] makes `prompt` and
    `completion` of each, so that one that cannot be read is one row's matter.

    Raises:
        `FileNotFoundError`: a local path is not there.
        `ValueError`: no dataset is named, it cannot be read, or a column is missing.
    """
    generated = {"num_train": data.num_train_rows} if data.num_train_rows else {}
    if data.task == "arithmetic":
        return make_arithmetic(**generated, seed=data.seed)
    if data.task == "arithmetic_facts":
        return make_arithmetic_facts(**generated, seed=data.seed)
    if data.task == "gsm8k" and data.source_column is None:
        splits = load_gsm8k(data.dataset_name, data.calculator_annotations, seed=data.seed)
    else:
        name = data.dataset_name or HUB_DATA.get(data.task)
        if name is None:
            raise ValueError(f"No data. Set `dataset_name`, `datasets`, or `task` (one of {', '.join(TASKS)}).")
        config = data.dataset_config or ("main" if name == GSM8K else None)
        splits = load_from_hub_or_path(name, config, data.streaming)
        if formatted:
            splits = _formatted(splits, data)
    if data.num_train_rows and train_split in splits:
        splits[train_split] = splits[train_split].take(data.num_train_rows)
    return splits


def _formatted(splits: DatasetDict | IterableDatasetDict, data: TaskData) -> DatasetDict | IterableDatasetDict:
    for split_name, split in splits.items():
        if _is_preference(split.column_names or ()):  # imitate the chosen
            splits[split_name] = split.rename_column("chosen", "completion").remove_columns(
                [column for column in ("rejected",) if column in split.column_names]
            )
    if data.source_column is None:
        return splits
    for split in splits.values():  # before a map, whose own error would come from its cache
        for row in split.take(1):
            prompt_from_columns(row, data)
    return splits.map(lambda row, i: _from_columns(row, data, f"Row {i}"), with_indices=True)


def _is_preference(columns: Iterable[str]) -> bool:
    return {"prompt", "chosen"} <= set(columns) and "completion" not in columns


def _from_columns(row: Mapping, data: TaskData, where: str) -> dict:
    """`prompt` and, if there is a column for it, `completion`."""
    made = {"prompt": prompt_from_columns(row, data, where)}
    if data.target_column is None:
        return made
    text = _column(row, data.target_column, where)
    if data.task == "gsm8k" and not data.calculator_annotations:
        text = without_annotations(text)
    return {**made, "completion": f" {text.lstrip()}"}


def format_row(row: Mapping, data: TaskData, where: str = "A row", reference: bool = True) -> dict:
    """
    A row of [`load_task`] with `formatted=False` as [`as_prompt_completion`] gives it.

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
    row = row_with_columns(row, data, where)
    if {"chosen", "rejected"} <= row.keys() and "completion" not in row and data.source_column is None:
        row["completion"] = row["chosen"]
    return as_prompt_completion(row, where, reference)


def row_with_columns(row: Mapping, data: TaskData, where: str = "A row") -> dict:
    """
    A row with the `prompt` and `completion` that are to be made of its columns, if the user has named some; else with
    the `prompt` that both sides of a preference pair begin with, if it has none of its own.
    """
    if data.source_column is not None:
        return {**row, **_from_columns(row, data, where)}
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
    return _PLACEHOLDER.sub(fill, _template(data))


def _template(data: TaskData) -> str:
    return data.prompt_template or _PROMPTS.get(data.task, "{source}")


def columns_of_prompt(data: TaskData) -> list[str]:
    """The columns that [`prompt_from_columns`] puts into a prompt."""
    return [data.source_column if name == "source" else name for name in _PLACEHOLDER.findall(_template(data))]


def nested(row: Mapping, name: str):
    """
    What is in a column; a dot reaches into a nested one, and there is nothing in one that is null.

    Raises:
        `ValueError`: there is no such column.
    """
    value = row
    for part in name.split("."):
        if value is None:
            break
        if not isinstance(value, Mapping) or part not in value:
            there = ", ".join(value) if isinstance(value, Mapping) else "no nested ones"
            raise ValueError(f"`{name}` is not among the dataset's columns: at `{part}` there are {there}.")
        value = value[part]
    return value


def with_nested(row: Mapping, name: str, value) -> dict:
    """The row with this in a column, nested or not."""
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
    if not isinstance(value, str | int | float):
        shown = repr(value)
        raise ValueError(
            f"{where} has {shown if len(shown) <= 120 else shown[:117] + '...'} in the column `{name}`, which is "
            "neither text nor a number, and prompts and completions are made from it. Name a column in it with a dot "
            f"(`{name}.text`), or make text of it first."
        )
    return str(value)


def names_function(task: str | None) -> bool:
    """Whether a task is `module:function`, a function of the user's own."""
    return task is not None and ":" in task


def custom_score(name: str) -> Score:
    """
    The function `module:function` that scores a completion: `(prediction, row) -> {"metric": number}`, or `-> number`,
    which is then called by the function's name; it may be `async`. The module is looked for where Python looks, and in
    the folder that the command runs in.

    Raises:
        `ValueError`: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"`task: {name}` could not be imported: {error}. It is `module:function`, where `module` is as in "
            f"`import module`, run from {Path.cwd()}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"`task: {name}` names no function: module `{module_name}` has no `{function_name}`.")

    @functools.wraps(function)
    def score(prediction: str, row: dict) -> dict[str, float]:
        found = function(prediction, row)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
        if isinstance(found, Mapping) and all(isinstance(key, str) for key in found):
            return dict(found)
        if _is_number(found):
            return OneNumber({function_name: float(found)})
        shown = repr(found)
        raise ReturnError(
            f"`task: {name}` returned {shown if len(shown) <= 80 else shown[:77] + '...'}, a {type(found).__name__}. "
            'A score is a number, or a mapping of names to numbers, such as {"reward": 1.0}.'
        )

    return score


class ReturnError(ValueError):
    """A scoring function returns something that is no score."""

    is_of_every_completion = True


class OneNumber(dict):
    """The score of a function that returns a number without a name; it is the function's."""


async def _awaited(value):
    return await value


def _is_number(value) -> bool:
    if isinstance(value, str | bytes):
        return False
    try:
        float(value)  # of numpy and torch as well, if it is one number
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def exact_answer(prediction: str, row: dict, marker: str | None = None) -> dict[str, float]:
    """
    `accuracy`, 0 or 1: whether the number after `####` (or `marker`) is the one in the row's completion; and
    `answered`, 0 or 1: whether there is such a number at all.
    """
    right, answered = judge_answer(prediction, row, marker)
    return {"accuracy": float(right), "answered": float(answered)}


def as_prompt_completion(row: dict, where: str = "", reference: bool = True) -> dict:
    """
    A row in any of TRL's supervised formats, ready to be asked and scored.

    Args:
        row (`dict`):
            With `prompt` and `completion`, as text or as messages, or with `messages` (or `conversations`) that end in
            the assistant's.
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
    key = next((key for key in ("messages", "conversations") if key in row), None)
    if key is not None and "prompt" not in row:
        messages = checked(row[key], key, where)
        if not reference and not isinstance(messages, str) and messages[-1]["role"] != "assistant":
            return {**row, "prompt": messages}
        if isinstance(messages, str) or messages[-1]["role"] != "assistant":
            at = f"{where}: its" if where else "A row's"
            raise ValueError(f"{at} `{key}` do not end in the assistant's, so there is nothing to compare with.")
        return {**row, "prompt": messages[:-1], "completion": one_text(messages[-1:])}
    if not ({"prompt", "completion"} if reference else {"prompt"}) <= row.keys():
        raise ValueError(
            f"There are no `prompt` and `completion`, and no `messages`: this data has the columns {', '.join(row)}. "
            "Name the columns to make them from with `source_column` and `target_column`."
            if reference
            else f"There is no prompt: this data has the columns {', '.join(row)}. Name the one to make it from with "
            "`source_column`."
        )
    prompt = row["prompt"]
    if not (isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt)):
        prompt = checked(prompt, "prompt", where)
    if "completion" not in row:
        return {**row, "prompt": prompt}
    return {**row, "prompt": prompt, "completion": one_text(checked(row["completion"], "completion", where))}


def one_text(completion: str | list[dict]) -> str:
    """A completion as text; of several messages or a tool call [`~text.messages.Turns`]."""
    if isinstance(completion, str):
        return completion
    (first, *more) = completion
    is_plain = not more and set(first) <= {"role", "content"} and first["role"] == "assistant"
    return first["content"] if is_plain else Turns.of(completion)
