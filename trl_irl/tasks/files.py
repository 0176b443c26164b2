"""Datasets by Hub id or by local path, and checks of local paths."""

import csv
import re
import shutil
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from datasets import (
    DatasetDict,
    Features,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)

from ..text.local_paths import check_is_there


BUILDERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")  # which `datasets` unpacks
_OF_FILES = tuple(f"{kind}{packed}" for kind in BUILDERS for packed in ("", *_PACKED))
_LOOKED_AT = 100_000  # lines of a TSV file
_SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # of `DatasetDict.save_to_disk` and `Dataset.save_to_disk`


def load_from_hub_or_path(
    name: str, config: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """
    Load a dataset: a local file (JSONL, JSON, Parquet, Arrow, CSV, TSV or text, packed or not, whose rows become the
    split `train`), a local folder of such files, whose splits may differ in columns, one that `save_to_disk` wrote, or
    a Hub id. No code that comes with a dataset is ever run. Text stays text: every column of a CSV file is read as it
    is written (`007`, `1e5`, `NA`); an empty cell is null. In a TSV file that puts no cell in quotes, a quote is text.

    Raises:
        `FileNotFoundError`: `name` looks like a local path and is not there.
        `ValueError`: it is no kind of file that holds rows, or cannot be read as what it is.
    """
    path = Path(name)
    saved = any((path / marker).is_file() for marker in _SAVED_TO_DISK)
    if config is not None and (saved or path.is_file()):
        what = "one that `save_to_disk` wrote" if saved else "a file"
        raise ValueError(
            f"`dataset_config: {config}` chooses among the configurations of a dataset, and `dataset_name: {name}` is "
            f"{what}, which has none. Unset it."
        )
    if path.is_file():
        kind = kind_of(path)
        if kind is None:
            raise ValueError(
                f"`dataset_name: {name}` is not one of {', '.join(BUILDERS)} (or packed, such as .jsonl.gz). Convert "
                "it, or name a folder or a Hub id."
            )
        if BUILDERS[kind] == "json" and path.suffix.lower() == kind:
            _check_utf8(path)
        arguments = {"path": BUILDERS[kind], "data_files": {"train": str(path)}}
        if kind == ".tsv":
            arguments["sep"] = "\t"
    else:
        check_local_path(name, "dataset_name")
        arguments = {"path": name, "name": config}
    try:
        if saved:
            return _saved_to_disk(path, streaming)
        splits = _files_of_splits(arguments) if path.is_dir() else {}
        if len(splits) > 1:  # one by one: `datasets` wants the same columns of all
            kind = IterableDatasetDict if streaming else DatasetDict
            return kind({split: _split(arguments, split, files, streaming) for split, files in splits.items()})
        return load_dataset(**arguments, **_text_of_csv(arguments), streaming=streaming)
    except Exception as error:  # as many kinds as there are readers
        cause = error
        while cause.__cause__ is not None:  # the reader's own error says which line, or which column
            cause = cause.__cause__
        what = "there is not one row in it" if isinstance(cause, StopIteration) else str(cause).rstrip(".")
        hint = "Mend that file or its rows."
        if not path.exists():
            hint = "Check the name and the connection; for a private dataset log in with `hf auth login`."
        if "scripts are no longer supported" in what:
            hint = (
                f"The Hub has its rows without the script: `hf download {name} --repo-type dataset --revision "
                "refs/convert/parquet --local-dir data/rows`, and `dataset_name: data/rows`."
            )
        raise ValueError(f"`dataset_name: {name}` could not be read: {what}. {hint}") from error


def _check_utf8(path: Path) -> None:
    """
    JSON's reader takes any bytes, and the first who looks at the row stumbles over them. Of a large file its beginning
    is looked at.

    Raises:
        `ValueError`: a line is not UTF-8.
    """
    with path.open("rb") as file:
        start = file.read(2)
        file.seek(0)
        if start in (b"\xff\xfe", b"\xfe\xff"):  # the reader says so itself
            return
        for number, line in enumerate(islice(file, _LOOKED_AT), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"`dataset_name: {path}` is not UTF-8: line {number} has the byte {line[error.start]:#x}. Write "
                    "it anew: `iconv -f latin1 -t utf-8` does, where latin1 is what it is."
                ) from error


def kind_of(path: Path) -> str | None:
    """The suffix that says what is in a file, of `rows.jsonl.gz` the first."""
    inner = Path(path.stem).suffix.lower() if path.suffix.lower() in _PACKED else path.suffix.lower()
    return inner if inner in BUILDERS else None


def _saved_to_disk(path: Path, streaming: bool) -> DatasetDict | IterableDatasetDict:
    saved = load_from_disk(str(path))
    splits = saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    if not streaming:
        return splits
    return IterableDatasetDict({name: split.to_iterable_dataset() for name, split in splits.items()})


def _files_of_splits(arguments: dict) -> dict[str, list[str]]:
    """A folder's files by the split that `datasets` takes them for; none if its card says what the splits are."""
    card = Path(arguments["path"]) / "README.md"
    if card.is_file() and _has_configs(card):
        return {}
    return {str(split): list(files) for split, files in load_dataset_builder(**arguments).config.data_files.items()}


def _has_configs(card: Path) -> bool:
    return re.search(r"^(configs|dataset_info):", card.read_text(encoding="utf-8"), re.MULTILINE) is not None


def _split(arguments: dict, split: str, files: list[str], streaming: bool):
    arguments = {**arguments, "data_files": {split: files}}
    return load_dataset(**arguments, **_text_of_csv(arguments), split=split, streaming=streaming)


def _text_of_csv(arguments: dict) -> dict:
    """For a dataset of CSV files, how to read all columns as text; else nothing."""
    import pandas
    from datasets.packaged_modules.csv.csv import Csv

    builder = load_dataset_builder(**arguments)
    if not isinstance(builder, Csv) or builder.config.features is not None:
        return {}
    files = [file for of_split in builder.config.data_files.values() for file in of_split]
    bare = builder.config.sep == "\t" and any(_has_bare_quotes(file, builder.config.encoding) for file in files)
    quoting = csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL
    first = files[0]
    start = pandas.read_csv(first, nrows=1, sep=builder.config.sep, encoding=builder.config.encoding, quoting=quoting)
    if not isinstance(start.index, pandas.RangeIndex):  # pandas would leave the first cell out of the columns
        raise ValueError(
            f"the first row of {Path(first).name} has {start.index.nlevels} more cells than the header, which is "
            f"{', '.join(start.columns)}: put text with `{builder.config.sep}` in quotes"
        )
    features = Features({name: Value("string") for name in start.columns})
    return {"features": features, "keep_default_na": False, "na_values": [""], "quoting": quoting}


def _has_bare_quotes(path: str, encoding: str | None) -> bool:
    """
    Whether the quotes in a TSV file are text, as in most files of translations, and put nothing in quotes. Read as
    quotes they would join all rows up to the next one: then that one does not end a cell, or it does by chance, and
    every line is whole by itself. Of a large file its beginning is looked at.
    """
    import fsspec

    with fsspec.open(path, "rt", encoding=encoding, errors="replace", newline="", compression="infer") as file:
        lines = list(islice(file, _LOOKED_AT))
    try:
        rows = list(csv.reader(lines, delimiter="\t", strict=True))
    except csv.Error as error:
        if "field larger" not in str(error):
            return len(lines) < _LOOKED_AT or "end of data" not in str(error)  # a cell may go on behind the beginning
    else:
        if not any("\n" in cell for row in rows for cell in row):
            return False
    tabs = {line.count("\t") for line in lines if line.strip()}
    return len(tabs) == 1 and tabs != {0}


def check_local_path(name: str, key: str) -> None:
    """
    Tell a missing local path from a Hub id before anything loads; a name with a data file's suffix is no id.

    Raises:
        `FileNotFoundError`: see [`~text.local_paths.check_is_there`].
    """
    check_is_there(name, key, _OF_FILES)


def check_local_model(name: str, key: str) -> None:
    """
    Refuse a local path that is not there, a folder that is no model, or one whose weights are a pickle, which can run
    code when it is loaded.

    Raises:
        `FileNotFoundError`: see [`check_local_path`].
        `ValueError`
    """
    check_local_path(name, key)
    folder = Path(name)
    if folder.is_file():
        raise ValueError(f"`{key}: {name}` is a file. Name the folder that has it and its config.json.")
    if not folder.is_dir():
        return  # a Hub id
    if not any((folder / config).is_file() for config in ("config.json", "adapter_config.json")):
        raise ValueError(
            f"`{key}: {name}` has neither config.json nor adapter_config.json, so it is no saved model. Name "
            "a folder that `save_pretrained` or a Trainer wrote, or a Hub id."
        )
    if any(folder.glob("*.safetensors")):
        return
    pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
    if pickled:
        raise ValueError(
            f"`{key}: {name}` has its weights in {pickled[0]}, a pickle, which could run code when it is loaded. If "
            "you trust it, convert it: `AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)` (an "
            "encoder-decoder by `AutoModelForSeq2SeqLM`), and its tokenizer alike."
        )
    raise ValueError(
        f"`{key}: {name}` has no weights (*.safetensors). If a run was cut off, name one of its checkpoints."
    )


def check_writable(name: str, key: str) -> None:
    """
    Write and remove a file in a folder or, where it is not there yet, in the nearest folder above that is.

    Raises:
        `OSError`: it cannot be written to.
    """
    folder = next(path for path in (Path(name).absolute(), *Path(name).absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(
            f"`{key}: {name}` cannot be written to: {error.strerror or error}. Set it to a folder on a disk that has "
            "room and that you may write to."
        ) from error


def check_room(name: str, key: str, size: int) -> None:
    """
    Refuse an output folder on a disk with less than `size` bytes left.

    Raises:
        `OSError`
    """
    folder = next(path for path in (Path(name).absolute(), *Path(name).absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"`{key}: {name}` is on a disk with {free / 2**20:.0f} MiB left, and the trained weights alone take "
            f"{size / 2**20:.0f} MiB. Free some space, or set it to another disk."
        )


def check_no_other_splits(folder: str, key: str, splits: Iterable[str]) -> None:
    """
    Refuse an output folder with data in it that would not be overwritten: it would be loaded with what is written.

    Raises:
        `ValueError`
    """
    from datasets.packaged_modules import _EXTENSION_TO_MODULE  # what a folder is searched for when it is loaded

    tables = ("arrow", "csv", "json", "parquet")  # and not .md, .png and so on, beside the data
    of_rows = [suffix for suffix, (module, _) in _EXTENSION_TO_MODULE.items() if module in tables]
    loaded = {*BUILDERS, *of_rows, ".zip"}
    written = {Path(folder) / f"{name}.parquet" for name in splits}
    other = sorted(p for p in Path(folder).rglob("*") if loaded & set(p.suffixes) and p not in written)
    card = Path(folder) / "README.md"
    if not other and card.is_file() and _has_configs(card):
        other = [card]  # which says what the folder's splits are
    if other:
        raise ValueError(
            f"`{key}: {folder}` holds {other[0].relative_to(folder)}, which is none of the splits to write "
            f"({', '.join(splits)}) and would be loaded together with them. Remove it, or name another folder."
        )


def remove_if_empty(name: str) -> None:
    """Remove a folder that has nothing in it: what a run leaves that failed before its first checkpoint."""
    try:
        Path(name).rmdir()
    except OSError:
        pass  # something is in it, or it never was
