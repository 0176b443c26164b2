"""The plan of benchmarks/referee.py: what an arm chooses, from what, and what is run when."""

import random

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.referee import (
    HERE,
    _recipe,
    check_base,
    chosen,
    done_of,
    finished,
    jobs,
    judged_by,
    key_of,
    plan_of,
    recipe_of,
    report,
    settings_of,
    strengths_of,
    weights_digest,
)
from benchmarks.referee_report import hull, tables
from benchmarks.seeds import add_row, ratio_interval
from tests.conftest import make_model


PLAN = {
    "metrics": {"accuracy": 100, "pass@4": 100},
    "validation": {"samplers": ["t=0"]},
    "test": {"samplers": ["t=0"]},
    "demonstrations": {300: [300, 150], 2500: [400, 200]},
    "learning_rates": [1e-3, 3e-4],
    "seeds": [1, 2],
    "levels": [90, 80],
    "arms": {"MLE": {"objective": "nll"}, "z": {"objective": "z_loss", "strength": {"z_loss_weight": [0.1, 1.0]}}},
}


def row(run, accuracy):
    at = {"accuracy": [accuracy, None], "pass@4": [accuracy, None]}
    area = {"accuracy": random.random(), "pass@4": 0.5}
    cells = {"t=0": {"accuracy": accuracy}}
    keys = settings_of(PLAN["arms"][run["arm"]], run["strength"])
    run = {**run, "judged": judged_by(PLAN, run["split"])}
    return {**run, "keys": keys, "frontier": at, "temperatures": at, "area": area, "samplers": cells, "nll": 0.3}


def study(plan, accuracy):
    """All that is run, in its order, where a run's accuracy is what the function says."""
    done, order = {}, []
    while ready := list(jobs(plan, done)):
        order.append(ready[0])
        done[key_of(ready[0])] = row(ready[0], accuracy(ready[0]))
    return order, done


def wanted(run):
    """The best on validation: rate 3e-4, strength 1, the second number of steps. On the test problems the opposite."""
    good = (run["learning_rate"] == 3e-4) + (run["strength"] == 1.0) + (run["steps"] in (150, 200))
    return good / 4 if run["split"] == "validation" else 1 - good / 4


def test_an_arm_chooses_on_validation_and_seed_0_alone():
    order, done = study(PLAN, wanted)
    for size, steps in ((300, 150), (2500, 200)):
        found = chosen(PLAN, done, size, "z")
        assert (found["learning_rate"], found["strength"], found["steps"]) == (3e-4, 1.0, steps)
        tested = [run for run in order if (run["split"], run["demonstrations"], run["arm"]) == ("test", size, "z")]
        assert [run["seed"] for run in tested] == [1, 2]
        assert {(run["learning_rate"], run["strength"], run["steps"]) for run in tested} == {(3e-4, 1.0, steps)}
    assert {run["seed"] for run in order if run["split"] == "validation"} == {0}
    # Whatever the test problems say, the choice is the same.
    other = {key: row(one, random.random()) if one["split"] == "test" else one for key, one in done.items()}
    assert chosen(PLAN, other, 300, "z") == chosen(PLAN, done, 300, "z")
    assert len(order) == len({key_of(run) for run in order})  # nothing twice
    assert "+" in report(PLAN, list(done.values())) or "-" in report(PLAN, list(done.values()))


def test_what_was_tried_is_told_before_anything_is_judged():
    _, done = study(PLAN, wanted)
    tried = [run for run in done.values() if (run["split"], run["demonstrations"]) == ("validation", 300)]
    header, *rows = tables(PLAN, tried, 300)["What was tried, on validation"]
    by_hull = "What was tried, on validation, by a draw between two samplers"
    assert list(tables(PLAN, tried, 300)) == ["What was tried, on validation", by_hull]
    assert len(rows) == len(tried) and [row[0] for row in rows] == sorted(row[0] for row in rows)
    last = dict(zip(header, rows[-1], strict=True))
    assert last == last | {"arm": "z", "strength": "1", "learning_rate": "0.0003", "steps": "300", "nll": "0.300"}
    # 50 % at the first level of two, and nothing at the other, which it does not get to.
    assert last == last | {"accuracy at 90": "50.0", "accuracy at 80": "", "accuracy on the frontier": "25.0"}
    assert tables(PLAN, tried, 2500) == {}


