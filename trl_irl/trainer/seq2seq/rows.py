"""Rows of prompt and completion as an encoder-decoder reads them: ids for the encoder, labels for the decoder."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ...text.encode_pair import encode_pair
from ..runtime.row_checks import check_rows, check_token_rows
from ..runtime.row_maps import as_array, columns_of, mapped, without_padding
from .config import Seq2SeqIRLConfig


logger = get_logger(__name__)
Rows = Dataset | IterableDataset
_FIRST = 1000  # rows of a stream that are looked at for something to learn


def encoded(
    dataset: Rows, tokenizer: PreTrainedTokenizerBase, args: Seq2SeqIRLConfig, stop_tokens: Collection[int], name: str
) -> Rows:
    """
    The dataset with `input_ids` and `labels` alone.

    Args:
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            With `prompt` and `completion`, text or messages, with `messages` that end in the assistant's, or with
            `input_ids` and `labels` already, which are cut as text is.

    Raises:
        `ValueError`: it has other columns, or a row that cannot be read.
    """
    columns = columns_of(dataset)
    longest = args.max_lengths
    if {"input_ids", "labels"} <= set(columns):
        ids = dataset.select_columns([x for x in ("input_ids", "labels", "attention_mask") if x in columns])
        if isinstance(ids, Dataset):
            check_token_rows(ids, name, aligned=False)
        ids = without_padding(ids, name, args.dataset_num_proc, ["input_ids"]).select_columns(["input_ids", "labels"])
        if not any(longest):
            return ids
        ids = ids.map(_cut, batched=True, fn_kwargs={"longest": longest})
        if isinstance(ids, Dataset):
            _warn_of_cut(ids, args, name)
        return ids
    if images := {"image", "images"} & set(columns):
        raise ValueError(
            f"The {name} dataset has a column {min(images)!r}, and `Seq2SeqIRLTrainer` reads text alone. Remove it, "
            "or train a model of another kind (`IRLTrainer` takes images)."
        )
    if not ({"prompt", "completion"} <= set(columns) or "messages" in columns):
        raise ValueError(
            f"The {name} dataset has the columns {columns}. An encoder-decoder model reads a prompt and writes a "
            "completion: name them `prompt` and `completion`, or give `messages`, or `input_ids` and `labels`."
        )
    dataset = check_rows(dataset, "text", name)

    def encode(row: Mapping, i: int) -> dict[str, list[int]]:
        try:
            prompt, completion = encode_pair(tokenizer, row, *longest, stop_tokens)
        except ValueError as error:
            raise ValueError(f"Row {i} of the {name} dataset: {error}") from None
        return {"input_ids": prompt, "labels": completion}

    options = {"with_indices": True, "remove_columns": columns_of(dataset)}
    rows = mapped(dataset, f"Tokenizing {name} dataset", args.dataset_num_proc, encode, **options)
    if isinstance(rows, Dataset):
        _warn_of_unknown(rows, tokenizer, name)
        _warn_of_cut(rows, args, name)
    return rows


def _warn_of_unknown(rows: Dataset, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """A vocabulary of pieces without bytes to fall back on, as T5's, has one token for all that it lacks."""
    unknown = tokenizer.unk_token_id
    if unknown in (None, tokenizer.eos_token_id, tokenizer.pad_token_id):  # one token for several things says nothing
        return
    count, first, start = 0, None, 0
    for batch in rows.select_columns(["labels"]).with_format("arrow").iter(10_000):
        labels = as_array(batch.column("labels"))
        at = pc.list_parent_indices(labels).filter(pc.equal(labels.flatten(), unknown))
        count += pc.count_distinct(at).as_py()
        first = start + at[0].as_py() if first is None and len(at) else first
        start += len(batch)
    if count:
        logger.warning(
            f"{count} of {len(rows)} completions of the {name} dataset have text that the tokenizer has no token for "
            f"({tokenizer.unk_token}), and that the model can therefore not learn to write. The first, row {first}, "
            f"reads to it: {tokenizer.decode(rows[first]['labels'])[:200]!r}. Write it in another way, or add tokens."
        )


