"""Several rows in one of the encoder and one of the decoder: which go together, and the batch that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from ..._modes import in_mode
from ...soft_q.own_forward import embedding_rows
from ...soft_q.packed import shifted


_WINDOW = 1024  # rows that are packed together
# Relative change of a document's values, beyond which it depends on those beside it; by the bits computed with.
_LEAK = {64: 1e-6, 32: 1e-4, 16: 5e-2}


def packed(dataset: Dataset, room: tuple[int, int], num_proc: int | None = None) -> Dataset:
    """
    A dataset whose rows are several of the given one's: `input_ids` and `labels`, lists of lists. No row is split;
    each goes, the longest first, into the first row that still has room for its prompt and its completion.

    Args:
        dataset ([`~datasets.Dataset`]):
            With `input_ids` and `labels`.
        room (`tuple[int, int]`):
            Tokens of a packed row in the encoder and in the decoder. A row that is longer has one of its own.
    """

    def pack(batch: dict[str, list[list[int]]]) -> dict[str, list[list[list[int]]]]:
        lengths = [tuple(map(len, pair)) for pair in zip(batch["input_ids"], batch["labels"], strict=True)]
        groups = first_fit(lengths, room)
        return {key: [[rows[i] for i in group] for group in groups] for key, rows in batch.items()}

    options = {"batched": True, "batch_size": _WINDOW, "num_proc": num_proc, "desc": "Packing"}
    return dataset.select_columns(["input_ids", "labels"]).map(
        pack, remove_columns=["input_ids", "labels"], features=None, **options
    )


def first_fit(lengths: Sequence[tuple[int, int]], room: tuple[int, int]) -> list[list[int]]:
    """Numbers of the rows that go together: first fit, decreasing by the share of the room that a row takes."""

    def share(i: int) -> float:
        return max(length / of for length, of in zip(lengths[i], room, strict=True))

    groups: list[list[int]] = []
    left: list[tuple[int, int]] = []
    for i in sorted(range(len(lengths)), key=share, reverse=True):
        prompt, completion = lengths[i]
        at = next((k for k, (a, b) in enumerate(left) if prompt <= a and completion <= b), None)
        if at is None:
            groups.append([i])
            left.append((room[0] - prompt, room[1] - completion))
        else:
            groups[at].append(i)
            left[at] = (left[at][0] - prompt, left[at][1] - completion)
    return groups


@dataclass
class PackedCollator:
    """
    A batch of [`packed`] rows, with the document that each token is of.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Says what the decoder reads before a document's first label.
        pad_token_id (`int`)
        stop_token_ids (`frozenset[int]`):
            After a document that ends in none of them, a position without a label: its last state has no next one.
        pad_to_multiple_of (`int`, *optional*):
            Lengths of both sides are multiples of it.
    """

    model: PreTrainedModel
    pad_token_id: int
    stop_token_ids: frozenset[int]
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict]) -> dict:
        if "input_ids" not in rows[0]:
            raise ValueError(
                f"`packing=True`, and a row has the columns {list(rows[0])}: the trainer packs the datasets that it "
                "is made with. Give this one as `eval_dataset`, or set `packing=False`."
            )
        of_encoder, of_decoder = [], []  # of each row: ids and documents
        for row in rows:
            asked = [torch.tensor(ids, dtype=torch.int64) for ids in row["input_ids"]]
            labels = [torch.tensor(ids, dtype=torch.int64) for ids in row["labels"]]
            reads = shifted(self.model, pad_sequence(labels, batch_first=True, padding_value=-100))
            read = [ids[: len(of)] for ids, of in zip(reads, labels, strict=True)]
            for k, of in enumerate(labels):
                if len(of) and of[-1].item() not in self.stop_token_ids:
                    labels[k] = torch.cat([of, of.new_tensor([-100])])
                    read[k] = torch.cat([read[k], of.new_tensor([self.pad_token_id])])
            of_encoder.append((torch.cat(asked), _documents(asked)))
            of_decoder.append((torch.cat(labels), torch.cat(read), _documents(labels)))

        def padded(parts: Sequence[torch.Tensor], value: int) -> torch.Tensor:
            together = pad_sequence(list(parts), batch_first=True, padding_value=value)
            more = -together.size(1) % (self.pad_to_multiple_of or 1)
            return torch.nn.functional.pad(together, (0, more), value=value)

        input_ids, encoder = zip(*of_encoder, strict=True)
        labels, decoder_input_ids, decoder = zip(*of_decoder, strict=True)
        return {
            "input_ids": padded(input_ids, self.pad_token_id),
            "labels": padded(labels, -100),
            "decoder_input_ids": padded(decoder_input_ids, self.pad_token_id),
            "encoder_documents": padded(encoder, -1),
            "decoder_documents": padded(decoder, -1),
        }


def _documents(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))


@torch.no_grad()
def check_documents_apart(
    model: torch.nn.Module, language_model: PreTrainedModel, collator: PackedCollator, room: int
) -> None:
    """
    Run a short document behind another one in a packed row, and alone, and compare its values. All ranks must call, if
    the model is sharded.

    Raises:
        `ValueError`: they differ: its positions go on from the document before it, or it sees that one; or a row has
            more room than a window of the model's attention, which the masks of packing know nothing of.
    """
    config = language_model.config
    windows = [getattr(getattr(config, side, None), "sliding_window", None) for side in ("encoder", "decoder")]
    window = min((one for one in windows if one), default=room)
    if room > window:
        raise ValueError(
            f"`packing=True` with rows of {room} tokens, and {type(language_model).__name__} attends within windows "
            f"of {window}. Set `max_length` and `max_completion_length` to {window} or less, or `packing=False`."
        )
    size = embedding_rows(language_model)
    first, second = (
        [3 + (step * i + start) % max(1, size - 3) for i in range(9)] for start, step in ((0, 1), (41, 2))
    )

    def values(*documents: list[int]) -> torch.Tensor:
        ids = [[i % size for i in document] for document in documents]
        batch = collator([{"input_ids": ids, "labels": ids}])
        batch = {key: x.to(language_model.device) for key, x in batch.items()}
        output = model(**batch, soft_q="values")
        scored = (batch["labels"][0] != -100).nonzero().squeeze(1)  # what follows may be padding
        return torch.stack([output.q, output.v])[:, 0, scored[-len(second) :]].double()

    name = type(language_model).__name__
    with in_mode(language_model, training=False):
        try:
            alone, behind = values(second), values(first, second)
        except Exception as error:
            raise ValueError(
                f"`packing=True`, and {name} does not take several documents in one row: {type(error).__name__}: "
                f"{error}. Set `packing=False`."
            ) from error
    bits = min(torch.finfo(p.dtype).bits for p in language_model.parameters() if p.is_floating_point())
    device = language_model.device.type
    bits = 16 if torch.is_autocast_enabled(device) else bits
    change = ((alone - behind).abs().max() / alone.abs().max().clamp(min=1e-6)).item()
    if not change <= _LEAK[bits]:
        raise ValueError(
            f"`packing=True`, and in {name} a document in a packed row is not read as it is alone: its values differ "
            f"by {change:.1%}. Its positions are absolute, as BART's are, or its attention is not one of masks. Set "
            "`packing=False`."
        )
