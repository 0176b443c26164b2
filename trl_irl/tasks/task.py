"""What a task is: where its rows come from, how a prompt is written, and how a completion is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict


Score = Callable[[str, dict], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """
    A task, as a value: each stands in a file of its own, and in one line of [`~tasks.known.TASKS`]. One from outside
    is named `module:TASK`.

    Example:

    ```python
    >>> TASK = Task(prompt="{source}\\n\\nIn one word:", needs_columns=True, metrics=("accuracy",))
    ```

    Args:
        load (`Callable`, *optional*):
            From [`~tasks.data.TaskData`] to the splits, with `prompt` and `completion`. If unset, or if the user names
            columns, rows are those of `dataset_name`.
        prompt (`str`, *optional*, defaults to `"{source}"`):
            The prompt of a row whose columns the user names, `{source}` being the source column's text.
        metrics (`tuple[str, ...]`, *optional*):
            By what completions are judged, among [`~tasks.scoring.METRICS`].
        score (`Callable`, *optional*):
            From a completion's text and its row to further numbers, by their names.
        dataset_name, dataset_config (`str`, *optional*):
            The Hub's dataset, where the user names none.
        generated (`bool`, *optional*, defaults to `False`):
            Whether `load` makes the rows up, so that there is no data to name.
        needs_columns (`bool`, *optional*, defaults to `False`):
            Whether the user must name the columns to read and to write.
        target (`Callable`, *optional*):
            From the target column's text and the [`~tasks.data.TaskData`] to what is to be written.
        explained (`Mapping[str, str]`, *optional*):
            By name, what a number of `score` is, for the report: "`shorter` is the share of ...".
    """

    load: Callable[[Any], DatasetDict] | None = None
    prompt: str = "{source}"
    metrics: tuple[str, ...] = ()
    score: Score | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    generated: bool = False
    needs_columns: bool = False
    target: Callable[[str, Any], str] | None = None
    explained: Mapping[str, str] = field(default_factory=dict)
