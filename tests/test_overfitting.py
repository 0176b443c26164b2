"""benchmarks/overfitting.py: what a run tells, what is run next, and the table of known checks."""

import pytest

from benchmarks import overfitting
from benchmarks.overfitting import LIKELIHOOD, TASKS, key_of, run_job, summary, wanted
from tests.conftest import make_model


def row(size, seed, arm, nll, score):
    checks = [
        {"step": 50 * i, "epoch": i, "nll": x, "score": y} for i, (x, y) in enumerate(zip(nll, score, strict=True))
    ]
    keys = TASKS["arithmetic"]["arms"][arm]
    return {"task": "arithmetic", "demonstrations": size, "seed": seed, "arm": arm, "keys": keys, "checks": checks}


def test_the_table_has_the_lowest_likelihood_and_what_is_solved_there():
    rows = [
        row(100, 1, "MLE", [3.0, 1.0, 2.0], [0.0, 0.25, 0.75]),
        row(100, 2, "MLE", [3.0, 2.0, 1.0], [0.0, 0.5, 0.25]),
        row(300, 1, "soft-Q", [2.0, 1.5, 0.5], [0.0, 0.5, 0.75]),
    ]
    _, mle, soft_q = summary("arithmetic", rows)
    assert mle[:3] == ["100", "MLE", "2"]
    # At step 50 of the first seed and 100 of the second; their mean and deviation.
    assert mle[3:] == ["1.000 ± 0.000", "75 ± 35", "1.500 ± 0.707", "25.0 ± 0.0", "50.0 ± 35.4", "62.5 ± 17.7"]
    assert soft_q == ["300", "soft-Q", "1", "0.500", "100", "0.500", "75.0", "75.0", "75.0"]


def test_what_is_there_is_not_run_again_and_likelihood_and_irl_come_first():
    runs, plan = wanted("arithmetic", []), TASKS["arithmetic"]
    first = runs[: 2 * len(plan["sizes"]) * len(plan["seeds"])]
    assert {run["arm"] for run in first} == {"MLE", "soft-Q"} and {run["seed"] for run in first} == set(plan["seeds"])
    assert len({key_of(run) for run in runs}) == len(runs) == len(first) // 2 * len(plan["arms"])
    rest = wanted("arithmetic", [row(100, 1, "MLE", [1.0], [0.0])])
    assert [key_of(run) for run in rest] == [key_of(run) for run in runs[1:]]
    changed = row(100, 1, "MLE", [1.0], [0.0]) | {"keys": {"lambda_td": 7}}  # of an arm that was something else
    assert wanted("arithmetic", [changed]) == runs


@pytest.mark.any_trl
def test_a_run_tells_likelihood_and_score_at_every_check(tmp_path, monkeypatch, tokenizer):
    for part in (make_model("llama", max_position_embeddings=512), tokenizer):
        part.save_pretrained(tmp_path / "base")
    plan = {**TASKS["arithmetic"], "sizes": {40: 4}, "checks": 2}
    plan["generations"] = {"eval_generations": 2, "eval_max_new_tokens": 4}
    monkeypatch.setitem(overfitting.TASKS, "arithmetic", plan)
    run = {"task": "arithmetic", "demonstrations": 40, "seed": 1, "arm": "MLE", "keys": LIKELIHOOD}
    found = run_job(tmp_path, run)
    assert [check["step"] for check in found["checks"]] == [0, 2, 4]
    assert all(check["score"] == 0 for check in found["checks"])
    likelihoods = [check["nll"] for check in found["checks"]]
    assert likelihoods == sorted(likelihoods, reverse=True) and likelihoods[0] > likelihoods[-1]
    assert [check["train_nll"] for check in found["checks"]][0] is None
    # The same rows before training, of every arm and of any order.
    other = run_job(tmp_path, run | {"arm": "soft-Q", "keys": {"lambda_td": 1.0}})
    assert other["checks"][0]["nll"] == pytest.approx(likelihoods[0], rel=1e-6)
    assert other["checks"][-1]["nll"] != pytest.approx(likelihoods[-1], rel=1e-6)
