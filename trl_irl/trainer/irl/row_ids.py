"""Rows for SFTTrainer's preparation: with the EOS it leaves out, and prompts and completions as token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow.compute as pc
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, Json
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTConfig

from ...text.encode import encode_row, seam_message, whole_ids
from ...text.messages import RowError, as_messages, is_messages, naming_row
from ..runtime.row_checks import AS_SFT, checked_row, warned_of_seams
from ..runtime.row_maps import as_array, columns_of, mapped, without_padding


logger = get_logger(__name__)

CHATS = ("messages", "prompt", "completion")  # columns that may hold messages


def what_cannot_be_written(dataset, tokenizer: PreTrainedTokenizerBase, name: str) -> str | None:
    """Of rows of messages the first that the chat template cannot write, and why; `None` if it can write all."""
    key = next((key for key in ("messages", "conversations") if key in columns_of(dataset)), None)
    for i, row in enumerate(dataset if key else ()):
        try:
            whole_ids(tokenizer, {**row, "prompt": None, "completion": row[key]})
        except RowError as error:
            return f"Row {i} of the {name} dataset: {error}"
    return None


def check_kept(dataset, prepared, max_length: int | None, packing: bool, name: str) -> None:
    """
    Warns, with a count, of rows that preparation has dropped; packed ones cannot be counted.

    Raises:
        `ValueError`: it has dropped all of them.
    """
    reason = (
        f"with `max_length={max_length}` none has a completion token left after its prompt. Raise `max_length` or "
        "shorten the prompts."
    )
    if not isinstance(prepared, Dataset):
        if next(iter(prepared), None) is None:
            raise ValueError(f"No row of the stream of the {name} dataset is left to train on: {reason}")
        return
    if packing:
        if "labels" in prepared.column_names and not _any_scored(prepared):
            raise ValueError(f"No token of the {name} dataset is scored: its labels are all -100, or {reason}")
        return
    if not isinstance(dataset, Dataset):
        return
    dropped = len(dataset) - len(prepared)
    if len(prepared) == 0:
        raise ValueError(f"All {dropped} rows of the {name} dataset were dropped: {reason}")
    if dropped:
        logger.warning(
            f"{dropped} of {len(dataset)} rows of the {name} dataset were dropped: none of their tokens is scored, "
            f"since the prompt alone fills `max_length={max_length}`, or no label or mask marks one (with "
            "`assistant_only_loss` also where a template writes an answer otherwise than it asks for one)."
        )


def _any_scored(dataset: Dataset) -> bool:
    batches = dataset.select_columns(["labels"]).with_format("arrow").iter(10_000)
    return any(pc.any(pc.not_equal(as_array(batch.column("labels")).flatten(), -100)).as_py() for batch in batches)


def ready_rows(
    dataset: Dataset | IterableDataset,
    args: SFTConfig,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    completion_only_loss: bool,
    name: str,
    answers: bool = False,
) -> Dataset | IterableDataset:
    """
    The rows as SFTTrainer should get them: see the functions below. Rows with images are left to it. With `answers` a
    policy is asked with their prompts.
    """
    if "input_ids" in columns_of(dataset):
        return without_padding(dataset, name, args.dataset_num_proc)
    dataset = with_messages_named(dataset, args, name)
    if isinstance(processing_class, ProcessorMixin):
        return with_eos(dataset, args, processing_class.tokenizer.eos_token, name)
    dataset = with_eos(dataset, args, processing_class.eos_token, name)
    own_ids = completion_only_loss and not args.assistant_only_loss
    dataset = with_joined_parts(dataset, args, processing_class, name, ["messages"] if own_ids else CHATS)
    dataset = with_template_arguments(dataset, args, name)
    # Where every token is scored, the place where a prompt ends decides nothing; where the template marks what is, TRL
    # makes its mask.
    if own_ids:
        dataset = with_own_ids(dataset, args, processing_class, name, answers)
    return dataset


def formatted(dataset: Dataset | IterableDataset, args: SFTConfig, function, name: str) -> Dataset | IterableDataset:
    """
    What a `formatting_func` makes of the rows, as text, and nothing else: SFTTrainer leaves the rows' own columns
    beside it, and trains on `messages` where there are some. Rows of token ids stay as they are.
    """
    columns = columns_of(dataset)
    if "input_ids" in columns:
        return dataset

    def format_row(row: dict) -> dict:
        return {args.dataset_text_field: function(row)}

    return _map(dataset, args, f"Formatting {name} dataset", format_row, remove_columns=columns)


def warn_of_unused_marks(
    dataset: Dataset | IterableDataset, args: SFTConfig, completion_only_loss: bool, name: str
) -> None:
    """Warns where rows say what of them is to be learnt and the arguments do not."""
    columns = set(columns_of(dataset))
    said = None
    if args.assistant_only_loss or "assistant_masks" in columns:
        return
    if not completion_only_loss and args.completion_only_loss is None:
        if {"input_ids", "completion_mask"} <= columns and "labels" not in columns:
            said = "has a `completion_mask`, which `completion_only_loss` asks for. Set it to true"
        elif {"prompt", "completion"} <= columns:
            said = (
                "has prompts and completions, and the train dataset, which decides on `completion_only_loss`, has "
                "not. Set it to true"
            )
    elif args.completion_only_loss and {"messages", "conversations"} & columns:
        said = (
            "has `messages`, of which `completion_only_loss` marks nothing: all tokens are learnt. Set "
            "`assistant_only_loss`, or give `prompt` and `completion`"
        )
    if said is not None:
        logger.warning(f"The {name} dataset {said}; prompts are scored as it is.")


def with_eos(
    dataset: Dataset | IterableDataset, args: SFTConfig, eos_token: str, name: str
) -> Dataset | IterableDataset:
    """
    Rows of text end in EOS whatever their column is called. TRL 1.12 adds it to `text`, and to `completion` where
    there is no `text`; this can go with it.
    """
    columns, column = columns_of(dataset), args.dataset_text_field
    others = {"input_ids", "prompt", "messages", "conversations"}
    if column == "text" or column not in columns or others & set(columns):
        return dataset
    return _map(dataset, args, f"Adding EOS to {name} dataset", _add_eos, column=column, eos_token=eos_token)


def _add_eos(row: dict, column: str, eos_token: str) -> dict:
    text = row[column]
    return {column: text if text.endswith(eos_token) else text + eos_token}


def with_own_ids(
    dataset: Dataset | IterableDataset,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    answers: bool = False,
) -> Dataset | IterableDataset:
    """
    Rows of `prompt` and `completion` with `input_ids` and `completion_mask` by [`~text.encode.encode_row`]:
    SFTTrainer's own wherever the prompt's tokens are how the whole begins. Warns, with a count, if some are not.
    Other datasets stay as they are.
    """
    columns = columns_of(dataset)
    if "input_ids" in columns or not {"prompt", "completion"} <= set(columns):
        return dataset
    given = {"tokenizer": tokenizer, "name": name, "answers": answers}
    if not isinstance(dataset, Dataset):  # its rows come when they are asked for
        return dataset.map(_add_ids_of_stream, with_indices=True, fn_kwargs=given)
    with_ids = _map(dataset, args, f"Tokenizing {name} dataset", _add_ids, True, **given)
    return warned_of_seams(with_ids, name)


def _add_ids(row: dict, i: int, tokenizer: PreTrainedTokenizerBase, name: str, answers: bool) -> dict:
    where = f"Row {i} of the {name} dataset"
    with naming_row(where):
        prompt, completion, as_sft = encode_row(tokenizer, checked_row(row, where), answers=answers)
    mask = [0] * len(prompt) + [1] * len(completion)
    return {"input_ids": prompt + completion, "completion_mask": mask, AS_SFT: as_sft}


def _add_ids_of_stream(row: dict, i: int, tokenizer: PreTrainedTokenizerBase, name: str, answers: bool) -> dict:
    columns = _add_ids(row, i, tokenizer, name, answers)
    if not columns.pop(AS_SFT):
        logger.warning_once(seam_message("a row of the stream, and perhaps others,"))
    return columns


def with_messages_named(dataset: Dataset | IterableDataset, args: SFTConfig, name: str) -> Dataset | IterableDataset:
    """
    `conversations` as `messages`, where TRL does not rename them well: some or all with `role` and `content`, or in
    parts.
    """
    if "conversations" not in columns_of(dataset):
        return dataset
    first = next(iter(dataset))["conversations"]
    if "from" not in first[0]:
        return dataset.rename_column("conversations", "messages")
    # Where some rows have `role` and `content`, a table gives both pairs of keys to all, and TRL takes the empty ones.
    if "role" not in first[0] and not any(isinstance(message.get("value"), list) for message in first):
        return dataset
    options = {"remove_columns": ["conversations"]}
    if isinstance(dataset, Dataset):
        kept = {key: kind for key, kind in dataset.features.items() if key != "conversations"}
        options["features"] = Features({**kept, "messages": Json()})
    return _map(dataset, args, f"Reading conversations of {name} dataset", _named_messages, **options)


def _named_messages(row: dict) -> dict:
    return {"messages": as_messages(row["conversations"])}


def with_joined_parts(
    dataset: Dataset | IterableDataset,
    args: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    columns: Sequence[str],
) -> Dataset | IterableDataset:
    """
    Rows of messages in the form that every chat template reads: `from` and `value` named `role` and `content`, and
    texts that come in parts (`[{"type": "text", "text": ...}]`) joined.
    """
    columns = [column for column in columns if column in columns_of(dataset)]
    if not columns or tokenizer.chat_template is None:
        return dataset
    options = {}
    if isinstance(dataset, Dataset):
        kinds, first = dataset.features, dataset[0]
        # Rows of a Json column may each be of their own kind, as a stream's may; elsewhere the first tells.
        columns = [column for column in columns if isinstance(kinds[column], Json) or not _is_plain(first[column])]
        options["features"] = Features({**kinds, **dict.fromkeys(columns, Json())})  # keys that come late stay
    if not columns:
        return dataset
    return _map(dataset, args, f"Reading messages of {name} dataset", _with_plain, columns=columns, **options)


def _with_plain(row: dict, columns: list[str]) -> dict:
    return {column: as_messages(row[column]) if is_messages(row[column]) else row[column] for column in columns}


def _is_plain(value) -> bool:
    return not is_messages(value) or not any(
        "from" in message or isinstance(message.get("content"), list) for message in value
    )


def with_template_arguments(
    dataset: Dataset | IterableDataset, args: SFTConfig, name: str
) -> Dataset | IterableDataset:
    """
    Rows whose `chat_template_kwargs` are some without any, which TRL fails on, and some with keys of which others have
    none: each with its own.
    """
    key = "chat_template_kwargs"
    if not isinstance(dataset, Dataset):  # any row may have some
        return dataset.map(_own_arguments) if key in (dataset.column_names or [key]) else dataset
    if key not in dataset.column_names:
        return dataset
    if all(isinstance(value, dict) and None not in value.values() for value in dataset[key]):
        return dataset
    features = Features({**dataset.features, key: Json()})
    return _map(dataset, args, f"Reading {key} of {name} dataset", _own_arguments, features=features)


def _own_arguments(row: dict) -> dict:
    if "chat_template_kwargs" not in row:  # of a stream
        return {}
    given = row["chat_template_kwargs"] or {}
    given = json.loads(given) if isinstance(given, str) else given
    return {"chat_template_kwargs": {key: value for key, value in given.items() if value is not None}}


def _map(dataset, args: SFTConfig, description: str, function, with_indices: bool = False, **kwargs):
    """`features` and `remove_columns` are of `map`; the rest of `kwargs` of the function."""
    options = {name: kwargs.pop(name) for name in ("features", "remove_columns") if name in kwargs}
    options |= {"with_indices": with_indices, "fn_kwargs": kwargs}
    return mapped(dataset, description, args.dataset_num_proc, function, **options)
