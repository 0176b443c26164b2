"""Rows that are longer than a model has positions for, found before training rather than by an `IndexError` in it."""

from __future__ import annotations

import pyarrow.compute as pc
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel

from ...text.context import context_length
from .row_maps import as_array


logger = get_logger(__name__)


def check_positions(
    dataset: Dataset | IterableDataset, model: PreTrainedModel, max_length: int | None, name: str
) -> None:
    """
    Warns of rows that are longer than the context that the model's config names: rotary positions go on beyond it, and
    mean little there. A table of positions, as GPT-2 and OPT have, ends.

    Args:
        dataset (`Dataset` or `IterableDataset`):
            Rows that are made ready: `input_ids`, and `seq_lengths` where several documents share a row, each of which
            begins at position 0 again.
        model ([`~transformers.PreTrainedModel`])
        max_length (`int`, *optional*):
            What rows were cut to, in tokens.
        name (`str`):
            The dataset's, for the message.

    Raises:
        `ValueError`: the model has a table of positions, and a row is longer than that, or may be: the rows of a
            stream are not known beforehand.
    """
    context = context_length(model.config)
    if context is None or (max_length is not None and max_length <= context):
        return
    ends = _has_table(model)
    if not isinstance(dataset, Dataset):
        if ends:
            raise ValueError(
                f"The {name} dataset is a stream with `max_length={max_length}`, and the model has {context} "
                f"positions: a longer row would end the training when it comes. Set `max_length` to {context} or less."
            )
        return
    longest = longer = 0
    column = "seq_lengths" if "seq_lengths" in dataset.column_names else "input_ids"
    if column not in dataset.column_names:  # rows with images become tokens in the collator
        return
    for batch in dataset.select_columns([column]).with_format("arrow").iter(10_000):
        values = as_array(batch.column(column))
        lengths = values.flatten() if column == "seq_lengths" else pc.list_value_length(values)
        longer += pc.sum(pc.greater(lengths, context)).as_py() or 0
        longest = max(longest, pc.max(lengths).as_py() or 0)
    if not longer:
        return
    what = f"{longer} {'text' if longer == 1 else 'texts'} of the {name} dataset {'is' if longer == 1 else 'are'}"
    which = f"the longest has {longest} tokens"
    if ends:
        raise ValueError(
            f"{what} too long for the model's {context} positions: {which}. Set `max_length` to {context} or less (it "
            f"is {max_length}), or leave such rows out."
        )
    logger.warning(
        f"{what} longer than the model's context of {context} tokens: {which}. It was not pretrained for that. "
        f"`max_length: {context}` cuts them."
    )


def _has_table(model: torch.nn.Module) -> bool:
    """Whether positions are looked up, in weights (`wpe`, `embed_positions`) or in a buffer (GPT-J, CodeGen)."""
    tables = [of for of, module in model.named_modules() if isinstance(module, torch.nn.Embedding)]
    tables += [of for of, _ in model.named_buffers()]
    return any(of.rpartition(".")[2] in ("wpe", "embed_positions", "positions_embed") for of in tables)
