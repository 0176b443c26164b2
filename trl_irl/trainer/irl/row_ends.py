"""Whether completions end in a stop token among the scored tokens of the first rows, as the model will see them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from datasets import Dataset, IterableDataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from ...text.random_states import random_states_kept


def check_collator(trainer: SFTTrainer) -> None:
    """
    Raises:
        `ValueError`: the data collator makes no labels of the first training row, or is for rows of other columns.
    """
    if not isinstance(trainer.train_dataset, Dataset | IterableDataset):
        return
    if (trainer.args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        columns = list(next(iter(trainer.train_dataset)))  # as a transform may give them
        if type(trainer.data_collator) is DataCollatorForLanguageModeling and "input_ids" not in columns:
            raise ValueError(
                "`dataset_kwargs={'skip_prepare_dataset': True}` leaves rows as they are, and TRL's collator takes "
                f"`input_ids`: the train dataset has the columns {columns}. Unset it, or pass a `data_collator` that "
                "makes batches of such rows."
            )
    _, labels = _first_labels(trainer, 1)
    if labels is None:
        raise ValueError(
            f"The data collator, a {_name(trainer.data_collator)}, gives no `labels`, and they are the actions that "
            "the loss is of. Leave `data_collator` unset, or let it give `labels` as long as `input_ids`, -100 where "
            "nothing is learnt."
        )


def _first_labels(trainer: SFTTrainer, count: int) -> tuple[list[dict], torch.Tensor | None]:
    return labels_of(trainer, islice(trainer.train_dataset, count))


def labels_of(trainer: SFTTrainer, rows: Iterable[dict]) -> tuple[list[dict], torch.Tensor | None]:
    """Rows as the collator sees them, and the labels that it makes of them together, if it makes any."""
    with random_states_kept():  # collators and a stream's functions may draw
        seen = [_seen_by_the_collator(trainer, row) for row in rows]
        batch = trainer.data_collator(seen)
    return seen, batch.get("labels", batch.get("shift_labels"))


def _name(collator) -> str:
    return getattr(collator, "__name__", type(collator).__name__)


def what_is_wrong_with_ends(trainer: SFTTrainer, rows: int = 100, rows_of_stream: int = 16) -> str | None:
    """
    What to tell the user if none of the first training rows has a stop token (`trainer.stop_token_ids`) among its
    scored tokens, once the collator has made its labels, or one ends twice; `None` if all is well, or they cannot be
    looked at (images, and datasets that are not of `datasets`). A stream is read from its start, and starts anew for
    training.
    """
    dataset, stop_tokens = trainer.train_dataset, trainer.stop_token_ids
    if not isinstance(dataset, Dataset | IterableDataset) or trainer.processing_class is not trainer._tokenizer:
        return None
    if not trainer.accelerator.is_main_process:
        return None
    rows_seen, labels = _first_labels(trainer, rows if isinstance(dataset, Dataset) else rows_of_stream)
    if torch.isin(labels, torch.tensor(sorted(stop_tokens))).any():
        is_eos = labels == trainer._tokenizer.eos_token_id
        if not (is_eos[:, 1:] & is_eos[:, :-1]).any():
            return None
        eos = trainer._tokenizer.eos_token
        return (
            f"A row among the first {len(rows_seen)} has two EOS tokens in a row ({eos}{eos}), and both are learnt. "
            "SFTTrainer writes one behind a text, and a tokenizer may write one by itself: if this one does, set its "
            "`add_eos_token` to False, or take EOS out of its post-processor."
        )
    names = ", ".join(trainer._tokenizer.convert_ids_to_tokens(sorted(stop_tokens)))
    message = (
        f"None of the first {len(rows_seen)} training rows has a stop token ({names}) among its scored tokens, so no "
        "state is terminal and nothing anchors the values."
    )
    own = [row.get("labels", row.get("input_ids", ())) for row in rows_seen]
    if any(not stop_tokens.isdisjoint(map(int, row)) for row in own):
        return (
            f"{message} The rows have one, and the data collator, a {_name(trainer.data_collator)}, masks it: "
            f"some mask every padding token, and padding is {trainer._tokenizer.pad_token} here. Leave "
            "`data_collator` unset, or pad with a token that ends nothing."
        )
    if trainer.args.eos_token is None:
        message += (
            " If the chat template ends a turn with another token, set `eos_token` in IRLConfig to it (for Qwen's "
            "base models `eos_token='<|im_end|>'`)."
        )
    return (
        f"{message} If completions are cut by `max_length`, raise it. Rows that come as token ids must end in a stop "
        "token themselves."
    )


def _seen_by_the_collator(trainer: SFTTrainer, row: dict) -> dict:
    if not trainer.args.remove_unused_columns:
        return row
    trainer._set_signature_columns_if_needed()
    return {name: value for name, value in row.items() if name in trainer._signature_columns}
