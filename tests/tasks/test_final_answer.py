"""The whole final answer is compared: what is one answer in other words, and what only begins alike."""

import random
import time
from fractions import Fraction

import pytest

from trl_irl.tasks.final_answer import (
    NoFinalAnswer,
    accuracy_reward,
    answer_text,
    final_answer,
    given_answer,
    is_correct,
    judge_answer,
    reference_answer,
)
from trl_irl.tasks.scoring import exact_answer


SAME = [
    *[
        (text, "42")
        for text in ("42.", "+42", "42.00", "042", "**42**", "*42*", "`42`", "\\boxed{42}", "$42$", "\\$42")
    ],
    *[
        (text, "42")
        for text in (
            "€42",
            "42 €",
            "US$42",
            "42%",
            "42\\%",
            "42 apples",
            "42km/h",
            "42 sq. ft",
            "42 a week.",
            "42/week",
        )
    ],
    *[
        (text, "42")
        for text in ("\\boxed{\\text{42}}", "**$42**", "**42** dollars", "42 (dollars)", "42 m²", "٤٢", "42°C")
    ],
    *[(text, "-42") for text in ("-$42", "$-42", "−42", "- 42", "\\boxed{-42}", "-42.0 degrees")],
    *[(text, "9876543") for text in ("9,876,543", "9 876 543", "9\u202f876\u202f543", "9'876'543", "$9,876,543.00")],
    *[(text, "1/8") for text in ("0.125", ".125", "2/16", "\\frac{1}{8}", "\\dfrac{1}{8} cup", "1 / 8")],
    *[
        ("$9 a day", "9"),
        ("9 m", "9"),
        ("9 meters", "$9"),
        ("2 1/2", "2.5"),
        ("2½", "2.5"),
        ("¾ cup", "0.75"),
        ("5 Ω", "5"),
        ("6e-2", "0.06"),
        ("7:45 PM", "7:45 pm"),
        ("3^{12}", "3^12"),
        ("x = 4", "x=4"),
        *[(text, "42") for text in ("42 times", "42 clips and pins", "42 over par", '"42"', "42¢", "42 cups to go")],
        ("1:2", "1 : 2"),
    ],
]
DIFFERENT = [
    *[
        (text, "9")
        for text in ("9.5", "-9", "9/2", "9:15", "9^2", "9e2", "9²", "9½", "9,5", "9-12", "9 or 10", "none")
    ],
    *[
        (text, "9")
        for text in ("9 million", "9k", "9 and a half", "9 pi", "9x", "9i", "9!", "9√2", "9.1.2", "9 dozen")
    ],
    *[("2/3", "2/5"), ("11:10", "11:50"), ("4^3", "4^2"), ("5e4", "5e6"), ("10 am", "10 pm"), ("1,2,3", "123")],
    *[(text, "9") for text in ("9π", "9 θ", "9 millions", "9 lakh", "9 squared", "9½ cups")],
    *[(text, "9") for text in ("9 and two", "9 plus one", "9 or ten", "9 and a bit", "9 times seventeen")],
    *[
        (text, "9")
        for text in ("9 to the power of two", "9 times itself", "9 plus c", "9 or maybe six", "9 to about ten")
    ],
    *[("10 a.m.", "10 p.m."), ("10 A.M.", "10"), ("9a", "9b"), ("9 a", "9"), ("9 tens", "9")],
    *[("$9M", "9"), ("$9 bn", "9"), ("€9b", "$9"), ("$9 t", "$9")],
    *[("0.4", "40%"), ("9 remainder 1", "9"), ("9 - x", "9"), ("9 / x", "9")],
]


@pytest.mark.parametrize("text, other", SAME)
def test_one_answer_in_other_words(text, other):
    assert is_correct(f"so\n#### {text}", {"completion": f"#### {other}"})
    assert is_correct(f"#### {other}", {"completion": f" thus\n\n####{text}\n"})
    assert hash(final_answer(f"#### {text}")) == hash(final_answer(f"#### {other}"))  # one vote of a majority
    assert not is_correct("#### 41", {"completion": f"#### {text}"})


@pytest.mark.parametrize("text, other", DIFFERENT)
def test_answers_that_begin_alike(text, other):
    assert not is_correct(f"#### {text}", {"completion": f"#### {other}"})


def test_fractions_and_decimals_against_exact_arithmetic():
    rng = random.Random(0)
    for _ in range(300):
        a, b, c, d = (rng.randint(-30, 30) for _ in range(4))
        left, right = f"{a}/{abs(b) + 1}", f"{c}/{abs(d) + 1}"
        equal = Fraction(left) == Fraction(right)
        assert is_correct(f"#### {left}", {"completion": f"#### {right}"}) is equal
        text = f"{a * 1000 + c:,}.{abs(b):02}"
        assert final_answer(f"#### {text}") == Fraction(text.replace(",", ""))


