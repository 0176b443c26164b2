"""Whether documents that share a row are kept apart: measured on the model, since families differ."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..._modes import in_mode
from ...soft_q.own_forward import embedding_rows


# Relative change of a document's logits, by the bits computed with, beyond which it depends on the document before it
# (measured: exactly 0, or rounding where experts get other numbers of tokens; a leak of a tiny Mamba is 0.009), or on
# where in the row it stands (products of another shape round otherwise: 0.02 in SmolLM2-135M in bfloat16).
_LEAK, _SHIFT = {32: 1e-4, 16: 2e-3}, {32: 1e-3, 16: 0.05}


@torch.no_grad()
def check_documents_apart(
    model: torch.nn.Module, language_model: PreTrainedModel, collator: Callable, rounds_to_16_bits: bool
) -> None:
    """
    Run two short documents as one row, as the collator makes it of them, and compare the second one's logits with
    those it has behind another document, and alone. All ranks must call, if the model is sharded.

    Args:
        model (`torch.nn.Module`):
            What training calls, wrapped or not.
        language_model ([`~transformers.PreTrainedModel`]):
            The model itself.
        collator (`Callable`):
            Of padding-free batches.
        rounds_to_16_bits (`bool`):
            Whether it computes in bfloat16 or float16.

    Raises:
        `ValueError`: the first document changes the second one's logits, or the second one's positions do not start
            anew, or the model does not take such rows.
    """
    size = embedding_rows(language_model)
    first, other, second = (
        [3 + (step * i + start) % max(1, size - 3) for i in range(10)] for start, step in ((0, 1), (17, 3), (41, 2))
    )

    def logits(*documents: list[int]) -> torch.Tensor:
        ids = [[i % size for i in document] for document in documents]
        row = collator([{"input_ids": document, "labels": document} for document in ids])
        row = {key: x.to(language_model.device) if isinstance(x, torch.Tensor) else x for key, x in row.items()}
        del row["labels"]
        end = sum(map(len, documents))  # what follows is padding (`pad_to_multiple_of`)
        return model(**row, use_cache=False).logits[0, end - len(second) : end].float()

    name = type(language_model).__name__
    try:
        with in_mode(model, training=False):
            alone, behind, behind_other = logits(second), logits(first, second), logits(other, second)
    except Exception as error:  # of the model's own code
        what = f"it cannot be run on such a row: {type(error).__name__}: {error}"
    else:
        bits = 16 if rounds_to_16_bits or language_model.dtype.itemsize == 2 else 32
        leak, shift = _change(behind, behind_other), _change(behind, alone)
        if leak <= _LEAK[bits] and shift <= _SHIFT[bits]:
            return
        if leak > _LEAK[bits]:
            what = f"a document's logits change by {leak:.1%} with the tokens of the one before it"
        else:
            what = f"a document's logits change by {shift:.1%} with its place in the row"
    attention = getattr(language_model.config, "_attn_implementation", None)
    raise ValueError(
        f"`packing` and `padding_free` put several documents into one row, and {name} does not keep them apart (with "
        f"attn_implementation {attention}): {what}. Set `packing: false` and `padding_free: false`, or try "
        "`attn_implementation: flash_attention_2` where the model has it."
    )


def _change(a: torch.Tensor, b: torch.Tensor) -> float:
    """The typical position's difference, relative to how much logits differ from each other there."""
    spread = (b - b.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-12)
    return ((a - b).norm(dim=-1) / spread).median().item()
