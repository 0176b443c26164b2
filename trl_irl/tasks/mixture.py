"""Several datasets at once, as TRL's recipes name them (`datasets:`), and what cannot be said beside them."""

from dataclasses import replace
from pathlib import Path

from trl import get_dataset

from .files import BUILDERS, kind_of


_OF_ONE_DATASET = (
    "dataset_config",
    "dataset_streaming",
    "num_train_rows",
    "source_column",
    "target_column",
    "prompt_template",
    "chat_format",
    "calculator_annotations",
)


def check_mixture(mixture, script_args, defaults) -> None:
    """
    Args:
        mixture ([`~trl.DatasetMixtureConfig`])
        script_args, defaults: what is set beside it, and the same with nothing set.

    Raises:
        `ValueError`: a key is set by which the rows of one dataset are read, which TRL knows nothing of; a stream is
            to be divided; or a part is named by a file.
    """
    for key in _OF_ONE_DATASET:
        value = getattr(script_args, key)
        if value != getattr(defaults, key):
            instead = "Write `streaming: true` beside `datasets`" if key == "dataset_streaming" else "Unset it"
            raise ValueError(
                f"`{key}: {value}` is of `dataset_name` and `task`, and TRL reads `datasets` without it. {instead}, "
                "or name one dataset."
            )
    if mixture.streaming and mixture.test_split_size is not None:
        raise ValueError(
            f"`test_split_size: {mixture.test_split_size}` divides rows that are there, and `streaming: true` reads "
            "them as they come. Unset one of them."
        )
    for one in mixture.datasets:
        if Path(one.path).is_file():
            builder = BUILDERS.get(kind_of(Path(one.path)), "json")
            raise ValueError(
                f"`datasets` has `path: {one.path}`, a file. Write `path: {builder}` and `data_files: {one.path}`."
            )


def load_mixture(mixture, seed: int):
    """
    TRL's `get_dataset` of a mixture, its test split drawn with a seed. TRL draws it without: each process, and each
    resumed run, would hold out other rows.
    """
    splits, size = get_dataset(replace(mixture, test_split_size=None)), mixture.test_split_size
    return splits if size is None else splits["train"].train_test_split(size, seed=seed)
