"""Answers judged by math-verify: what is equal, what cannot be judged, and that it never hangs."""

import json
import threading
import time
from pathlib import Path

import pytest

from trl_irl.tasks.final_answer import answer_text, is_correct
from trl_irl.tasks.math_answer import MathVerifier


GSM8K = Path(__file__).parents[3] / "shared/data/gsm8k/test.jsonl"


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier() as verifier:
        yield verifier


@pytest.mark.parametrize(
    "prediction, reference, equal",
    [
        (answer_text("2 + 70 = 72\n#### 72"), answer_text("as a text\n#### 72"), True),
        ("so she has 72 apples.", "72", True),
        ("2 + 70 = 72\n#### 72", "#### 72", True),
        ("The answer is 1,000.", "1000", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        ("It costs $70,000", "70000", True),
        (r"first 5, so $\boxed{7}$", "7", True),
        ("-5", "5", False),
        ("3 apples and 4 pears", "3", False),
        ("no number at all", "3", False),
        ("", "3", False),
        ("#### ", "3", False),
    ],
)
def test_equality(prediction, reference, equal, verifier):
    assert verifier.is_equal(prediction, reference) is equal


def test_an_answer_that_never_ends_counts_as_a_failure():
    with MathVerifier(timeout=2) as verifier:
        assert verifier.is_equal("4", "4")
        began = time.monotonic()
        assert verifier.is_equal(r"$\boxed{9^{9^{9^{9^{9}}}} + \sqrt{2}}$", r"$9^{9^{9^{9^{8}}}}$") is False
        assert time.monotonic() - began < 10
        assert verifier.failures <= 1
        assert verifier.is_equal("4", "4.0")  # and the next one is judged again
        process = verifier._process
        process.kill()
        process.wait()  # so that the question meets a broken pipe, not a process about to die
        failed = verifier.failures
        assert verifier.is_equal("5", "5.0") is False and verifier.failures == failed + 1
        assert verifier.is_equal("5", "5.0")  # what could not be judged is asked again
        verifier._process.kill()
        assert verifier.is_equal("5", "5.0") and verifier.failures == failed + 1  # what was judged is not


def test_outside_the_main_thread(verifier):
    answers = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(verifier.is_equal(f"#### {i}", "3") == (i == 3)))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 6


@pytest.mark.skipif(not GSM8K.is_file(), reason="the real GSM8K is not on this machine")
def test_references_of_gsm8k_are_right_answers(verifier):
    rows = [{"completion": json.loads(line)["answer"]} for line in GSM8K.read_text().splitlines()]
    assert len(rows) == 1319
    began = time.monotonic()
    assert all(is_correct(row["completion"], row) for row in rows)
    answers = [answer_text(row["completion"]) for row in rows]
    assert all(verifier.is_equal(answer, answer) for answer in answers)
    assert verifier.failures == 0
    assert time.monotonic() - began < 60
