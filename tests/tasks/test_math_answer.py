"""Answers judged by math-verify: what is equal, what cannot be judged, and that it never hangs."""

import json
import threading
import time
from pathlib import Path

import pytest

from trl_irl.tasks.final_answer import answer_text, is_correct
from trl_irl.tasks.math_answer import MathVerifier
from trl_irl.tasks.scoring import make_score


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


@pytest.mark.parametrize(
    "prediction, reference, right",
    [
        ("#### 18\nSo she makes $18, not $20.", "#### 18", True),
        ("#### 18\n\nQUESTION: Tom has 5. SOLUTION: 5 - 2 = 3", "#### 18", True),
        *[(f"#### {text}", f"#### {other}", True) for text, other in (("−5", "-5"), ("- 5", "-5"), ("-$18", "-18"))],
        *[
            (f"#### {text}", f"#### {other}", True)
            for text, other in (("½", "0.5"), ("2 1/2", "2.5"), ("1.5e3", "1500"))
        ],
        ("#### 0.5", "as a fraction: 1/2", True),  # which math-verify alone can tell
        ("#### 20\nor 18", "#### 18", False),
        ("#### \n\\[\n\\frac{1}{2}\n\\]", "#### 0.5", True),  # a formula of several lines
        ("#### $$\n18\n$$", "#### 18", True),
        ("#### The answer is:\n18", "#### 18", True),
        ("she has 5", "no number", False),
    ],
)
def test_the_more_lenient_metric_is_no_stricter(prediction, reference, right, verifier):
    """What follows the line of an answer is not part of it, and what `accuracy` takes this takes too."""
    both = make_score(None, ["accuracy_math"], verifier)
    assert bool(both(prediction, {"completion": reference})["accuracy_math"]) is right


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
