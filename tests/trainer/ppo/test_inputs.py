"""The task's own score as PPO's reward: of rows with one prompt each response is judged by its own, or none is."""

import pytest

from trl_irl.trainer.ppo.inputs import check_one_row_a_prompt, reward_of_rows


def rows_of(tokenizer, pairs):
    return [{"prompt": p, "target": t, "input_ids": tokenizer(p)["input_ids"]} for p, t in pairs]


def starts_as(text, row):
    return float(text.startswith(row["target"]))


def test_in_the_order_of_the_rows(tokenizer):
    rows = rows_of(tokenizer, [("One", "a"), ("Two", "b"), ("One", "c"), ("One", "a"), ("Two", "b"), ("One", "d")])
    reward = reward_of_rows(starts_as, rows, tokenizer)
    ids = [rows[i]["input_ids"] for i in (0, 1, 2, 5)]
    for answers, expected in (("abcd", [1, 1, 1, 1]), ("cbad", [0, 1, 0, 1]), ("aaaa", [1, 0, 0, 0])):
        assert reward(ids, [tokenizer(text)["input_ids"] for text in answers]) == expected
    assert reward(ids[:1], [tokenizer("a")["input_ids"]]) == [1]  # each call begins anew


def test_where_the_order_is_not_known_it_is_refused(tokenizer):
    same = rows_of(tokenizer, [("One", "a"), ("Two", "b"), ("One", "a")])
    check_one_row_a_prompt(same)
    with pytest.raises(ValueError, match="1 prompts have several rows that differ, the first 'One' in target"):
        check_one_row_a_prompt([*same, *rows_of(tokenizer, [("One", "c")])])


def test_a_row_that_cannot_be_scored_is_found_before_training(tokenizer):
    rows = rows_of(tokenizer, [("One", "a"), ("Two", None)])
    with pytest.raises(ValueError, match="for an empty response to prompt 1, TypeError"):
        reward_of_rows(starts_as, rows, tokenizer, tried=2)
