"""Each metric against values computed by hand, by brute force, or printed by the library that computes it."""

import itertools
import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from scipy import stats

from trl_irl.evaluation.metrics import (
    check_installed,
    corpus_statistics,
    distinct_n,
    distinct_share,
    pass_at_k,
    self_bleu,
    vendi_score,
)
from trl_irl.evaluation.statistics import Statistic, ends, mean_of, ratio
from trl_irl.tasks.rouge import rouge


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sacrebleu" else name)
    with pytest.raises(ImportError, match=r"sacrebleu not installed. `pip install \"\.\[eval\]\"` in the clone"):
        check_installed()


def test_self_bleu_of_identical_and_of_disjoint_samples():
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(100)
    disjoint = ["the cat sat on the mat", "a dog runs through our park", "my hat fell over that wall"]
    assert self_bleu(disjoint) < 10
    with pytest.raises(ValueError, match="two or more"):
        self_bleu(["alone"])


@pytest.mark.parametrize("tokenizer", ["13a", "char"])
def test_self_bleu_is_the_mean_of_sacrebleus_sentence_scores(tokenizer):
    bleu, draw = BLEU(effective_order=True, tokenize=tokenizer), random.Random(0)
    words = "the cat sat, on a mat. 12 + 3 = 15 dog's ran-away <<1+1=2>> \n #### 5 a a".split(" ")
    for _ in range(100):
        samples = [
            " ".join(draw.choice(words) for _ in range(draw.randint(0, 9))) + draw.choice([" ", "", "\n"])
            for _ in range(draw.randint(2, 6))
        ]
        scores = []
        for i, sample in enumerate(samples):
            others = [*samples[:i], *samples[i + 1 :]]
            again = sample.split() in [other.split() for other in others]  # the same words, be it none
            scores.append(100 if again else bleu.sentence_score(sample, others).score)
        assert self_bleu(samples, tokenizer) == pytest.approx(np.mean(scores), abs=1e-9), samples


