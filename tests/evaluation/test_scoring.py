"""From samples to metrics: against plain averages, and what becomes of completions that cannot be scored."""

import json
import math
from statistics import fmean

import pytest

from trl_irl.evaluation.comparison import (
    at_equal_diversity,
    differences,
    summarise,
    table,
    table_at_equal_diversity,
    write_tables,
)
from trl_irl.evaluation.equal_diversity import common_levels, difference_at_levels, interpolate
from trl_irl.evaluation.rows import unanswered
from trl_irl.evaluation.scoring import MetricError, Scorer
from trl_irl.evaluation.statistics import mean_of
from trl_irl.tasks.final_answer import is_correct
from trl_irl.text.samplers import Sampler


def completion(text, length=3, ended=True):
    return {"text": text, "length": length, "ended": ended}


GROUPS = [[completion("1"), completion("2", 5, False)], [completion(""), completion("4")]]
ROWS = [{"completion": "1"}, {"completion": "5"}]


def exact(text, row):
    return {"accuracy": text == row["completion"], "size": len(text)}


def test_against_plain_averages():
    scorer = Scorer(exact, corpus=["chrf"])
    found = {name: statistic.value for name, statistic in scorer.statistics(GROUPS, ROWS).items()}
    assert found["accuracy"] == 0.25 and found["pass@1"] == 0.25 and found["pass@2"] == 0.5
    assert found["size"] == 0.75 and found["length"] == 3.5 and found["ended"] == 0.75 and found["empty"] == 0.25
    assert found["distinct"] == 1 and found["chrf"] > 0
    assert scorer.failures.count == 0


@pytest.mark.parametrize("wrong", ["raises", "nan", "text", "none"])
def test_completions_that_cannot_be_scored_are_counted_and_left_out(wrong):
    def score(text, row):
        if text == "2":
            return {"raises": lambda: 1 / 0, "nan": lambda: {"x": math.nan}}.get(wrong, lambda: {"x": wrong})()
        return None if (wrong == "none" and text == "4") else {"x": 1.0 if text == "1" else 3.0}

    scorer = Scorer(score)
    found = scorer.statistics(GROUPS, ROWS)
    left = [[1.0], [3.0] if wrong == "none" else [3.0, 3.0]]
    assert found["x"].value == fmean(map(fmean, left))
    assert scorer.failures.count == (2 if wrong == "none" else 1)
    reasons = {"raises": "ZeroDivisionError: division by zero", "nan": "`x` is nan", "text": "ValueError"}
    assert reasons.get(wrong, "could not convert") in scorer.failures.first


def test_a_prompt_without_any_score_is_left_out():
    def score(text, row):
        if row["completion"] == "1":
            raise KeyError("no key")
        return {"x": 2.0}

    scorer = Scorer(score)
    found = scorer.statistics(GROUPS, ROWS)
    assert found["x"].value == 2 and found["x"].sums[:, 1].tolist() == [0, 1]
    assert math.isnan(found["x"].interval(resamples=50).low)  # one prompt says nothing of others
    assert mean_of([math.nan, 2.0, 2.0]).interval(resamples=50).low == 2  # resamples without any score have no value
    assert found["length"].value == 3.5
    assert "x" not in Scorer(score).statistics(GROUPS[:1], ROWS[:1])


def test_a_completion_that_cannot_be_scored_solves_nothing():
    """Without it, a prompt with one would be in pass@1 and not in pass@4, which would be of the easy ones."""
    said = {"right": {"accuracy": 1}, "wrong": {"accuracy": 0}}
    of_prompts = (["right"] * 4, ["wrong", "?", "?", "right"], ["?"] * 4)
    groups = [[completion(text) for text in texts] for texts in of_prompts]
    scorer = Scorer(lambda text, row: said[text])
    found = scorer.statistics(groups, [*ROWS[:2], ROWS[0]])
    assert scorer.failures.count == 6 and found["accuracy"].value == pytest.approx((1 + 0.5) / 2)
    for k, second in ((1, 1 / 4), (2, 1 / 2), (4, 1)):
        assert found[f"pass@{k}"].value == pytest.approx((1 + second + 0) / 3)


