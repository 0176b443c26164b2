"""Rows of token ids as one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch


def padded(
    rows: Iterable[Sequence[int]],
    filler: int,
    side: str = "right",
    width: int | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """
    Rows of unequal length as one tensor.

    Args:
        rows (`Iterable[Sequence[int]]`):
            Of one token at least, all together.
        filler (`int`):
            What stands where a row has nothing.
        side (`str`, *optional*, defaults to `"right"`):
            On which side of a row, or `"left"`.
        width (`int`, *optional*):
            That of the longest row, if unset.
        device (*optional*)

    Returns:
        `torch.Tensor` of shape `(rows, width)`, int64.
    """
    rows = [list(row) for row in rows]
    width = max(map(len, rows)) if width is None else width
    if side == "left":
        filled = [[filler] * (width - len(row)) + row for row in rows]
    else:
        filled = [row + [filler] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device).view(len(rows), width)


def padded_batch(
    rows: Sequence[Sequence[int]],
    filler: int,
    side: str = "right",
    width: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of these rows: see [`padded`]. What is padded is masked, whatever its id."""
    return {
        "input_ids": padded(rows, filler, side, width, device),
        "attention_mask": padded(([1] * len(row) for row in rows), 0, side, width, device),
    }
