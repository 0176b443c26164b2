"""Cutting at boundaries and counting tokens, by hand."""

import random

import numpy as np
import pytest
from datasets import Dataset

from trl_irl.tasks.prepare import Lengths, as_dataset, carved, cut_at_boundary, measure, split_closing_line


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
    assert cut_at_boundary(POST, "\n", lambda text: len(text) - longest) == expected


@pytest.mark.parametrize("kind", ["prompt", "messages", "chosen"])
def test_what_is_held_out_was_not_asked_in_training(kind):
    def row(i, j):
        asked = [{"role": "user", "content": f"question {i}"}]
        answer = {"role": "assistant", "content": f"answer {j}"}
        own = {"prompt": f"question {i}", "completion": f"answer {j}"}
        return own if kind == "prompt" else {kind: [*asked, answer], "rejected": [*asked, answer]}

    rows = Dataset.from_list([row(i, j) for j in range(5) for i in range(60)])
    parts = carved(rows, 0.1, seed=42)
    assert [len(parts[name]) for name in ("train", "validation")] == [270, 30]
    asked = {name: {repr(x[kind] if kind == "prompt" else x[kind][:-1]) for x in parts[name]} for name in parts}
    assert len(asked["validation"]) == 6 and not asked["train"] & asked["validation"]
    assert carved(rows, 0.1, seed=42)["validation"][kind] == parts["validation"][kind]
    assert carved(rows, 0.1, seed=43)["validation"][kind] != parts["validation"][kind]


@pytest.mark.parametrize("counts", [[95, *[1] * 5], [50, 50], [6, 1]])
def test_the_share_is_kept_where_some_prompts_have_many_rows(counts):
    prompts = [str(i) for i, count in enumerate(counts) for _ in range(count)]
    rows = Dataset.from_list([{"prompt": prompt, "completion": "x"} for prompt in prompts])
    for seed in range(20):
        parts = carved(rows, 0.05, seed=seed)
        assert not set(parts["train"]["prompt"]) & set(parts["validation"]["prompt"])
        assert 1 <= len(parts["validation"]) <= max(5, min(counts)) and len(parts["train"]) >= len(rows) // 2


def test_rows_of_one_prompt_or_of_different_ones_are_carved_by_rows():
    for prompts in (["same"] * 20, [str(i) for i in range(20)]):
        rows = Dataset.from_list([{"prompt": prompt, "completion": str(i)} for i, prompt in enumerate(prompts)])
        expected = rows.train_test_split(0.2, seed=1)
        parts = carved(rows, 0.2, seed=1)
        assert parts["validation"]["completion"] == expected["test"]["completion"]
        assert parts["train"]["completion"] == expected["train"]["completion"]


def test_cut_at_another_boundary_and_where_tokens_join():
    assert cut_at_boundary("One. Two. Three", ". ", lambda text: len(text) - 12) == "One. Two"
    assert cut_at_boundary("One. Two. Three", "", lambda text: len(text) - 12) == "One. Two."
    # Not monotone: of the starts before a comma, 4 does not fit though 6 does.
    assert cut_at_boundary("a,bcd,ef,gh", ",", lambda text: int(len(text) not in (0, 1))) == "a"


def test_a_guess_changes_the_time_and_not_the_cut():
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choice("ab \n.") for _ in range(draw.randint(1, 60)))
        longest, boundary = draw.randint(0, 70), draw.choice(["\n", ". ", ""])
        fitting = [text[:end] for end in range(len(text) + 1) if end <= longest]
        before_boundary = [one for one in fitting if one and boundary and text.startswith(boundary, len(one))]
        before_word = [one for one in fitting if one and not one[-1].isspace() and text[len(one) :][:1].isspace()]
        right = text if len(text) <= longest else (before_boundary or before_word or fitting)[-1]
        for near in (None, 1, longest, longest - 3, 200):
            for per_token in (0.5, 1.0, 7.0):
                assert (
                    cut_at_boundary(text, boundary, lambda one, longest=longest: len(one) - longest, near, per_token)
                    == right
                )


def test_of_a_long_text_little_is_counted():
    text, counted = "a word and another\n" * 1000, []

    def over(start):
        counted.append(len(start))
        return len(start) // 4 - 500

    cut = cut_at_boundary(text, "\n", over, near=2100, per_token=4.0)
    assert len(cut) // 4 <= 500 < (len(cut) + 19) // 4
    assert len(counted) <= 4 and max(counted) < 2200


def test_the_closing_line_stays():
    assert split_closing_line("POST: x\n\ny\n\nTL;DR:") == ("POST: x\n\ny", "\n\nTL;DR:")
    assert split_closing_line("no blank line") == ("no blank line", "")
    paragraph = "one\n\n" + "a paragraph that does not ask for anything at all"
    assert split_closing_line(paragraph) == (paragraph, "")


CALLS = [{"city": "Rome"}, {"ticker": "X", "k": 1}, {}]


def test_a_table_keeps_the_keys_that_objects_have_and_all_columns(tmp_path):
    """Tools and their arguments differ from row to row: none gets another's keys; and a column may begin later."""
    rows = [{"prompt": "One", "completion": "two"}]
    for call in CALLS:
        said = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": call}}]}
        tools = [{"function": {"name": "f", "parameters": {"properties": {key: {} for key in call}}}}]
        rows.append({"prompt": "One", "completion": "two", "messages": [said], "tools": tools})
    as_dataset(rows, "x").to_parquet(tmp_path / "rows.parquet")
    found = Dataset.from_parquet(str(tmp_path / "rows.parquet")).to_list()
    assert found[0]["messages"] is None is found[0]["tools"]
    for row, given in zip(found[1:], rows[1:], strict=True):
        assert (
            row["messages"][0]["tool_calls"] == given["messages"][0]["tool_calls"] and row["tools"] == given["tools"]
        )


@pytest.mark.parametrize(
    "values, told", [(["a", [{"role": "user"}]], "str in row 0 and list in row 1"), ([1, "a"], "number in")]
)
def test_a_column_of_several_kinds_is_told(values, told):
    with pytest.raises(ValueError, match=f"`x` is {told}"):
        as_dataset([{"x": value} for value in values], "y")
    assert as_dataset([{"x": 1}, {"x": 2.5}, {"x": None}], "y")["x"] == [1.0, 2.5, None]


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