@pytest.mark.parametrize(
    "hopeless", ["5" + " ab" * 3000 + "!", "1,234" * 2000, "1 234 " * 2000 + "!", "5" + "a-" * 5000 + "!"]
)
def test_no_answer_takes_long(hopeless):
    assert isinstance(final_answer(f"#### {hopeless}"), str)


def test_references_that_are_nothing_but_an_answer():
    for bare in (" 1,250 ", "1250", "$1250.", "1250 km"):
        row = {"completion": bare}
        assert is_correct("1250", row) and is_correct(" so 1000 + 250 = 1250\n#### 1250", row)
        assert not is_correct("1251", row) and not is_correct("The 1250", row) and not is_correct("", row)
    # One with `####` asks for `####`: the form is part of the task.
    assert not is_correct("1250", {"completion": "#### 1250"})


@pytest.mark.parametrize(
    "text",
    ["The answer is 7", "A: 7", "So 3 + 4 = 7", "3 + 4 = 7", "\\boxed{7}", "7\n8", "seven", "", "####", "#### seven"],
)
def test_references_without_a_final_answer(text):
    assert reference_answer(text) is None
    with pytest.raises(NoFinalAnswer, match="has no final answer.*`####`"):
        is_correct("#### 7", {"completion": text})


def test_the_reward_takes_numbers_and_names_the_row():
    assert accuracy_reward(["#### 7", "8", "#### 9.5"], reference=[7, 9, 9.5]) == [1, 0, 1]
    for wrong in (None, float("nan"), "The answer is 7", []):
        with pytest.raises(ValueError, match="row 1 of this batch \\(prompt 'Two'\\): the reference"):
            accuracy_reward(["#### 7"] * 2, reference=[7, wrong], prompts=["One", "Two"])


@pytest.mark.parametrize(
    "said, reference, right, answered",
    [
        ("so 3 + 4 = 7\n#### 7", "#### 7", 1, 1),
        ("#### 8", "#### 7", 0, 1),
        ("#### seven", "#### 7", 0, 0),
        ("3 + 4 = 7", "#### 7", 0, 0),  # it never came to an end
        ("####", "#### 7", 0, 0),
        ("", "#### 7", 0, 0),
        ("8", "7", 0, 1),  # such references ask for no mark
        ("I do not know", "7", 0, 0),
    ],
)
def test_an_answer_that_is_wrong_is_not_none(said, reference, right, answered):
    assert exact_answer(said, {"completion": reference}) == {"accuracy": right, "answered": answered}


@pytest.mark.parametrize("text", ["1e10000000/3", "1e999999999/3", "1e-999999999/7", "1e999999999"])
def test_a_number_that_would_take_hours_to_write_out_is_text(text):
    """A model may say it, and one of its answers must not stall an evaluation."""
    start = time.perf_counter()
    assert final_answer(f"#### {text}") == text
    assert not is_correct(f"#### {text}", {"completion": "#### 3"})
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("text", ["#### 18 ####", "#### 18\n####\n", "so #### 18 #### "])
def test_both_judges_read_the_same_mark(text):
    assert final_answer(text) == 18 and answer_text(text).strip() == "18"
    assert answer_text("no mark") == "no mark" and answer_text("#### ").strip() == ""


def test_what_is_counted_as_an_answer_is_what_is_judged():
    """Where references are bare numbers, completions may be too: in `unique_answers` and in a vote as in accuracy."""
    row = {"completion": "4"}
    texts = ["4", "4", " 4.0 ", "5", "none"]
    assert [judge_answer(text, row)[0] for text in texts] == [True, True, True, False, False]
    assert {given_answer(text, row) for text in texts} == {4, 5, None}
    assert given_answer("4", {"completion": "#### 4"}) is None  # there a mark is asked for


@pytest.mark.parametrize("text", ["(18)", "{18}", "( 18 )", "(-18)", "($18)", "(18)."])
def test_a_number_in_brackets_is_the_number(text):
    plain = text.strip("(){} .").lstrip("$")
    assert is_correct(f"#### {text}", {"completion": f"#### {plain}"})
    assert is_correct(f"##### {text}", {"completion": f"#### {text}"})


def test_an_interval_keeps_its_brackets():
    assert not is_correct("#### (0, 5)", {"completion": "#### [0, 5]"})
    assert not is_correct("#### 0, 5", {"completion": "#### (0, 5)"})
