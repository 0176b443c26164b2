"""The keys that say what the data is and how it is scored: the same for training, evaluation and preparation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..tasks.rows import ON_BAD_ROW, BadRows
from ..tasks.task import TASKS, TaskData, custom_score, exact_answer, format_row, load_task, names_function


METRICS = ("accuracy", "accuracy_math", "rouge", "bleu", "chrf", "nll", "td_loss")


@dataclass
class TaskArguments:
    """
    Args:
        task (`str`, *optional*):
            A task that this package formats and scores, or `module:function` for a function of your own that scores a
            completion, `(prediction, row) -> {"metric": number}`. If unset, `dataset_name` is taken as it is.
        dataset_name (`str`, *optional*):
            A local file or folder, or a Hub id.
        dataset_config (`str`, *optional*)
        source_column, target_column (`str`, *optional*):
            Columns to make prompt and completion from; a dot reaches into a nested one, such as `translation.de`.
        prompt_template (`str`, *optional*):
            The prompt, `{source}` being the source column's text.
        calculator_annotations (`bool`, *optional*, defaults to `True`):
            GSM8K: whether to keep the `<<48/2=24>>` in solutions.
        task_seed (`int`, *optional*, defaults to `42`):
            Seed of the generated rows, or of GSM8K's validation split.
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
    task_seed: int = field(
        default=42, metadata={"help": "Seed of the generated rows, or of GSM8K's validation split."}
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


def load_split(arguments, count: int | None):
    """
    The first `count` rows of the split that a command names, as they are in the data.

    Raises:
        `ValueError`: there is no such split, or nothing in it.
    """
    splits = load_task(arguments.task_data(needs_target=False), formatted=False)
    if arguments.split not in splits:
        raise ValueError(f"`split: {arguments.split}` is not among the dataset's, which are {', '.join(splits)}.")
    split = splits[arguments.split]
    if not len(split):
        raise ValueError(f"`split: {arguments.split}` is empty.")
    return split.take(min(count or len(split), len(split)))


def load_rows(arguments, count: int | None, bad: BadRows, reference: bool = True) -> dict[int, dict]:
    """
    Rows of [`load_split`] by their number, with `prompt` and, where `reference` or the data has them, `completion`.

    Raises:
        `ValueError`: one cannot be read; see [`~tasks.rows.BadRows`].
    """
    return readable(load_split(arguments, count), arguments.task_data(needs_target=False), bad, reference)


def readable(split: Iterable[dict], data: TaskData, bad: BadRows, reference: bool = True) -> dict[int, dict]:
    """By number, the rows of a split that [`~tasks.task.format_row`] can read; see [`load_rows`]."""
    rows = {}
    for i, row in enumerate(split):
        with bad.reading(i):
            rows[i] = format_row(row, data, f"Row {i} of {bad.of}", reference)
    return rows


def check_discount(gamma: float | None) -> None:
    """
    Raises:
        `ValueError`: it is none.
    """
    if gamma is not None and not 0 <= gamma <= 1:
        raise ValueError(f"`gamma: {gamma}` is out of range. It is a discount, from 0 to 1.")


def default_metrics(task: str | None) -> tuple[str, ...]:
    """Those of a task of this package; none for a function of the user's; ROUGE for a dataset without a task."""
    return TASKS.get(task, ()) if task else TASKS["summarization"]


def completion_score(task: str | None) -> Callable[[str, dict], dict[str, float]]:
    """
    The task's own score of one completion, for those who reward or compare completions one by one: without what is of
    a whole corpus, and without math-verify, a process of its own.
    """
    return make_score(task, [name for name in default_metrics(task) if name not in ("accuracy_math", "bleu", "chrf")])


def make_score(
    task: str | None, metrics: Sequence[str], verifier=None, marker: str | None = None
) -> Callable[[str, dict], dict[str, float]]:
    """
    One function for all numbers of a completion: the named metrics, and those of the user's own function.

    Args:
        task (`str`, *optional*)
        metrics (`Sequence[str]`):
            Among `METRICS`; those of a whole corpus or of the model are left to others.
        verifier ([`~tasks.math_answer.MathVerifier`], *optional*):
            Judges `accuracy_math`.
        marker (`str`, *optional*):
            What stands before a final answer beside `####`.

    Raises:
        `ValueError`: the user's function is not there.
    """
    from ..evaluation.metrics import rouge
    from ..tasks.final_answer import answer_text

    parts = [custom_score(task)] if names_function(task) else []
    if "accuracy" in metrics:
        parts.append(partial(exact_answer, marker=marker))
    if "accuracy_math" in metrics:

        def math_answer(text: str, row: dict) -> dict[str, float]:
            return {"accuracy_math": verifier.is_equal(*(answer_text(x, marker) for x in (text, row["completion"])))}

        parts.append(math_answer)
    if "rouge" in metrics:
        parts.append(lambda text, row: rouge(text, row["completion"]))
    if len(parts) == 1:
        return parts[0]
    return lambda text, row: {name: value for part in parts for name, value in part(text, row).items()}
