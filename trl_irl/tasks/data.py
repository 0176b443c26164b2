"""Where rows come from, as the user says it: a task, a dataset, and the columns that become prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .known import task_of
from .task import Task


PLACEHOLDER = re.compile(r"\{([\w.]+(?:[ -][\w.]+)*)\}")  # of a prompt template


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
        chat_format (`bool`, *optional*, defaults to `False`):
            Whether to write prompt and completion as messages.
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
    chat_format: bool = False
    num_train_rows: int | None = None
    seed: int = 42
    needs_target: bool = True

    def __post_init__(self):
        task = self.kind
        if task.generated and self.dataset_name is not None:
            raise ValueError(
                f"`task: {self.task}` is generated. Unset `dataset_name`, or unset `task` to train on it."
            )
        if task.generated and (self.streaming or self.dataset_config is not None):
            key = "dataset_streaming" if self.streaming else "dataset_config"
            raise ValueError(f"`task: {self.task}` is generated, and `{key}` is of a dataset. Unset it.")
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