def _warn_of_cut(rows: Dataset, args: Seq2SeqIRLConfig, name: str) -> None:
    of_completions = "max_length" if args.max_completion_length is None else "max_completion_length"
    longest_prompt, longest_completion = args.max_lengths
    for column, key, most, what, lost in (
        ("input_ids", "max_length", longest_prompt, "prompts", "a closing `TL;DR:`, which an evaluation does not cut"),
        ("labels", of_completions, longest_completion, "completions", "an answer"),
    ):
        if most is None:
            continue
        batches = rows.select_columns([column]).with_format("arrow").iter(10_000)
        lengths = (pc.list_value_length(as_array(batch.column(column))) for batch in batches)
        if count := sum(pc.sum(pc.equal(of_batch, most)).as_py() or 0 for of_batch in lengths):
            logger.warning(
                f"{count} of {len(rows)} {what} of the {name} dataset have as many tokens as `{key}: {most}` allows. "
                f"The end of a longer one is cut off, such as {lost}. Raise it, or shorten the rows by `trl-irl "
                "prepare --truncate_field`."
            )


def _cut(rows: Mapping, longest: tuple[int | None, int | None]) -> dict[str, list[list[int]]]:
    return {
        column: [row[:most] for row in rows[column]]
        for column, most in zip(("input_ids", "labels"), longest, strict=True)
    }


def check_lengths(dataset: Rows, config: PretrainedConfig, name: str) -> Rows:
    """
    The dataset, whose rows have something to read, no more than the model's positions, and something to learn. Of a
    stream a row is looked at when it is read, and the first thousand for something to learn.

    Raises:
        `ValueError`: a row has no prompt, or is longer than the model's positions; or none has anything to learn.
    """
    limits = {"input_ids": _positions(config, "encoder"), "labels": _positions(config, "decoder")}

    def check(column: str, lengths: np.ndarray, first: int) -> None:
        limit, of_prompt = limits[column], column == "input_ids"
        if of_prompt and not lengths.all():
            raise ValueError(
                f"Row {first + int(lengths.argmin())} of the {name} dataset has a prompt without a token."
            )
        if limit is not None and (lengths > limit).any():
            i = int((lengths > limit).argmax())
            what, key = ("prompt", "max_length") if of_prompt else ("completion", "max_completion_length")
            raise ValueError(
                f"Row {first + i} of the {name} dataset has a {what} of {lengths[i]} tokens, and the model has "
                f"{limit} positions. Set `{key}` to {limit} or less, or leave such rows out."
            )

    where = ""
    if isinstance(dataset, Dataset):
        learns, start = False, 0
        for batch in dataset.select_columns(list(limits)).with_format("arrow").iter(10_000):
            for column in limits:
                check(column, pc.list_value_length(batch.column(column)).to_numpy(), start)
            learns = learns or pc.any(pc.not_equal(pc.list_flatten(batch.column("labels")), -100)).as_py()
            start += len(batch)
    else:

        def checked(row: Mapping, i: int) -> Mapping:
            for column in limits:
                check(column, np.array([len(row[column])]), i)
            return row

        dataset = dataset.map(checked, with_indices=True)
        learns = any(label != -100 for row in dataset.take(_FIRST) for label in row["labels"])
        where = f" in the first {_FIRST:,} rows of the stream"
    if not learns:
        raise ValueError(
            f"The {name} dataset has no completion with a token to learn: all labels are masked (-100){where}. Give "
            "rows completions, or `labels` that are not."
        )
    return dataset


def _positions(config: PretrainedConfig, side: str) -> int | None:
    """How many positions a side has embeddings for; `None` where positions are relative, as T5's are."""
    own = getattr(config, side, None)
    for of, key in (
        (config, f"max_{side}_position_embeddings"),
        (own, "max_position_embeddings"),
        (config, "max_position_embeddings"),
    ):
        value = getattr(of, key, None)
        if isinstance(value, int):
            return value
    return None
