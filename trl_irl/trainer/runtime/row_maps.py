"""Rows of any trainer's datasets: their columns, and what is made of them."""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
from accelerate import PartialState
from datasets import Dataset, IterableDataset


# What a collator takes for those of the tokens, and a dataset of texts may have for classes or the like.
OF_TOKENS = {"labels", "completion_mask", "assistant_masks", "attention_mask", "position_ids", "seq_lengths"}


def without_padding(
    dataset: Dataset | IterableDataset, name: str, num_proc: int | None, columns: Collection[str] = ()
) -> Dataset | IterableDataset:
    """
    Rows of token ids without those that their `attention_mask` leaves out: a collator pads again, and would take the
    padding of a row for tokens to read and to learn. `columns` are as long as the ids; if unset, all that may be. Rows
    of several documents (`seq_lengths`) stay as they are.
    """
    if "attention_mask" not in columns_of(dataset) or "seq_lengths" in columns_of(dataset):
        return dataset
    if isinstance(dataset, Dataset):
        masks = dataset.select_columns(["attention_mask"]).with_format("arrow").iter(10_000)
        if all(pc.all(as_array(batch.column("attention_mask")).flatten().cast(pa.bool_())).as_py() for batch in masks):
            return dataset
    aligned = {"input_ids", *(columns or OF_TOKENS)} & set(columns_of(dataset))

    def read(row: dict) -> dict:
        return {
            column: [x for x, is_read in zip(row[column], row["attention_mask"], strict=True) if is_read]
            for column in aligned
        }

    return mapped(dataset, f"Taking padding off {name} dataset", num_proc, read)


def mapped(
    dataset: Dataset | IterableDataset, description: str, num_proc: int | None, function, features=None, **options
) -> Dataset | IterableDataset:
    """`dataset.map(function, **options)`, on the first process before the others; a stream's when it is read."""
    if isinstance(dataset, Dataset):
        options |= {"desc": description, "num_proc": num_proc, "features": features}
    with PartialState().main_process_first():
        return dataset.map(function, **options)


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """Names of a dataset's columns, of a stream that does not know them by its first row."""
    return list(dataset.column_names or next(iter(dataset)))


def as_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return pa.concat_arrays(combined.chunks) if isinstance(combined, pa.ChunkedArray) else combined
