"""Where a task's rows come from: made up, the task's own dataset, or the user's, whose columns become prompts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from datasets import Dataset, DatasetDict, IterableDatasetDict

from .columns import PLACEHOLDER, from_columns, prompt_from_columns
from .files import load_from_hub_or_path
from .known import TASKS, task_of
from .task import Task


@dataclass
class TaskData:
    """
    Where a task's rows come from.

    Args:
        task (`str`, *optional*):
            One of [`~tasks.known.TASKS`], `module:TASK` or `module:function`; `None` is any dataset in TRL's formats.
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
        task = self.kind
        if task.generated and self.dataset_name is not None:
            raise ValueError(
                f"`task: {self.task}` is generated. Unset `dataset_name`, or unset `task` to train on it."
            )
        named = [key for key in ("source_column", "target_column") if getattr(self, key) is not None]
        if named and task.generated:
            raise ValueError(f"`task: {self.task}` is generated, and has no columns to name. Unset `{named[0]}`.")
        needs_target = self.needs_target or bool(self.task and task.metrics)  # which compare with references
        alone = len(named) == 1 and (needs_target or named == ["target_column"])
        if alone or (task.needs_columns and not named):
            raise ValueError(
                f"`task: {self.task}` with `{named[0] if named else 'source_column'}` "
                f"{'alone' if named else 'not set'}: set both `source_column` and `target_column` to the columns that "
                "hold the text to read and the text to write."
            )
        if self.prompt_template is not None and (not named or not PLACEHOLDER.search(self.prompt_template)):
            raise ValueError(
                f"`prompt_template: {self.prompt_template}` puts columns into a prompt: set `source_column` and "
                "`target_column` too, and have {source}, or the names of other columns in braces, in it."
            )

    @property
    def kind(self) -> Task:
        """The task itself."""
        return task_of(self.task)


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
        splits = task.load(data)
    else:
        name = data.dataset_name or task.dataset_name
        if name is None:
            raise ValueError(f"No data. Set `dataset_name`, `datasets`, or `task` (one of {', '.join(TASKS)}).")
        config = data.dataset_config or next(
            (one.dataset_config for one in (task, *TASKS.values()) if one.dataset_name == name), None
        )
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
    return splits.map(lambda row, i: from_columns(row, data, f"Row {i}"), with_indices=True)


def _is_preference(columns: Iterable[str]) -> bool:
    return {"prompt", "chosen"} <= set(columns) and "completion" not in columns


def load_split(data: TaskData, split: str, count: int | None = None) -> Dataset:
    """
    The first `count` rows of a split, or all, as they are in the data.

    Raises:
        `ValueError`: there is no such split, or nothing in it.
    """
    splits = load_task(data, formatted=False)
    if split not in splits:
        raise ValueError(f"`split: {split}` is not among the dataset's, which are {', '.join(splits)}.")
    if not len(splits[split]):
        raise ValueError(f"`split: {split}` is empty.")
    return splits[split].take(min(count or len(splits[split]), len(splits[split])))
