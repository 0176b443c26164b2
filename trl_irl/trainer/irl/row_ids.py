"""Rows for SFTTrainer's preparation: with the EOS it leaves out, and prompts and completions as token ids."""

from __future__ import annotations

import pyarrow.compute as pc
from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, Features, IterableDataset, Json
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTConfig

from ...text.encode import encode_row, seam_message, whole_ids
from ...text.messages import RowError, as_messages, is_messages, naming_row
from ..runtime.row_checks import AS_SFT, as_array, checked_row, columns_of, warned_of_seams


logger = get_logger(__name__)


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
        masks = [name for name in ("labels", "completion_mask", "assistant_masks") if name in prepared.column_names]
        if any(not _any_scored(prepared, column) for column in masks):
            raise ValueError(f"No token of the {name} dataset is scored: {reason}")
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


def _any_scored(dataset: Dataset, column: str) -> bool:
    nothing = -100 if column == "labels" else 0
    batches = dataset.select_columns([column]).with_format("arrow").iter(10_000)
    return any(pc.any(pc.not_equal(as_array(batch.column(column)).flatten(), nothing)).as_py() for batch in batches)


def ready_rows(
    dataset: Dataset | IterableDataset,
    args: SFTConfig,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    completion_only_loss: bool,
    name: str,
) -> Dataset | IterableDataset:
    """The rows as SFTTrainer should get them: see the functions below. Rows with images are left to it."""
    if isinstance(processing_class, ProcessorMixin):
        return with_eos(dataset, args, processing_class.tokenizer.eos_token, name)
    dataset = with_eos(dataset, args, processing_class.eos_token, name)
    dataset = with_joined_parts(dataset, args, processing_class, name)
    dataset = with_template_arguments(dataset, args, name)
    # Where every token is scored, the place where a prompt ends decides nothing; where the template marks what is, TRL
    # makes its mask.
    if completion_only_loss and not args.assistant_only_loss:
        dataset = with_own_ids(dataset, args, processing_class, name)
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
    if not completion_only_loss and args.completion_only_loss is None:
        if {"input_ids", "completion_mask"} <= columns and "labels" not in columns:
            said = "has a `completion_mask`, which `completion_only_loss` asks for. Set it to true"
        elif {"prompt", "completion"} <= columns:
            said = (
                "has prompts and completions, and the train dataset, which decides on `completion_only_loss`, has "
                "not. Set it to true"
            )
    elif args.completion_only_loss and "messages" in columns:
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
    dataset: Dataset | IterableDataset, args: SFTConfig, tokenizer: PreTrainedTokenizerBase, name: str
) -> Dataset | IterableDataset:
    """
    Rows of `prompt` and `completion` with `input_ids` and `completion_mask` by [`~text.encode.encode_row`]:
    SFTTrainer's own wherever the prompt's tokens are how the whole begins. Warns, with a count, if some are not.
    Other datasets stay as they are.
    """
    columns = columns_of(dataset)
    if "input_ids" in columns or not {"prompt", "completion"} <= set(columns):
        return dataset
    if not isinstance(dataset, Dataset):  # its rows come when they are asked for
        return dataset.map(_add_ids_of_stream, with_indices=True, fn_kwargs={"tokenizer": tokenizer, "name": name})
    with_ids = _map(dataset, args, f"Tokenizing {name} dataset", _add_ids, True, tokenizer=tokenizer, name=name)
    return warned_of_seams(with_ids, name)


def _add_ids(row: dict, i: int, tokenizer: PreTrainedTokenizerBase, name: str) -> dict:
    where = f"Row {i} of the {name} dataset"
    with naming_row(where):
        prompt, completion, as_sft = encode_row(tokenizer, checked_row(row, where))
    mask = [0] * len(prompt) + [1] * len(completion)
    return {"input_ids": prompt + completion, "completion_mask": mask, AS_SFT: as_sft}


def _add_ids_of_stream(row: dict, i: int, tokenizer: PreTrainedTokenizerBase, name: str) -> dict:
    columns = _add_ids(row, i, tokenizer, name)
    if not columns.pop(AS_SFT):
        logger.warning_once(seam_message("a row of the stream, and perhaps others,"))
    return columns


def with_joined_parts(
    dataset: Dataset | IterableDataset, args: SFTConfig, tokenizer: PreTrainedTokenizerBase, name: str
) -> Dataset | IterableDataset:
    """
    Rows of `messages` whose texts come in parts (`[{"type": "text", "text": ...}]`), with the parts joined where the
    chat template would write the list itself, or fail.
    """
    if "messages" not in columns_of(dataset) or tokenizer.chat_template is None:
        return dataset
    if not isinstance(dataset, Dataset) or isinstance(dataset.features["messages"], Json):  # each may be of its own
        return _map(dataset, args, f"Joining text parts of {name} dataset", _join)
    messages = next(iter(dataset))["messages"]
    if not is_messages(messages) or as_messages(messages) == messages:
        return dataset
    if {"role", "from"} <= set(messages[0]):  # rows of both forms, of which TRL would rename all
        return _map(dataset, args, f"Renaming messages of {name} dataset", _join)
    if _write(tokenizer, messages) == _write(tokenizer, as_messages(messages)):
        return dataset
    return _map(dataset, args, f"Joining text parts of {name} dataset", _join)


def with_template_arguments(
    dataset: Dataset | IterableDataset, args: SFTConfig, name: str
) -> Dataset | IterableDataset:
    """
    Rows of `messages` whose `chat_template_kwargs` are some without any, which TRL fails on, and some with keys of
    which others have none: each with its own.
    """
    key = "chat_template_kwargs"
    if not {"messages", key} <= set(columns_of(dataset)):
        return dataset
    if not isinstance(dataset, Dataset):
        return dataset.map(_own_arguments)
    features = Features({**dataset.features, key: Json()})
    return _map(dataset, args, f"Reading {key} of {name} dataset", _own_arguments, features=features)


def _own_arguments(row: dict) -> dict:
    given = row["chat_template_kwargs"] or {}
    return {"chat_template_kwargs": {key: value for key, value in given.items() if value is not None}}


def _join(row: dict) -> dict:
    return {"messages": as_messages(row["messages"])}


def _write(tokenizer: PreTrainedTokenizerBase, messages: list[dict]) -> str | None:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except (TypeError, TemplateError):
        return None


def _map(dataset, args: SFTConfig, description: str, function, with_indices: bool = False, **kwargs):
    """`features` and `remove_columns` are of `map`; the rest of `kwargs` of the function."""
    options = {"remove_columns": kwargs.pop("remove_columns", None)}
    features = kwargs.pop("features", None)
    if isinstance(dataset, Dataset):
        options |= {"desc": description, "num_proc": args.dataset_num_proc, "features": features}
    with PartialState().main_process_first():
        return dataset.map(function, with_indices=with_indices, fn_kwargs=kwargs, **options)
