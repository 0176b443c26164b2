"""The frontier: the best sampler at each diversity, chosen on other prompts than it is judged on."""

import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_irl import evaluate
from trl_irl.evaluation import EvaluationSettings
from trl_irl.evaluation.comparison import AS_GIVEN, at_equal_diversity
from trl_irl.evaluation.equal_diversity import interpolate, long_lines
from trl_irl.evaluation.frontier import families, frontier, frontiers, halves_of
from trl_irl.evaluation.statistics import Statistic, mean_of
from trl_irl.text.samplers import GREEDY, Sampler


def cell(accuracy, self_bleu):
    return {"accuracy": mean_of(accuracy), "self_bleu": mean_of(self_bleu), "length": mean_of([1.0] * len(accuracy))}


def greedy(accuracy):
    return {"accuracy": mean_of(accuracy), "length": mean_of([1.0] * len(accuracy))}


def test_families_begin_at_greedy_decoding():
    samplers = ["t=0", "t=0.5", "t=1", "t=1,top_p=0.9", "beams=4"]
    values = {("a", Sampler.parse(text)): {"self_bleu": text} for text in samplers}
    values |= {("b", Sampler.parse(text)): {"self_bleu": text} for text in ("t=1", "t=1,top_k=3", "t=2,top_k=3")}
    found = families(values, "a")
    assert {family: [x["self_bleu"] for x in curve.values()] for family, curve in found.items()} == {
        "temperature": ["t=0", "t=0.5", "t=1"],
        "top-p 0.9": ["t=0", "t=1,top_p=0.9"],
    }
    assert list(families(values, "b")) == ["top-k 3"]  # one point is no curve


def test_by_hand():
    """Four prompts in two halves. Each chooses a family, and judges the other's."""
    (i, j), (k, m) = halves_of(4)
    assert {i, j, k, m} == {0, 1, 2, 3}

    def of(first, second):
        values = np.zeros(4)
        values[[i, j]], values[[k, m]] = first, second
        return cell(values, [60] * 4)

    curves = {
        "temperature": {GREEDY: greedy([1, 1, 1, 1]), Sampler(1.0): of(0.8, 0.2)},
        "top-p 0.9": {GREEDY: greedy([1, 1, 1, 1]), Sampler(1.0, 0.9): of(0.4, 0.6)},
    }
    value, _ = frontier(curves, "accuracy", [100.0, 80.0, 60.0, 50.0])
    # At 60 the first half takes the temperature (0.8 > 0.4), which has 0.2 on the second; that takes top-p (0.6 >
    # 0.2), which has 0.4 on the first: (0.2 + 0.4) / 2. The best on the same prompts would have been (0.8 + 0.6) / 2.
    assert value[:3].tolist() == pytest.approx([1.0, (1 + 0.3) / 2, 0.3]) and np.isnan(value[3])


@pytest.mark.any_trl
def test_the_better_of_two_samplers_is_found_and_noise_is_not_counted():
    """Families that are equal but for noise: the frontier is no higher than each, where a maximum would be."""
    rng = np.random.default_rng(0)
    prompts, means = 400, {"best": [], "frontier": []}
    for _ in range(20):
        curves = {
            f"top-k {k}": {
                GREEDY: greedy([0.5] * prompts),
                Sampler(1.0, top_k=k): cell((rng.random(prompts) < 0.5).astype(float), [60] * prompts),
            }
            for k in range(1, 11)
        }
        means["frontier"].append(frontier(curves, "accuracy", [60.0])[0][0])
        means["best"].append(max(list(curve.values())[1]["accuracy"].value for curve in curves.values()))
    error = np.std(means["frontier"]) / 20**0.5
    assert abs(np.mean(means["frontier"]) - 0.5) < 3 * error and np.mean(means["best"]) > 0.5 + 5 * error
    clear = {
        **curves,
        "min-p 0.1": {GREEDY: greedy([0.5] * prompts), Sampler(1.0, min_p=0.1): cell([0.9] * prompts, [60] * prompts)},
    }
    assert frontier(clear, "accuracy", [60.0])[0][0] == pytest.approx(0.9)


