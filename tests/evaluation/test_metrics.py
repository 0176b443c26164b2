"""Each metric against values computed by hand, by brute force, or printed by the library that computes it."""

import itertools
import random
from statistics import fmean

import numpy as np
import pytest

from trl_irl.evaluation.metrics import (
    corpus_bleu,
    corpus_chrf,
    distinct_n,
    distinct_share,
    pass_at_k,
    rouge,
    self_bleu,
)
from trl_irl.evaluation.statistics import bootstrap, paired_difference


def test_self_bleu_of_identical_and_of_disjoint_samples():
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(100)
    disjoint = ["the cat sat on the mat", "a dog runs through our park", "my hat fell over that wall"]
    assert self_bleu(disjoint) < 10
    with pytest.raises(ValueError, match="two or more"):
        self_bleu(["alone"])


def test_self_bleu_by_hand():
    """Two samples of four words sharing the first two: precisions 2/4, 1/3, then smoothed 1/4 and 1/4."""
    # sacrebleu's exponential smoothing gives the first empty n-gram order 1 / (2 * total), the next 1 / (4 * total).
    expected = 100 * (2 / 4 * 1 / 3 * (1 / 2) / 2 * (1 / 4) / 1) ** 0.25
    assert self_bleu(["a b c d", "a b x y"]) == pytest.approx(expected)


def test_samples_that_say_nothing():
    assert self_bleu(["", ""]) == 0 and self_bleu(["", "a b"]) == 0
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


def test_corpus_scores_by_hand():
    """The sentences of sacrebleu's README: n-grams in common 12 of 17, 6 of 14, 4 of 11, 3 of 8, and equal lengths."""
    predictions = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    assert corpus_bleu(references, references) == pytest.approx(100)
    assert corpus_chrf(references, references) == pytest.approx(100)
    expected = 100 * (12 / 17 * 6 / 14 * 4 / 11 * 3 / 8) ** 0.25
    assert corpus_bleu(predictions, references) == pytest.approx(expected)
    assert 0 < corpus_chrf(predictions, references) < 100


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = random.Random(0)
    covered = sum(0.3 in bootstrap([rng.random() < 0.3 for _ in range(100)], resamples=400) for _ in range(300))
    assert 0.90 < covered / 300 < 0.98


def test_bootstrap_against_the_standard_error():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    interval = bootstrap(values)
    error = 1.96 * values.std(ddof=1) / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * error, rel=0.1)
    assert bootstrap(values) == interval  # seeded
    assert bootstrap([0.5]).low == 0.5 and bootstrap([1.0, 1.0]).high == 1


def test_a_paired_difference_is_narrower_than_two_means():
    rng = np.random.default_rng(1)
    difficulty = rng.normal(0, 1, 200)
    a, b = difficulty + 0.2 + rng.normal(0, 0.1, 200), difficulty + rng.normal(0, 0.1, 200)
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(fmean(a) - fmean(b))
    assert difference.low > 0.15 and difference.high - difference.low < 0.1
    assert bootstrap(a).low < bootstrap(b).high  # apart, nothing could be said


def test_no_wrong_average_in_silence():
    for values in ([], [1.0, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="finite values"):
            bootstrap(values)
    with pytest.raises(ValueError, match="3 and 2 of them"):
        paired_difference([1, 2, 3], [1, 2])
