"""Rows as one tensor, against torch's own padding; and what fits into a context."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from trl_irl.text.context import over
from trl_irl.text.padding import padded, padded_batch


ROWS = [[5, 6, 7], [8], [], [9, 10]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filler", [0, -100])
def test_as_torch_pads(side, filler):
    expected = pad_sequence([torch.tensor(row, dtype=torch.long) for row in ROWS], True, filler, padding_side=side)
    assert torch.equal(padded(ROWS, filler, side), expected)
    batch = padded_batch(ROWS, filler, side)
    assert torch.equal(batch["input_ids"], expected)
    kept = [row[mask].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)]
    assert kept == ROWS


@pytest.mark.parametrize("side", ["left", "right"])
def test_to_a_width_and_of_no_rows(side):
    wide = padded(ROWS, 1, side, width=6)
    assert wide.shape == (4, 6) and wide.dtype == torch.int64
    assert [sorted(row.tolist())[-2:] for row in wide[:1]] == [[6, 7]]
    assert padded([], 1, side, width=6).shape == (0, 6)
    assert padded(iter(ROWS), 1, side).shape == (4, 3)


@pytest.mark.parametrize("room, expected", [(0, {}), (1, {2: 8}), (4, {0: 5, 2: 8})])
def test_what_does_not_fit(room, expected):
    assert over(8, {0: 5, 1: 3, 2: 8}, room) == expected
    assert over(None, {0: 10**9}, room) == {}