def test_a_number_that_is_given_only_sometimes():
    scores = {"1": {"accuracy": 1, "x": 1}, "2": {"x": 3}, "": {}, "4": {"accuracy": 0}}
    scorer = Scorer(lambda text, row: scores[text])
    found = scorer.statistics(GROUPS, ROWS)
    assert found["accuracy"].value == 0.5 == found["pass@1"].value and "pass@2" not in found
    assert found["x"].value == 2 and scorer.failures.count == 0 and scorer.given == {"accuracy": 2, "x": 2}
    # At one temperature never: nothing is read off there.
    first = {0.5: cell([0.8, 0.4], [80, 80]), 1.0: cell([0.6, 0.0], [60, 60])}
    never = {t: {name: c[name] for name in ("self_bleu", "length")} for t, c in first.items()}
    half = {0.5: first[0.5], 1.0: never[1.0]}
    values = {
        (name, Sampler(t)): c for name, curve in {"a": first, "b": half, "c": never}.items() for t, c in curve.items()
    }
    rows = {
        row[0]: row[2:]
        for row in table_at_equal_diversity(at_equal_diversity(values, "a", ["accuracy", "pass@2"]))[1:3]
    }
    assert rows["a"][0].startswith("60.0 %") and rows["b - a"] == ["+0.0 [+0.0, +0.0]", "", "", "", ""]
    assert table_at_equal_diversity(at_equal_diversity(values, "a", ["accuracy"]), intervals=False)[3][2:] == [""] * 5


@pytest.mark.parametrize(
    "given", [{"length": 7}, {"self_bleu": 3}, {"x": 1, "pass@2": 1}, {"ended": 1}, {"bleu": 9}, {"reward": 1}]
)
def test_a_name_that_is_taken_is_refused(given):
    scorer = Scorer(lambda text, row: given, corpus=["bleu"], taken=["reward"])
    name = list(given)[-1]
    for refused in (lambda: scorer.statistics(GROUPS, ROWS), lambda: scorer.check(ROWS)):
        with pytest.raises(MetricError, match=f"`{name}`, a name that is taken"):
            refused()
    if name in ("bleu", "reward"):  # free where nobody else measures it
        assert Scorer(lambda text, row: given).statistics(GROUPS, ROWS)[name].value == given[name]


@pytest.mark.parametrize("value", [50.0, 0.5, -1, 100])
def test_accuracy_is_0_or_1(value):
    scorer = Scorer(lambda text, row: {"accuracy": value})
    for refused in (lambda: scorer.statistics(GROUPS, ROWS), lambda: scorer.check(ROWS)):
        with pytest.raises(MetricError, match=f"`accuracy` the value {value:g}, and it can only be 0"):
            refused()
    assert Scorer(lambda text, row: {"accuracy": text == "1"}).statistics(GROUPS, ROWS)["accuracy"].value == 0.25


def test_references_without_a_final_answer():
    score = Scorer(lambda text, row: {"accuracy": is_correct(text, row)})
    with pytest.raises(ValueError, match="2 of 2 references have no final answer. The first: .*The answer is 4"):
        unanswered([{"completion": "The answer is 4."}, {"completion": "\\boxed{5}"}], ["accuracy"])
    rows = [{"completion": "The answer is 4."}, {"completion": "#### 4"}]
    score.check(rows)
    found = score.statistics([[completion("#### 4")], [completion("#### 4")]], rows)
    assert found["accuracy"].value == 1 and score.failures.count == 1
    assert found["pass@1"].value == 1  # as in the accuracy: nothing could be right
    assert "NoFinalAnswer: the reference 'The answer is 4.'" in score.failures.first
    assert len(unanswered(rows, ["accuracy"])) == 1 and unanswered(rows, ["rouge"]) == []
    assert "1 of 2 references have no `####`" in unanswered([rows[1], {"completion": "18"}], ["accuracy"])[0]


T1 = Sampler(1.0)


def cell(accuracy, self_bleu):
    return {"accuracy": mean_of(accuracy), "self_bleu": mean_of(self_bleu), "length": mean_of([1.0] * len(accuracy))}


def greedy(accuracy):
    return {"accuracy": mean_of(accuracy), "length": mean_of([1.0] * len(accuracy))}