def test_self_bleu_by_hand():
    """Two samples of four words sharing the first two: precisions 2/4, 1/3, then smoothed 1/4 and 1/4."""
    # sacrebleu's exponential smoothing gives the first empty n-gram order 1 / (2 * total), the next 1 / (4 * total).
    expected = 100 * (2 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** 0.25
    assert self_bleu(["a b c d", "a b x y"]) == pytest.approx(expected)


def test_samples_that_say_nothing():
    assert self_bleu(["", ""]) == 100 and self_bleu(["", "a b"]) == 0  # the same nothing is not diverse
    assert self_bleu(["", "\n", " ", "\n\n"]) == 100 and self_bleu(["a b", "a  b\n"]) == 100
    assert distinct_n(["", ""], 1) == 0 and distinct_share(["", ""]) == 0.5
    assert rouge("", "a reference")["rougeL"] == 0


def test_distinct():
    assert distinct_share(["a", "a", "b", "b"]) == 0.5
    assert distinct_n(["a b a", "b a"], 1) == 2 / 5
    assert distinct_n(["a b a", "b a"], 2) == 2 / 3  # ab, ba, ba
    assert distinct_n(["a"], 2) == 0


@pytest.mark.parametrize("n, c", [(1, 0), (1, 1), (4, 1), (5, 3), (6, 6), (7, 0)])
def test_pass_at_k_against_every_draw(n, c):
    correct = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(correct, k))
        assert pass_at_k(correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    with pytest.raises(ValueError, match=f"pass@{n + 1} needs"):
        pass_at_k(correct, n + 1)


def test_rouge_of_the_library_and_by_hand():
    """The sentences of rouge-score's README; with stemming, "jumps" is "jump"."""
    scores = rouge("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    # In common: the, quick, brown, dog, jump, the, of 8 and 9 words; "the quick" and "quick brown", of 7 and 8 pairs.
    assert scores["rouge1"] == pytest.approx(100 * 2 * 6 / (8 + 9))
    assert scores["rouge2"] == pytest.approx(100 * 2 * 2 / (7 + 8))
    # the quick brown jump the
    assert scores["rougeL"] == pytest.approx(100 * 2 * 5 / (8 + 9))


PREDICTIONS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
ONE_EACH = [[text] for text in REFERENCES]


def test_corpus_scores_by_hand():
    """The sentences of sacrebleu's README: n-grams in common 12 of 17, 6 of 14, 4 of 11, 3 of 8, and equal lengths."""
    expected = 100 * (12 / 17 * 6 / 14 * 4 / 11 * 3 / 8) ** 0.25
    assert corpus_statistics("bleu", [[text] for text in PREDICTIONS], ONE_EACH).value == pytest.approx(expected)
    for name in ("bleu", "chrf"):
        assert corpus_statistics(name, ONE_EACH, ONE_EACH).value == pytest.approx(100)


@pytest.mark.parametrize("name, metric", [("bleu", BLEU()), ("chrf", CHRF())])
def test_corpus_scores_are_the_librarys_with_several_samples_and_in_resamples(name, metric):
    groups = [PREDICTIONS[:2], PREDICTIONS[1:], PREDICTIONS[::2]]
    flat = [(sample, reference) for group, reference in zip(groups, REFERENCES, strict=True) for sample in group]
    found = corpus_statistics(name, groups, ONE_EACH)
    expected = metric.corpus_score([sample for sample, _ in flat], [[reference for _, reference in flat]]).score
    assert found.value == pytest.approx(expected)
    # Every resample is the score of a corpus in which whole prompts stand several times or not at all.
    possible = set()
    for draw in itertools.product(range(3), repeat=3):
        pairs = [(sample, REFERENCES[i]) for i in draw for sample in groups[i]]
        possible.add(round(metric.corpus_score([s for s, _ in pairs], [[r for _, r in pairs]]).score, 6))
    assert {round(value, 6) for value in found.resampled(200)} <= possible


@pytest.mark.parametrize("name, metric", [("bleu", BLEU()), ("chrf", CHRF())])
def test_corpus_scores_of_several_references_and_not_as_many_of_each(name, metric):
    """sacrebleu's own layout is a list per number of reference, with None where a sentence has no such reference."""
    several = [REFERENCES[:1], [REFERENCES[1], "It was no surprise.", "It wasn't surprising!"], REFERENCES[2:]]
    several[2].append("The man had just been bitten.")
    streams = [[of[i] if i < len(of) else None for of in several for _ in range(2)] for i in range(3)]
    groups = [PREDICTIONS[:2], PREDICTIONS[1:], PREDICTIONS[::2]]
    expected = metric.corpus_score([sample for group in groups for sample in group], streams).score
    found = corpus_statistics(name, groups, several)
    assert found.value == pytest.approx(expected)
    assert found.value > corpus_statistics(name, groups, ONE_EACH).value + 1


def test_rouge_takes_of_each_kind_the_reference_that_is_nearest():
    near, order = "a b c d e f", "f e d c b a"
    found = rouge("a b c x y z", order, near)
    assert found == {name: max(rouge("a b c x y z", one)[name] for one in (near, order)) for name in found}
    assert found["rouge2"] == rouge("a b c x y z", near)["rouge2"] > 0


def test_the_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = random.Random(0)
    draws = [mean_of([rng.random() < 0.3 for _ in range(100)]) for _ in range(300)]
    assert 0.90 < sum(0.3 in draw.interval(resamples=400) for draw in draws) / 300 < 0.98


@pytest.mark.parametrize("prompts", [6, 10, 30])
def test_the_bootstrap_of_few_prompts_is_as_wide_as_students_interval(prompts):
    rng, held, by_percentiles, widths = np.random.default_rng(0), 0, 0, []
    for _ in range(400):
        values = rng.normal(size=prompts)
        found, drawn = mean_of(values).interval(), mean_of(values).resampled()
        student = stats.ttest_1samp(values, 0).confidence_interval()
        widths.append([found.high - found.low, student.high - student.low])
        held += 0 in found
        by_percentiles += np.percentile(drawn, 2.5) <= 0 <= np.percentile(drawn, 97.5)
    ours, students = np.mean(widths, axis=0)
    assert 0.9 < ours / students < 1.03 and held / 400 > 0.92 and held > by_percentiles


def test_the_bootstrap_of_many_prompts_ends_at_its_percentiles():
    resampled = np.random.default_rng(0).normal(size=2000)
    assert ends(resampled, 10**6) == pytest.approx(np.percentile(resampled, [2.5, 97.5]), abs=1e-3)
    for prompts, parts in ((1, 1), (2, 2)):  # one number says nothing of a spread
        found = ends(resampled[:, None], prompts, parts)
        assert found.shape == (2, 1) and np.isnan(found).all()


def test_prompts_in_two_halves_have_a_degree_of_freedom_less():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        halves = rng.normal(size=(2, 5))
        drawn = np.mean([mean_of(half).resampled(seed=i) for i, half in enumerate(halves)], axis=0)
        low, high = ends(drawn, 10, parts=2)
        held += low <= 0 <= high
    assert held / 400 > 0.92


def test_a_mean_counts_the_prompts_that_have_a_value():
    values = np.array([0.1, 0.9, 0.4, np.nan, np.nan, 0.3])
    assert mean_of(values).prompts == 4 and mean_of(values).interval().high > mean_of(values[[0, 1, 2, 5]]).value
    assert mean_of(values).only(values < 0.5).prompts == 3


def test_the_bootstrap_against_scipys():
    values = np.random.default_rng(0).exponential(2.0, 150)
    found = mean_of(values).interval()
    expected = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.02)
    assert mean_of(values).interval() == found  # seeded
    alone = mean_of([0.5, np.nan]).interval()
    assert alone.mean == 0.5 and np.isnan([alone.low, alone.high]).all() and 0 in alone
    assert mean_of([1.0, 1.0]).interval().high == 1


def test_a_loss_per_token_weighs_tokens_and_seeds_add_up():
    statistic = Statistic(np.array([[6.0, 3.0], [1.0, 1.0]]))
    assert statistic.value == 7 / 4
    assert (statistic + Statistic(np.array([[0.0, 1.0], [1.0, 1.0]]))).value == 8 / 6
    assert {round(float(x), 6) for x in statistic.resampled(100)} == {2.0, 1.0, 1.75}


def test_a_paired_difference_is_narrower_than_two_means():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 1, 200)
    a, b = (mean_of(difficulty + shift + rng.normal(0, 0.1, 200)) for shift in (0.2, 0.0))
    difference = a.minus(b)
    assert difference.mean == pytest.approx(a.value - b.value)
    assert difference.low > 0.15 and difference.high - difference.low < 0.1
    assert a.interval().low < b.interval().high  # apart, nothing could be said
    with pytest.raises(ValueError, match="200 and 2 of them"):
        a.minus(mean_of([1, 2]))


