"""Datasets by Hub id or by local path."""

from pathlib import Path

from datasets import DatasetDict, IterableDatasetDict, load_dataset


_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_from_hub_or_path(
    name: str, config: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """
    Load a dataset: a local file (JSONL, JSON, Parquet, CSV or text, whose rows become the split `train`), a local
    folder, or a Hub id. No code that comes with a dataset is ever run.

    Raises:
        `FileNotFoundError`: `name` looks like a local path and is not there.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"{name} is not one of {', '.join(_BUILDERS)}. Convert it, or name a folder or a Hub id.")
        return load_dataset(_BUILDERS[path.suffix], data_files={"train": str(path)}, streaming=streaming)
    check_local_path(name, "dataset_name")
    return load_dataset(name, name=config, streaming=streaming)


def check_local_path(name: str, key: str) -> None:
    """
    Tell a missing local path from a Hub id before anything loads.

    Raises:
        `FileNotFoundError`: `name` cannot be a Hub id (it is absolute, starts with a dot, or has more than one slash
            or a data file's suffix) and is not there.
    """
    cannot_be_hub_id = name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).suffix in _BUILDERS
    if cannot_be_hub_id and not Path(name).exists():
        raise FileNotFoundError(
            f"`{key}: {name}` is not there. Local paths are relative to where the command runs, which is {Path.cwd()}."
        )