def test_the_hull_is_that_of_the_points_whatever_samplers_an_arm_has():
    """Against scipy's convex hull of random points; and a point on or below a line changes nothing."""
    import numpy as np
    from scipy.spatial import ConvexHull

    random_numbers = np.random.default_rng(0)
    levels = [90, 70, 50, 30, 10]
    for _ in range(50):
        points = random_numbers.uniform(0, 100, (8, 2))
        samplers = {str(i): {"self_bleu": x, "accuracy": y} for i, (x, y) in enumerate(points)}
        corners = points[ConvexHull(points).vertices]
        ends = (corners[:, 0].argmin(), corners[:, 0].argmax())
        (low, high), upper = corners[list(ends)], []
        for x, y in corners:  # above the line from the leftmost to the rightmost
            if y >= low[1] + (high[1] - low[1]) * (x - low[0]) / (high[0] - low[0]) - 1e-9:
                upper.append((x, y))
        expected = np.interp(levels, *np.array(sorted(upper)).T, left=np.nan, right=np.nan)
        found = [np.nan if value is None else value for value in hull(samplers, "accuracy", levels)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Greedy decoding has no self-BLEU of its own: its samples are alike. Half of its line is 70 at 80.
    ends = {"t=0": {"accuracy": 0.8}, "t=1": {"accuracy": 0.6, "self_bleu": 60.0}}
    assert hull(
        {"t=0": {"accuracy": 0.8}, "t=1": {"pass@4": 0.9, "self_bleu": 60.0}}, "pass@4", [80]
    ) == pytest.approx([0.85])
    assert hull(ends, "accuracy", [100, 80, 60, 50]) == pytest.approx([0.8, 0.7, 0.6, None])
    assert hull({**ends, "t=0.5": {"accuracy": 0.65, "self_bleu": 80.0}}, "accuracy", [80]) == pytest.approx([0.7])
    assert hull({**ends, "t=0.5": {"accuracy": 0.75, "self_bleu": 80.0}}, "accuracy", [80]) == pytest.approx([0.75])


def test_an_arm_without_a_strength_tries_all_pairs():
    order, done = study(PLAN, wanted)
    tried = [run for run in order if (run["arm"], run["split"], run["demonstrations"]) == ("MLE", "validation", 300)]
    assert len(tried) == 4
    found = chosen(PLAN, done, 300, "MLE")
    assert (found["learning_rate"], found["steps"]) == (3e-4, 150)


def test_one_arm_may_decide_the_learning_rate_of_all():
    plan = {**PLAN, "learning_rate_of": "MLE"}
    order, done = study(plan, wanted)
    tried = [run for run in order if (run["arm"], run["split"], run["demonstrations"]) == ("z", "validation", 300)]
    assert {run["learning_rate"] for run in tried} == {3e-4} and len(tried) == 3
    assert chosen(plan, done, 300, "z")["strength"] == 1.0
    assert {run["arm"] for run in jobs(plan, {})} == {"MLE"}  # which others wait for


def test_what_was_run_of_another_plan_is_not_taken():
    _, done = study(PLAN, wanted)
    rows = list(done.values())
    assert done_of(PLAN, rows) == done
    arms = {**PLAN["arms"], "z": {**PLAN["arms"]["z"], "z_loss_center": "measured"}}
    assert {row["arm"] for row in done_of({**PLAN, "arms": arms}, rows).values()} == {"MLE"}
    other = {**PLAN, "test": {"samplers": ["t=0", "t=1"]}}
    assert {row["split"] for row in done_of(other, rows).values()} == {"validation"}


def test_a_run_that_was_judged_otherwise_is_run_again():
    run = next(jobs(PLAN, {}))
    one = row(run, 0.5)
    assert list(done_of(PLAN, [one])) == [key_of(run)]
    assert not done_of(PLAN, [{name: value for name, value in one.items() if name != "judged"}])
    for changed in ({"levels": [95, 85]}, {"evaluation": {"max_new_tokens": 8}}, {"keys": {"max_length": 9}}):
        assert not done_of({**PLAN, **changed}, [one])
    assert not done_of({**PLAN, "validation": {**PLAN["validation"], "num_samples": 9}}, [one])
    assert done_of({**PLAN, "test": {**PLAN["test"], "num_samples": 9}}, [one])  # it was on validation


def test_a_size_is_not_gone_on_with_from_another_base(tmp_path):
    """A base that is trained anew is another model: its arms are not compared with those of the first."""
    plan = {**PLAN, "model": "demo"}
    run = next(jobs(plan, {}))
    one = {**row(run, 0.5), "judged": judged_by(plan, run["split"])}
    check_base(plan, [], "new")
    check_base(plan, [{**one, "base": "new"}], "new")
    for other in ({**one, "base": "old"}, one):
        with pytest.raises(SystemExit, match=f"Runs of {run['demonstrations']} demonstrations began with another"):
            check_base(plan, [other], "new")
    for name, data in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(data)
    digests = {name: weights_digest(tmp_path / name) for name in "abc"}
    assert digests["a"] == digests["c"] != digests["b"]


def test_a_run_of_another_recipe_is_run_again():
    """What an arm or a run sets itself may change in the recipe; the rest may not."""
    plan = plan_of(HERE / "referee.yaml")
    keys = {"lambda_td": 0.3}
    told = _recipe(plan["recipe"])
    before = recipe_of(plan, keys)
    try:
        told |= {"lambda_td": 7.0, "seed": 5}
        assert recipe_of(plan, keys) == before
        told["lr_scheduler_type"] = "linear"
        assert recipe_of(plan, keys) != before
    finally:
        _recipe.cache_clear()
    assert recipe_of(plan, keys) == before


def test_a_ratio_has_the_interval_of_the_test_that_defines_it():
    """At its ends Student's test of part - R * whole has p = 0.05; of a whole that may be 0 there is none."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        whole = rng.normal(10, 2, 5)
        part = 0.4 * whole + rng.normal(0, 2, 5)
        low, high = ratio_interval(part, whole)
        assert low < part.mean() / whole.mean() < high
        for end in (low, high):
            assert ttest_1samp(part - end * whole, 0).pvalue == pytest.approx(0.05, abs=1e-6)
    assert ratio_interval(whole, whole - whole.mean() + 0.1) == (-np.inf, np.inf)


def test_tests_of_an_earlier_choice_are_not_counted(tmp_path):
    """A new learning rate has won: what was tested with the old one stays in the file, and in no table."""
    _, done = study(PLAN, wanted)
    results = tmp_path / "results.jsonl"
    earlier = [{**one, "learning_rate": 1e-3} for one in done.values() if one["split"] == "test"]
    for one in [*earlier, *done.values(), *earlier]:
        add_row(results, one)
    found = finished(PLAN, results)
    assert len(found) == len(done) and not any(one in found for one in earlier)
    assert {one["learning_rate"] for one in found if one["split"] == "test"} == {3e-4}


def test_every_test_run_is_told_by_both_readings():
    _, done = study(PLAN, wanted)
    for one in done.values():
        one["samplers"] |= {"t=1": {"accuracy": 0.1, "self_bleu": 70.0}}
    header, *rows = tables(PLAN, list(done.values()), 300)["Each run"]
    assert [row[:2] for row in rows] == [["MLE", "1"], ["z", "1"], ["MLE", "2"], ["z", "2"]]
    told = dict(zip(header, rows[1], strict=True))
    accuracy = 100 * wanted({"learning_rate": 3e-4, "strength": 1.0, "steps": 150, "split": "test"})
    assert told["accuracy at 90"] == told["accuracy, greedy"] == f"{accuracy:.1f}" and told["accuracy at 80"] == ""
    assert told["accuracy at 80, drawn"] == f"{accuracy / 3 + 2 * 10 / 3:.1f}"  # a third of the way up from 70 to 100


def test_a_metric_without_an_area_has_no_column_of_it():
    """BLEU beside the share of slots, the task's own metric, which alone has one."""
    _, done = study(PLAN, wanted)
    for one in done.values():
        del one["area"]["pass@4"]
    for title, (header, *rows) in tables(PLAN, list(done.values()), 300).items():
        assert "area, pass@4" not in header and all(len(row) == len(header) for row in rows), title
    assert "area, accuracy" in tables(PLAN, list(done.values()), 300)["Each run"][0]


def test_few_demonstrations_come_first_and_one_that_is_waited_for_is_no_standstill():
    order, _ = study(PLAN, wanted)
    sizes = [run["demonstrations"] for run in order]
    assert sizes == sorted(sizes)
    ready = list(jobs(PLAN, {}))
    assert {run["arm"] for run in ready} == {"MLE", "z"}  # so that two workers both have something to do


def test_a_size_may_have_fewer_arms():
    order, _ = study({**PLAN, "arms_of": {2500: ["MLE"]}}, wanted)
    arms = {size: {run["arm"] for run in order if run["demonstrations"] == size} for size in (300, 2500)}
    assert arms == {300: {"MLE", "z"}, 2500: {"MLE"}}


def test_the_arms_that_are_shipped():
    """Each with four strengths or none, a decade from the least to the most, all of its keys IRLConfig's."""
    from trl_irl.soft_q.objectives import OBJECTIVES

    plan = plan_of(HERE / "referee.yaml")
    assert 0 not in plan["seeds"]  # on which everything is chosen
    assert {arm["objective"] for arm in plan["arms"].values()} == set(OBJECTIVES)
    for name, arm in plan["arms"].items():
        assert len(strengths_of(arm)) in (1, 4, 5), name
    assert all(name in plan["arms"] for names in plan["arms_of"].values() for name in names)


@pytest.mark.parametrize("path", sorted(HERE.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_is_of_known_keys_and_samplers(path):
    from trl_irl import IRLConfig
    from trl_irl.text.samplers import Sampler

    plan = plan_of(path)
    assert 0 not in plan["seeds"] and (HERE.parent / plan["recipe"]).is_file()
    for arm in plan["arms"].values():
        for strength in strengths_of(arm):
            keys = settings_of(arm, strength)
            keys.pop("average", None)
            IRLConfig("unused", use_cpu=True, bf16=False, report_to="none", **keys)
    for split in ("validation", "test"):
        assert [str(Sampler.parse(text)) for text in plan[split]["samplers"]] == plan[split]["samplers"]


def test_what_maximum_likelihood_trained_is_kept_for_the_averages(tmp_path, monkeypatch, tokenizer):
    """The second run of a plan that keeps it does not train, and gives the same numbers at a weight of 1."""
    from benchmarks import referee
    from trl_irl import IRLTrainer

    for part in (make_model("llama", max_position_embeddings=512), tokenizer):
        part.save_pretrained(tmp_path / "base")
    plan = {**PLAN, "keep_mle": True, "recipe": "recipes/arithmetic/irl.yaml", "levels": [90]}
    plan |= {"evaluation": {"metrics": ["accuracy", "nll"], "max_new_tokens": 4}}
    plan |= {"test": {"samplers": ["t=0", "t=1"], "num_samples": 2, "num_prompts": 3}}
    plan["arms"] = {"MLE": {"objective": "nll"}, "mean": {"objective": "nll", "strength": {"average": [1.0, 0.5]}}}
    run = {"split": "test", "demonstrations": 40, "seed": 1, "strength": None, "learning_rate": 1e-3, "steps": 2}
    first, _ = referee.run_job(tmp_path, plan, run | {"arm": "MLE"})
    monkeypatch.setattr(IRLTrainer, "train", lambda self: pytest.fail("it was kept"))
    whole, half = (referee.run_job(tmp_path, plan, run | {"arm": "mean", "strength": x})[0] for x in (1.0, 0.5))
    assert whole["samplers"] == first["samplers"] and whole["nll"] == pytest.approx(first["nll"], rel=1e-6)
    assert half["nll"] != pytest.approx(first["nll"], rel=1e-5)
    assert [one.name for one in (tmp_path / "kept").iterdir()] == ["40-1-0.001-2"]