def test_differences_are_paired_and_the_area_is_the_mean_over_diversities():
    rng = np.random.default_rng(1)
    base = rng.random(200)
    samplers = (Sampler(1.0), Sampler(1.0, top_p=0.9))
    values = {}
    for model, more in (("a", 0.0), ("b", 0.1)):
        values[model, GREEDY] = greedy(base + more)
        for sampler in samplers:
            values[model, sampler] = cell(base + more - 0.2 * (sampler.top_p == 0.9), [40] * 200)
    at, areas, curves = frontiers(values, ["a", "b"], ["accuracy"])
    assert [one.self_bleu for one in at if one.model == "b"] == [90.0, 80.0, 70.0, 60.0, 50.0, 40.0]
    for one in at:
        if one.minus:  # of the same prompts: no more noise than the sums have
            assert (one.value.mean, one.value.low, one.value.high) == pytest.approx((0.1,) * 3)
    first, second = areas
    assert first.value.mean == pytest.approx(0.6 * base.mean(), abs=1e-9)  # flat from self-BLEU 100 to 40
    assert (second.minus, second.value.mean) == ("a", pytest.approx(0.06)) and 0 not in second.value
    for curve, more in zip(curves, (0.0, 0.1), strict=True):  # from greedy decoding to the most diverse sampler
        assert (curve.diversity[0], curve.diversity[-1]) == (0.5, 59.5) and (np.diff(curve.diversity) == 1).all()
        assert curve.mean == pytest.approx(base.mean() + more)
        assert (curve.low < curve.mean).all() and (curve.mean < curve.high).all()
        assert curve.high - curve.low == pytest.approx(2 * 1.96 * base.std() / 200**0.5, rel=0.15)
    ours = interpolate([100, 40], [1.0, 0.5], [70.0])
    assert ours[0] == 0.75 and isinstance(values["a", samplers[0]]["accuracy"], Statistic)


def test_models_are_compared_on_prompts_that_both_have_a_value_of():
    """Two alike, but what one says to the hard half of the prompts cannot be scored: it would look better by 0.4."""
    rng = np.random.default_rng(0)
    prompts = 400
    skill = np.where(np.arange(prompts) % 2 == 0, 0.9, 0.1)
    values = {}
    for name in "ab":
        for temperature, less, self_bleu in ((0.5, 0.0, 80.0), (1.0, 0.1, 60.0)):
            right = rng.binomial(4, np.clip(skill - less, 0, 1)) / 4
            right = np.where((name == "b") & (skill < 0.5), np.nan, right)
            values[name, Sampler(temperature)] = cell(right, self_bleu + np.where(skill < 0.5, -5, 5))
    easy = skill > 0.5
    alone = {
        key: {name: mean_of(one.sums[easy, 0] / one.sums[easy, 1]) for name, one in of_key.items()}
        for key, of_key in values.items()
    }
    levels = [one.self_bleu for one in at_equal_diversity(alone, "a", ["accuracy"]) if one.minus]
    on_common = [one for one in at_equal_diversity(values, "a", ["accuracy"]) if one.minus and one.self_bleu in levels]
    found = {one.self_bleu: one.value.mean for one in at_equal_diversity(alone, "a", ["accuracy"]) if one.minus}
    assert len(on_common) >= 2
    known = [one for one in on_common if not np.isnan(one.value.mean)]  # where the easy ones are diverse enough
    assert len(known) >= 2
    for one in known:  # exactly what the easy prompts alone give
        assert one.value.mean == pytest.approx(found[one.self_bleu]) and 0 in one.value
    at, areas, _ = frontiers(values, ["a", "b"], ["accuracy"])
    differences = [one.value for one in at if one.minus and not np.isnan(one.value.mean)]
    assert differences and all(abs(one.mean) < 0.05 for one in differences)
    (area,) = [one.value for one in areas if one.minus]
    assert abs(area.mean) < 0.05


