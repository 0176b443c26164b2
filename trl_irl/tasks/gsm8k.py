"""GSM8K, grade-school mathematics in natural language (arXiv 2110.14168), in the format of the sankyde/IRL script."""

import re

from datasets import DatasetDict

from .files import load_from_hub_or_path
from .task import Task


HUB_ID = "openai/gsm8k"
PROMPT_TEMPLATE = "QUESTION: {source}\n\nSOLUTION:"
_CALCULATOR_ANNOTATION = re.compile(r"<<[^>]*>>")


def load_gsm8k(
    path: str | None = None, calculator_annotations: bool = True, validation_fraction: float = 0.1, seed: int = 42
) -> DatasetDict:
    """
    GSM8K as prompt-completion rows.

    Args:
        path (`str`, *optional*):
            A local JSONL or Parquet file, or a folder with a `train` and a `test` file. If `None`, the Hub's
            `openai/gsm8k`.
        calculator_annotations (`bool`, *optional*, defaults to `True`):
            Whether to keep annotations such as `<<48/2=24>>` in the solutions.
        validation_fraction (`float`, *optional*, defaults to `0.1`):
            Part of the training rows to carve off as `validation`, where the source has none of its own.
        seed (`int`, *optional*, defaults to `42`):
            Seed of that split.

    Returns:
        [`~datasets.DatasetDict`] with `train`, `validation` and, where the source has one, `test`; columns `prompt`
        (`QUESTION: ...\\n\\nSOLUTION:`) and `completion` (a space and the solution).

    Raises:
        `FileNotFoundError`: `path` looks like a local path and is not there.
        `ValueError`: the rows have no `question` and `answer`.
    """
    splits = load_from_hub_or_path(path or HUB_ID, config=None if path else "main")
    wrong = next((s.column_names for s in splits.values() if not {"question", "answer"} <= set(s.column_names)), None)
    if wrong is not None:
        raise ValueError(
            f"{path or HUB_ID} has the columns {wrong}, but GSM8K's are 'question' and 'answer'. For another "
            "dataset leave `task` unset and name it with `dataset_name`; for GSM8K's problems under other names set "
            "`source_column` and `target_column`."
        )

    def to_prompt_completion(row: dict, i: int) -> dict:
        for key in ("question", "answer"):
            if not isinstance(row[key], str):
                raise ValueError(f"Row {i} of {path or HUB_ID} has {row[key]!r} as its `{key}`, which is no text.")
        answer = row["answer"] if calculator_annotations else without_annotations(row["answer"])
        return {"prompt": PROMPT_TEMPLATE.format(source=row["question"]), "completion": f" {answer}"}

    splits = DatasetDict(
        {
            name: split.map(
                to_prompt_completion, with_indices=True, remove_columns=split.column_names, desc="Formatting GSM8K"
            )
            for name, split in splits.items()
        }
    )
    if "validation" in splits or "train" not in splits:
        return splits
    carved = splits["train"].train_test_split(test_size=validation_fraction, seed=seed)
    return DatasetDict({**splits, "train": carved["train"], "validation": carved["test"]})


def without_annotations(solution: str) -> str:
    """A solution without `<<48/2=24>>`."""
    return _CALCULATOR_ANNOTATION.sub("", solution)


def _load(data) -> DatasetDict:
    return load_gsm8k(data.dataset_name, data.calculator_annotations, seed=data.seed)


def _target(text: str, data) -> str:
    return text if data.calculator_annotations else without_annotations(text)


TASK = Task(
    load=_load,
    prompt=PROMPT_TEMPLATE,
    metrics=("accuracy", "accuracy_math"),
    dataset_name=HUB_ID,
    dataset_config="main",
    target=_target,
)
