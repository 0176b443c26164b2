"""The splits of a task or a dataset, with `prompt` and `completion` where they are to be made."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDatasetDict, Value
from trl import extract_prompt

from ..text.messages import as_messages, is_messages
from .columns import as_chat, columns_of_prompt, from_columns, prompt_from_columns
from .data import TaskData
from .files import load_from_hub_or_path
from .known import TASKS
from .task import Task


def load_task(data: TaskData, train_split: str = "train", formatted: bool = True) -> DatasetDict | IterableDatasetDict:
    """
    The task's splits; `train_split` is the one that `num_train_rows` cuts. Of preference pairs the chosen completions
    are the demonstrations. With `formatted=False` rows keep their own columns, and [`~tasks.columns.format_row`] makes
    `prompt` and `completion` of each, so that one that cannot be read is one row's matter.

    Raises:
        `FileNotFoundError`: a local path is not there.
        `ValueError`: no dataset is named, it cannot be read, or a column is missing.
    """
    task = data.kind
    if task.load is not None and data.source_column is None:
        splits = _taken(task.load(data), data, train_split)
    else:
        name = data.dataset_name or task.dataset_name
        if name is None:
            raise ValueError(f"No data. Set `dataset_name`, `datasets`, or `task` (one of {', '.join(TASKS)}).")
        config = data.dataset_config or next(
            (one.dataset_config for one in (task, *TASKS.values()) if one.dataset_name == name), None
        )
        splits = _taken(load_from_hub_or_path(name, config, data.streaming), data, train_split)
        if data.source_column is not None:
            splits = _with_class_names(splits, {*columns_of_prompt(data), data.source_column, data.target_column})
        if formatted:
            splits = _formatted(splits, data)
    if formatted and data.chat_format:
        splits = splits.map(_in_chat, with_indices=True)
    return splits


# Columns of other rows than those of a prompt and a completion.
_OTHER_ROWS = {
    *("messages", "conversations", "chosen", "rejected"),
    *("input_ids", "labels", "attention_mask", "completion_mask", "assistant_masks"),
}


def _taken(
    splits: DatasetDict | IterableDatasetDict, data: TaskData, train_split: str
) -> DatasetDict | IterableDatasetDict:
    """The first rows of the training split: before millions are formatted, of which thousands are wanted."""
    if data.num_train_rows and train_split in splits:
        splits[train_split] = splits[train_split].take(data.num_train_rows)
    return splits


def _with_class_names(
    splits: DatasetDict | IterableDatasetDict, columns: set[str | None]
) -> DatasetDict | IterableDatasetDict:
    """Classes by their names, where text is made of them: a row has a class as a number, whose name a split knows."""
    for split_name, split in splits.items():
        classes = {name: kind for name, kind in (split.features or {}).items() if isinstance(kind, ClassLabel)}
        for name in classes.keys() & columns:
            features, given = Features({**split.features, name: Value("string")}), {"names": classes[name].names}
            split = split.map(_class_name, fn_kwargs={"key": name, **given}, features=features)
        splits[split_name] = split
    return splits


def _class_name(row: Mapping, key: str, names: list[str]) -> dict:
    number = row[key]
    return {key: names[number] if number is not None and number >= 0 else None}  # -1 is how the Hub hides a label


def _formatted(splits: DatasetDict | IterableDatasetDict, data: TaskData) -> DatasetDict | IterableDatasetDict:
    for split_name, split in splits.items():
        columns = set(split.column_names or ())
        if _is_whole_preference(columns):
            split, columns = split.map(extract_prompt), columns | {"prompt"}
        if _is_preference(columns):  # imitate the chosen
            splits[split_name] = split.rename_column("chosen", "completion").remove_columns(
                [column for column in ("rejected",) if column in columns]
            )
    if data.source_column is None:
        return _with_known_roles(splits)
    for split in splits.values():  # before a map, whose own error would come from its cache
        for row in split.take(1):
            prompt_from_columns(row, data)
    made = splits.map(_made, with_indices=True, fn_kwargs={"data": data, "written_by": _source(data.kind)})
    for split_name, split in made.items():  # a trainer would take them for the rows to train on
        other = [column for column in split.column_names or next(iter(split)) if column in _OTHER_ROWS]
        if other:
            made[split_name] = split.remove_columns(other)
    return made


def _with_known_roles(splits: DatasetDict | IterableDatasetDict) -> DatasetDict | IterableDatasetDict:
    """Conversations in ShareGPT's form as [`~text.messages.as_messages`] reads them; TRL renames their keys alone."""
    for split_name, split in splits.items():
        first = next(iter(split.take(1)), {})
        key = "messages" if "messages" in first else "conversations"
        if is_messages(first.get(key)) and "from" in first[key][0]:
            splits[split_name] = split.map(_renamed, fn_kwargs={"key": key})
    return splits


def _renamed(row: Mapping, key: str) -> dict:
    return {key: as_messages(row[key])}


def _made(row: Mapping, i: int, data: TaskData, written_by: tuple) -> dict:
    return from_columns(row, data, f"Row {i}")


def _in_chat(row: Mapping, i: int) -> dict:
    return as_chat(row, f"Row {i}")


def _source(task: Task) -> tuple[str, str]:
    """
    What writes a task's prompts and completions. `datasets` knows a map's cached rows by the function and what it is
    given, and a function of a module by its name alone: without this an edited task would read its old rows.
    """
    module = inspect.getmodule(task.target) if task.target is not None else None
    try:
        return task.prompt, inspect.getsource(module) if module is not None else ""
    except (OSError, TypeError):  # typed into an interpreter
        return task.prompt, ""


def _is_preference(columns: Iterable[str]) -> bool:
    return {"prompt", "chosen"} <= set(columns) and "completion" not in columns


def _is_whole_preference(columns: Iterable[str]) -> bool:
    """Pairs of whole conversations, of which the prompt is what both begin with."""
    return {"chosen", "rejected"} <= set(columns) and not {"prompt", "completion", "messages"} & set(columns)


def load_split(data: TaskData, split: str, count: int | None = None) -> Dataset:
    """
    The first `count` rows of a split, or all, as they are in the data.

    Raises:
        `ValueError`: there is no such split, or nothing in it.
    """
    splits = load_task(data, formatted=False)
    if split not in splits:
        raise ValueError(
            f"`split: {split}` is not among the dataset's, which are {', '.join(splits)}. Set `split` to one of them "
            f"(`--split {next(iter(splits))}`)."
        )
    if not len(splits[split]):
        raise ValueError(f"`split: {split}` is empty.")
    return splits[split].take(min(count or len(splits[split]), len(splits[split])))
