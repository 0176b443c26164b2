"""The keys that say what the data is and how it is scored: the same for training, evaluation and preparation."""

from dataclasses import dataclass, field

from .data import TaskData
from .known import TASKS
from .rows import ON_BAD_ROW


@dataclass
class TaskArguments:
    """
    Args:
        task (`str`, *optional*):
            A task that this package formats and scores; `module:TASK` for a [`~tasks.task.Task`] of your own; or
            `module:function` for a function that scores a completion, `(prediction, row) -> {"metric": number}`. If
            unset, `dataset_name` is taken as it is.
        dataset_name (`str`, *optional*):
            A local file or folder, or a Hub id.
        dataset_config (`str`, *optional*)
        source_column, target_column (`str`, *optional*):
            Columns to make prompt and completion from; a dot reaches into a nested one, such as `translation.de`.
        prompt_template (`str`, *optional*):
            The prompt, `{source}` being the source column's text.
        calculator_annotations (`bool`, *optional*, defaults to `True`):
            GSM8K: whether to keep the `<<48/2=24>>` in solutions.
        chat_format (`bool`, *optional*, defaults to `False`):
            Whether to write prompt and completion as messages of a user and the assistant, which the model's chat
            template is then asked with: for instruct models.
        task_seed (`int`, *optional*, defaults to `42`):
            Seed of the generated rows, or of GSM8K's and E2E's validation split.
    """

    task: str | None = field(
        default=None,
        metadata={
            "help": f"One of {', '.join(TASKS)}, or `module:function`, which scores (prediction, row). If unset, "
            "`dataset_name` is taken as it is."
        },
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Local data or a Hub id."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the Hub's dataset."})
    source_column: str | None = field(default=None, metadata={"help": "Column to make the prompt from."})
    target_column: str | None = field(default=None, metadata={"help": "Column to make the completion from."})
    prompt_template: str | None = field(
        default=None, metadata={"help": "The prompt, {source} being the source column's text."}
    )
    calculator_annotations: bool = field(
        default=True, metadata={"help": "GSM8K: whether to keep the <<48/2=24>> in solutions."}
    )
    chat_format: bool = field(
        default=False, metadata={"help": "Write prompt and completion as messages, for the model's chat template."}
    )
    task_seed: int = field(
        default=42, metadata={"help": "Seed of the generated rows, or of GSM8K's and E2E's validation split."}
    )

    def task_data(self, needs_target: bool = True) -> TaskData:
        """`needs_target=False`: a prompt without a completion is of use too."""
        return TaskData(
            task=self.task,
            dataset_name=self.dataset_name,
            dataset_config=self.dataset_config,
            streaming=getattr(self, "dataset_streaming", False),
            source_column=self.source_column,
            target_column=self.target_column,
            prompt_template=self.prompt_template,
            calculator_annotations=self.calculator_annotations,
            chat_format=self.chat_format,
            num_train_rows=getattr(self, "num_train_rows", None),
            seed=self.task_seed,
            needs_target=needs_target,
        )


@dataclass
class EndArguments:
    """
    Args:
        eos_token (`str`, *optional*):
            The token that ends a completion, where it is not the tokenizer's EOS: for Qwen's base models `<|im_end|>`.
    """

    eos_token: str | None = field(
        default=None, metadata={"help": "What ends a completion, where it is not the tokenizer's EOS."}
    )


@dataclass
class BadRowArguments:
    """
    Args:
        on_bad_row (`str`, *optional*, defaults to `"stop"`):
            What becomes of a row that cannot be read, or does not fit into a model's context: `"stop"`, before
            anything is sampled or scored, or `"skip"`, which leaves such rows out, and counts and names them.
    """

    on_bad_row: str = field(
        default="stop",
        metadata={"help": "A row that cannot be read or does not fit: stop, or skip it.", "choices": list(ON_BAD_ROW)},
    )