@pytest.mark.parametrize(
    "points, area",
    [
        ({GREEDY: (0.5, 100), Sampler(1.0): (0.5, 0)}, 0.5),  # as good at every diversity
        ({Sampler(0.5): (1.0, 60), Sampler(1.0): (1.0, 40)}, 0.6),  # what is had at 60 is had at less diversity too
        ({GREEDY: (0.0, 100), Sampler(1.0): (1.0, 40)}, 0.6),  # greedy decoding is dominated
        ({GREEDY: (1.0, 100), Sampler(1.0): (0.0, 50)}, 0.25),  # a triangle
    ],
)
def test_the_area_is_a_hypervolume(points, area):
    values = {}
    for sampler, (accuracy, self_bleu) in points.items():
        at = cell([accuracy] * 10, [self_bleu] * 10)
        values["a", sampler] = at if sampler.is_random else {k: x for k, x in at.items() if k != "self_bleu"}
    values["a", Sampler(1.0, top_k=1)] = greedy([0.0] * 10)  # one sample: no diversity is known of it
    _, (one,), _ = frontiers(values, ["a"], ["accuracy"])
    assert (one.value.mean, one.value.low, one.value.high) == pytest.approx((area,) * 3, abs=0.006)  # of its grid


def test_one_family_alone_is_compared_at_equal_diversity_whatever_it_cuts():
    values = {}
    for model, more in (("a", 0.0), ("b", 0.1)):
        values[model, GREEDY] = greedy([0.8 + more] * 4)
        values[model, Sampler(1.0, top_p=0.9)] = cell([0.6 + more] * 4, [60] * 4)
    found = at_equal_diversity(values, "a", ["accuracy"])
    assert {one.self_bleu for one in found} == {90.0, 80.0, 70.0, 60.0}
    assert all(one.value.mean == pytest.approx(0.1) for one in found if one.minus)
    values |= {(model, Sampler(1.0, top_k=3)): cell([0.1] * 4, [50] * 4) for model in "ab"}
    assert at_equal_diversity(values, "a", ["accuracy"]) == []  # greedy decoding is no curve


def test_completions_as_given_hide_no_curve():
    values = {}
    for model, more in (("a", 0.0), ("b", 0.1)):
        values[model, GREEDY] = greedy([0.8 + more] * 4)
        values[model, Sampler(1.0)] = cell([0.6 + more] * 4, [60] * 4)
    alone = at_equal_diversity(values, "a", ["accuracy"])
    assert alone and at_equal_diversity(values | {("given", AS_GIVEN): greedy([0.5] * 4)}, "a", ["accuracy"]) == alone


def test_numbers_on_a_line_that_no_sampler_holds_up_are_told(model_folder):
    """A gap of more than 30 points of self-BLEU, if a level that is compared lies in it."""
    of = {
        "smoothed": {GREEDY: greedy([1.0]), Sampler(0.6): cell([0.7], [73]), Sampler(1.0): cell([0.0], [5])},
        "plain": {GREEDY: greedy([1.0]), Sampler(0.6): cell([0.8], [80]), Sampler(1.0): cell([0.6], [52])},
    }
    assert long_lines(of, [80, 70, 60]) == ["smoothed at self-BLEU 60, 70 between T = 0.6 (73) and T = 1 (5)"]
    assert long_lines(of, [80, 75]) == [] == long_lines(of, [73, 5])
    of["smoothed"][Sampler(0.8)] = cell([0.3], [43])  # 30 below 73: no longer told above it
    assert long_lines(of, [80, 70, 20]) == ["smoothed at self-BLEU 20 between T = 0.8 (43) and T = 1 (5)"]

    # In the report: a random model says the same greedily, and something else each time at T = 1.
    pair = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    rows = [{"prompt": text, "completion": f" {text}"} for text in ("The quick", "One two", "It is", "Fox") * 2]
    settings = {"num_samples": 2, "max_new_tokens": 5, "metrics": ["rouge"]}
    for samplers, count in ((["t=0", "t=1"], 1), (["t=0", "t=1", "t=1,top_p=0.99"], 2)):
        results = evaluate({"a": pair, "b": pair}, rows, EvaluationSettings(samplers=samplers, **settings))
        told = results.to_markdown()
        assert told.count("Some numbers lie on a long line, with no sampler near: a at self-BLEU ") == count
        assert told.count("; b at self-BLEU ") == count


