"""The study over base models: benchmarks/bases.py."""

import pytest

from benchmarks.bases import ARMS, SIZE, judged, tables, wanted
from benchmarks.referee import HERE, chosen, done_of, judged_by, plan_of, recipe_of, settings_of
from benchmarks.seeds import RESULTS, read_rows


PLAN = plan_of(HERE / "referee.yaml")
GAINS = dict(zip(ARMS, (0.0, 0.1, 0.2, -0.1), strict=True))


def rows_of(base: int, digest: str, gain: float = 0.0) -> list[dict]:
    """Of every arm on a base: all of its samplers at one accuracy."""
    found = []
    for run in wanted(PLAN, [], base):
        accuracy = 0.5 + GAINS[run["arm"]] + (gain if run["arm"] == "soft-Q" else 0)
        keys = settings_of(PLAN["arms"][run["arm"]], run["strength"])
        row = {**run, "keys": keys, "judged": judged_by(PLAN, "test"), "recipe": recipe_of(PLAN, keys), "base": digest}
        row["samplers"] = {name: {"accuracy": accuracy} for name in PLAN["test"]["samplers"]}
        for sampler in list(row["samplers"])[1:]:
            row["samplers"][sampler] |= {"pass@4": accuracy, "self_bleu": 80.0}
        row |= dict.fromkeys(("frontier", "temperatures"), dict.fromkeys(("accuracy", "pass@4"), [accuracy] * 3))
        found.append(row | {"area": {"accuracy": accuracy}, "nll": 0.25})
    return found


def test_each_base_trains_what_the_referee_chose():
    runs = wanted(PLAN, [], 3)
    assert [run["arm"] for run in runs] == list(ARMS) and {run["seed"] for run in runs} == {3}
    of_referee = done_of(PLAN, read_rows(RESULTS / "referee.jsonl"))
    for run in runs:
        assert run == chosen(PLAN, of_referee, SIZE, run["arm"]) | {"split": "test", "seed": 3}
    assert wanted(PLAN, rows_of(3, "a")[:2], 3) == runs[2:] and wanted(PLAN, rows_of(3, "a"), 4) != []


def test_only_whole_bases_count():
    first, second = rows_of(1, "a"), rows_of(2, "b")
    assert judged(PLAN, first + second[:-1]) == first
    assert judged(PLAN, first + second) == first + second


def test_runs_of_one_base_began_with_one_model():
    with pytest.raises(ValueError, match="base 2 began with several"):
        judged(PLAN, rows_of(1, "a") + rows_of(2, "b")[:2] + rows_of(2, "c")[2:])


def test_points_above_mle_are_paired_by_base():
    found = tables(PLAN, rows_of(1, "a", gain=0.01) + rows_of(2, "b", gain=0.03))["frontier"]
    header, mle, soft_q, *_ = found
    column = header.index("accuracy at 80")
    assert mle[:2] == ["MLE", "2"] and mle[column] == "50.0"
    # 11 and 13 points: the mean, and Student's 12.706 times the standard error of 1
    assert soft_q[column].startswith("+12.0 [-0.7, +24.7]")