def test_a_paired_difference_is_over_the_prompts_that_both_have_a_value_of():
    nan = float("nan")
    a, b = mean_of([1.0, 0, 1, 0.5, nan, nan]), mean_of([nan, nan, 1, 0, 1, 0])
    difference = a.minus(b)
    assert difference.mean == 0.25 and difference.low >= 0 and difference.high <= 0.5
    assert np.isnan(mean_of([1.0, nan]).minus(mean_of([nan, 1.0])).mean)


def test_no_wrong_average_in_silence():
    for values in ([], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="finite values"):
            mean_of(values)
    assert mean_of([1.0, float("nan"), 3.0]).value == 2  # left out, which the report says
    assert np.isnan(ratio(np.zeros(2)))


def test_vendi_score_by_hand():
    assert vendi_score(["a b c"] * 4) == pytest.approx(1.0)
    assert vendi_score(["a b", "c d", "e f"]) == pytest.approx(3.0)
    # Two samples with cosine s: eigenvalues (1 + s) / 2 and (1 - s) / 2. "a b" and "a c" share one of three n-grams.
    low, high = (1 - 1 / 3) / 2, (1 + 1 / 3) / 2
    assert vendi_score(["a b", "a c"]) == pytest.approx(math.exp(-low * math.log(low) - high * math.log(high)))
    assert vendi_score(["", ""]) == pytest.approx(1.0) and vendi_score(["", "a"]) == pytest.approx(2.0)
    assert vendi_score(["你好", "你坏"], "zh") == pytest.approx(vendi_score(["a b", "a c"]))
