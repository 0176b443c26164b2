"""Cutting at boundaries and counting tokens, by hand."""

import numpy as np
import pytest

from trl_irl.tasks.prepare import Lengths, cut_at_boundary, measure, split_closing_line


POST = "first line\nsecond line\nthird line"


@pytest.mark.parametrize(
    "longest, expected",
    [
        (99, POST),
        (len(POST) - 1, "first line\nsecond line"),
        (22, "first line\nsecond line"),
        (21, "first line"),
        (10, "first line"),
        (9, "first"),  # no line is short enough: a word
        (4, "firs"),  # nor a word
        (0, ""),
    ],
)
def test_cut_at_boundary(longest, expected):
    assert cut_at_boundary(POST, "\n", lambda text: len(text) <= longest) == expected


def test_cut_at_another_boundary_and_where_tokens_join():
    assert cut_at_boundary("One. Two. Three", ". ", lambda text: len(text) <= 12) == "One. Two"
    assert cut_at_boundary("One. Two. Three", "", lambda text: len(text) <= 12) == "One. Two."
    # Not monotone: of the starts before a comma, 4 does not fit though 6 does.
    assert cut_at_boundary("a,bcd,ef,gh", ",", lambda text: len(text) in (0, 1)) == "a"


def test_the_closing_line_stays():
    assert split_closing_line("POST: x\n\ny\n\nTL;DR:") == ("POST: x\n\ny", "\n\nTL;DR:")
    assert split_closing_line("no blank line") == ("no blank line", "")
    paragraph = "one\n\n" + "a paragraph that does not ask for anything at all"
    assert split_closing_line(paragraph) == (paragraph, "")


def test_lengths():
    rows = [{"p": 3, "c": 2}, {"p": 1, "c": 5}, {"p": 2, "c": 2}]
    lengths = measure(rows, lambda i, row: ([7] * (row["p"] + row["c"]), [-100] * row["p"] + [7] * row["c"]))
    assert lengths.prompt.tolist() == [3, 1, 2] and lengths.completion.tolist() == [2, 5, 2]
    limits = {"prompt": 2, "completion": None, "total": 5}
    assert lengths.too_long(limits) == {"prompt": [0], "total": [1]}
    assert lengths.distribution(limits) == [
        ["prompt", "2.0", "2", "3", "3", "3", "2", "1"],
        ["completion", "3.0", "2", "4", "5", "5", "", ""],
        ["total", "5.0", "5", "6", "6", "6", "5", "1"],
    ]
    assert Lengths(np.array([1]), np.array([2])).total.tolist() == [3]
