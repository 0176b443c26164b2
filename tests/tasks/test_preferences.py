"""Preference pairs: the chosen one is right and the rejected one wrong, by the task's own checker."""

import json
import random
import re
from decimal import Decimal
from pathlib import Path

import pytest

from trl_irl.tasks.arithmetic import make_arithmetic
from trl_irl.tasks.final_answer import is_correct
from trl_irl.tasks.preferences import corrupted_solution, reference_pairs, sampled_pairs


GSM8K = Path(__file__).parents[3] / "shared/data/gsm8k/train.jsonl"


@pytest.fixture(scope="module")
def rows():
    return list(make_arithmetic(num_train=300)["train"])


def test_a_slip_is_small_and_makes_the_answer_wrong(rows):
    rng = random.Random(0)
    for row in rows:
        wrong = corrupted_solution(row, rng)
        assert is_correct(row["completion"], row) and not is_correct(wrong, row)
        # Numbers change; no word comes or goes.
        assert re.sub(r"\d+", "#", wrong) == re.sub(r"\d+", "#", row["completion"])
        body, answer = wrong.split("#### ")
        assert f"= {answer}" in body  # it does not show by the last line alone


def test_a_slip_stands_again_wherever_the_number_does():
    row = {"prompt": "", "completion": " 48 / 2 = 24. 48 + 24 = 72.\n#### 72"}
    found = {corrupted_solution(row, random.Random(seed)) for seed in range(300)}
    for text in found:
        half, of_half = text.split("= ")[1].split(".")[0], text.split("+ ")[1].split(" =")[0]
        total, answer = text.split("= ")[2].split(".")[0], text.split("#### ")[1]
        assert half == of_half or half == "24"  # a slip goes on from where it is
        assert total == answer != "72"  # and the last line says what was found
    assert len(found) > 50


@pytest.mark.parametrize("answer", [".5", "0.5", "-3", "1,234", "$7", "1/2"])
def test_an_answer_of_any_kind_slips(answer):
    row = {"completion": f" 8 and 9.\n#### {answer}"}
    for seed in range(50):
        assert not is_correct(corrupted_solution(row, random.Random(seed)), row)


@pytest.mark.parametrize("solution", ["5 - 7 = -2\n#### -2", "1 - 1.5 = -0.5\n#### -0.5", "2 of -2.\n#### -2"])
def test_no_slip_gives_itself_away_by_a_negative_zero(solution):
    found = {corrupted_solution({"completion": solution}, random.Random(seed)) for seed in range(400)}
    assert len(found) > 10 and not any(re.search(r"-0(?![.\d])|-0\.0", text) for text in found)


@pytest.mark.parametrize(
    "solution",
    [
        "She has <<1000+234=1234>>$1,234 left.\n#### 1,234",
        "So 10+2.50 = $12.50 in all.\n#### 12.5",
        "So .50.\n#### 0.5",
    ],
)
def test_a_number_slips_in_each_form_that_it_has(solution):
    """With commas and without, with zeros behind its point: the last line is what was found."""
    row, seen = {"completion": solution}, set()
    for seed in range(200):
        wrong = corrupted_solution(row, random.Random(seed))
        assert not is_correct(wrong, row)
        body, answer = wrong.split("#### ")
        numbers = [Decimal(x.rstrip(".").replace(",", "")) for x in re.findall(r"[\d,]*\.?\d+", body)]
        assert numbers[-1] == Decimal(answer.replace(",", ""))
        if "<<" in solution:
            assert numbers[-1] == numbers[-2] and ("," in answer) == (numbers[-1] >= 1000)
        seen.add(answer)
    assert len(seen) > 5


@pytest.mark.parametrize("completion", ["no answer 5", "", "#### none", "3 of 6\n#### ½"])
def test_no_answer_to_get_wrong(completion):
    assert corrupted_solution({"completion": completion}, random.Random(0)) is None


def test_reference_pairs(rows):
    pairs = reference_pairs(rows[:50], pairs_per_prompt=3, seed=1)
    assert pairs == reference_pairs(rows[:50], pairs_per_prompt=3, seed=1) != reference_pairs(rows[:50], 3, seed=2)
    assert 100 < len(pairs) <= 150  # of three slips some are the same
    by_prompt = {row["prompt"]: row for row in rows}
    for pair in pairs:
        row = by_prompt[pair["prompt"]]
        assert pair["chosen"] == row["completion"] and not is_correct(pair["rejected"], row)


def test_sampled_pairs():
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": [{"role": "user", "content": "c"}]}]
    texts = [["x", "y", "z", "y"], ["u", "v"], ["p", "q"]]
    scores = [[1.0, 0.0, None, 0.0], [1.0, 1.0], [0.2, 0.1]]
    assert sampled_pairs(rows, texts, scores, pairs_per_prompt=5) == [
        {"prompt": "a", "chosen": "x", "rejected": "y"},
        {
            "prompt": rows[2]["prompt"],
            "chosen": [{"role": "assistant", "content": "p"}],
            "rejected": [{"role": "assistant", "content": "q"}],
        },
    ]


@pytest.mark.skipif(not GSM8K.is_file(), reason="the real GSM8K is not on this machine")
def test_slips_in_gsm8k():
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()[:2000]]
    rows = [{"prompt": row["question"], "completion": row["answer"]} for row in rows]
    pairs = reference_pairs(rows)
    assert len(pairs) == 2000
    assert not any(is_correct(pair["rejected"], row) for pair, row in zip(pairs, rows, strict=True))


@pytest.mark.parametrize("answer", ["1,5", "3,14", "2,50 €", "1.234.567", "12.5.2024", "-0.5", "-.2", "1,23,456", "7"])
def test_what_is_rejected_is_wrong_however_the_answer_is_written(answer):
    row = {"prompt": "?", "completion": f"5 + 7 = 12\n#### {answer}"}
    wrong = [corrupted_solution(row, random.Random(i)) for i in range(60)]
    assert any(wrong) and row["completion"] not in wrong
    for text in filter(None, wrong):
        assert not is_correct(text, row) and "--" not in text


@pytest.mark.parametrize(
    "answer, written",
    [("1,250.50", r"1,\d{3}\.\d\d"), ("12,345", r"12,\d{3}"), (".5", r"\.\d|1\.\d"), ("3.125", r"\d\.\d{3}")],
)
def test_a_slip_is_written_as_the_number_was(answer, written):
    """A reward model would learn to tell the wrong answer by its commas or its digits."""
    row = {"completion": f"That is it.\n#### {answer}"}
    for seed in range(50):
        wrong = corrupted_solution(row, random.Random(seed)).split("#### ")[1]
        assert re.fullmatch(written, wrong), wrong