def test_interpolation_by_hand():
    found = interpolate([80, 100, 60], [0.5, 0.6, 0.1], [100, 90, 70, 60, 59])
    assert found[:4].tolist() == pytest.approx([0.6, 0.55, 0.3, 0.1]) and math.isnan(found[4])


def test_equal_diversity_by_hand():
    """The second policy is the first one at another temperature, and right more often by 0.1 at every diversity."""
    first = {0.0: greedy([1.0, 0.6]), 0.5: cell([0.8, 0.4], [80, 80]), 1.0: cell([0.6, 0.0], [60, 60])}
    second = {0.0: greedy([1.0, 0.8]), 0.5: cell([0.8, 0.4], [70, 70])}
    # At 80 the first is right in 0.6; the second, a third of the way from 100 to 70 ... 0.9 - 2/3 * 0.3 = 0.7.
    assert common_levels([first, second]) == [95.0, 90.0, 85.0, 80.0, 75.0, 70.0]
    (at_80,) = difference_at_levels(second, first, "accuracy", [80.0])
    assert at_80.mean == pytest.approx(0.1)
    # Paired by hand: prompt 1 gives 0.8667 - 0.8, prompt 2 0.5333 - 0.4; a resample has one of three means.
    assert (at_80.low, at_80.high) == pytest.approx((0.8 / 3 * 2 + 1 / 3 - 0.8, 0.8 / 3 + 0.4 / 3 * 2 - 0.4))
    values = {("a", Sampler(t)): c for t, c in first.items()} | {("b", Sampler(t)): c for t, c in second.items()}
    far = {0.0: greedy([1.0, 0.8]), 2.0: cell([0.8, 0.4], [10, 10])}
    assert common_levels([far]) == [80.0, 60.0, 40.0, 20.0]  # not nineteen columns
    rows = table_at_equal_diversity(at_equal_diversity(values, "a", ["accuracy"]))
    assert rows[0][2:] == ["self-BLEU 95", "self-BLEU 90", "self-BLEU 85", "self-BLEU 80", "self-BLEU 75"] + [
        "self-BLEU 70"
    ]
    assert rows[1][:2] == ["a", "accuracy"] and rows[1][5].startswith("60.0 %")
    assert rows[2][0] == "b - a" and rows[2][5].startswith("+10.0 [+6.7, +13.3]")
    compact = table_at_equal_diversity(at_equal_diversity(values, "a", ["accuracy"]), intervals=False)
    assert compact[1][5] == "60.0 %" and compact[2][5] == "+10.0 *"  # 6.7 to 13.3
    apart = {("a", T1): cell([1.0], [90]), ("b", T1): cell([1.0], [50])}
    assert at_equal_diversity(apart, "a", ["accuracy"]) == [] and len(table_at_equal_diversity([])) == 1


def test_results_and_files(tmp_path):
    values = {("a", T1): cell([1.0, 0.0], [50, 60]), ("b", T1): cell([1.0, 1.0], [40, 50])}
    results = summarise(values)
    assert table(results, ["accuracy", "self_bleu"], intervals=False)[1:] == [
        ["a", "T = 1", "50.0 %", "55.0"],
        ["b", "T = 1", "100.0 %", "45.0"],
    ]
    (difference,) = differences(values, "a")
    assert difference.metrics["self_bleu"].low == difference.metrics["self_bleu"].high == -10
    # Differences of shares are in points: half as many again would be 50 % more.
    told = table([difference], ["accuracy", "self_bleu"], difference=True)[1]
    assert told == ["b", "T = 1", "+50.0 [+0.0, +100.0]", "-10.0 [-10.0, -10.0]"]
    write_tables(results, tmp_path)
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read[0]["metrics"]["accuracy"]["mean"] == 0.5 and read[1]["model"] == "b"


def test_a_completion_that_cannot_be_scored_is_no_pass():
    def score(text, row):
        if text == "bad":
            raise ValueError("unreadable")
        return {"accuracy": float(text == "right")}

    groups = [[completion("bad"), completion("bad")], [completion("right"), completion("right")]]
    found = Scorer(score).statistics(groups, [{"completion": "x"}, {"completion": "y"}])
    assert found["accuracy"].value == 1 and found["pass@1"].value == found["pass@2"].value == 0.5