@pytest.mark.parametrize("count, metrics, samples", [(1, ["rouge"], 3), (8, ["nll"], 3), (8, ["rouge"], 1)])
def test_where_there_is_no_frontier_it_is_said(count, metrics, samples, model_folder):
    """One prompt, no metric of the task, or one sample: after hours of sampling is no time for an error."""
    pair = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    rows = [{"prompt": "The quick", "completion": " brown"}] * count
    settings = {"samplers": ["t=0", "t=1", "t=1,top_k=5"], "num_samples": samples, "max_new_tokens": 4}
    results = evaluate({"a": pair}, rows, EvaluationSettings(metrics=metrics, **settings))
    assert results.has_frontier and results.frontier_areas == [] == results.at_frontier
    assert "There is none: each family needs two temperatures" in results.to_markdown()


def test_one_call(model_folder, tmp_path):
    pair = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    texts = ("The quick", "One two", "What is", "It is", "The sky", "Two", "Fox", "Dog")
    rows = [{"prompt": text, "completion": f" {text}"} for text in texts]
    samplers = ["t=0", "t=1", "t=2", "t=1,top_k=5", "t=1,min_p=0.3", "beams=2"]
    settings = {"samplers": samplers, "num_samples": 3, "max_new_tokens": 5, "metrics": ["rouge"]}
    results = evaluate({"a": pair, "b": pair}, rows, EvaluationSettings(**settings))
    assert [sampler for model, sampler in results.values if model == "a"] == list(map(Sampler.parse, samplers))
    table = results.table()
    assert [row[1] for row in table[1:7]] == [
        "greedy",
        "T = 1",
        "T = 2",
        "T = 1, top-k 5",
        "T = 1, min-p 0.3",
        "2 beams",
    ]
    told = results.write(tmp_path).read_text(encoding="utf-8")
    assert "## The frontier, minus a" in told and "## Minus a, at the same sampler" in told
    assert all(one.value.mean == 0 for one in results.at_frontier if one.minus)  # one model, the same samples
    found = json.loads((tmp_path / "differences.json").read_text())
    assert {one["metric"] for one in found["frontier_area"]} == {"rouge1"}
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {line.get("sampler") for line in lines} == {None, "t=1,top_k=5", "t=1,min_p=0.3", "beams=2"}
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert header.startswith("model,temperature,sampler,")
    assert all(len(line["completions"]) == (3 if line["temperature"] else 1) for line in lines)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"samplers": ["warm"]}, "`samplers`: the sampler 'warm' cannot be read"),
        ({"samplers": ["beams=3"], "backend": "vllm"}, "does not know a model's stop tokens"),
        ({"samplers": ["t=1,top_p=0.9,min_p=0.1"], "backend": "vllm"}, "cuts by min_p first, and transformers last"),
        ({"temperatures": [0.0, float("nan")]}, "`temperatures: nan` must be 0"),
        ({"value_temperature": 0.0}, "`value_temperature: 0` must be above 0"),
        ({"temperatures": [float("inf")]}, "`temperatures: inf` must be 0"),
        ({"samplers": ["t=1"], "top_p": 0.9}, "`top_p: 0.9` is of `temperatures`"),
    ],
)
def test_settings_that_cannot_be(keys, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**keys)


def test_temperatures_are_a_short_form():
    assert EvaluationSettings().plan == [GREEDY, Sampler(0.5), Sampler(1.0)]
    both = EvaluationSettings(temperatures=[0.0, 1.0], top_p=0.9, samplers=["t=1,top_p=0.9", "t=1"])
    assert both.plan == [GREEDY, Sampler(1.0, 0.9), Sampler(1.0)]
