"""Correlations, AUROC and best of n against libraries, brute force and values by hand."""

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trl_irl.evaluation.reward_analysis import (
    auroc,
    auroc_within_prompts,
    best_of,
    kendall,
    majority_of,
    overall,
    spearman,
    within_prompts,
)


NAN = float("nan")
RNG = np.random.default_rng(0)
REWARDS = RNG.integers(0, 6, (20, 5)).astype(float)  # with ties
CORRECT = RNG.integers(0, 2, (20, 5)).astype(float)


def test_correlations_by_hand():
    rewards = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    scores = np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])  # in the last no score differs
    assert within_prompts(rewards, scores, spearman).value == 0
    assert spearman(rewards[0], scores[0]) == 1 and kendall(rewards[1], scores[1]) == -1
    # Of the six pairs five agree and one does not.
    assert kendall(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])) == pytest.approx(4 / 6)
    # 1 - 6 * sum of squared differences of ranks / (n (n^2 - 1)), the textbook's formula.
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert within_prompts(rewards[2:], scores[2:], spearman) is None
    # A reward that is the same for all tells nothing of what differs: it counts, as a tie does for AUROC.
    tied = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]])
    assert within_prompts(tied, scores, spearman).value == pytest.approx((1 + 0) / 2)
    assert np.isnan(overall(rewards[2:], scores[2:], kendall))


def test_prompts_can_hide_what_is_in_them():
    """Within each prompt the reward is wrong, but easy prompts have high ones: Simpson's paradox."""
    rewards = np.array([[0.0, 1.0], [10.0, 11.0]])
    scores = np.array([[0.2, 0.1], [0.9, 0.8]])
    assert overall(rewards, scores, spearman) > 0 > within_prompts(rewards, scores, spearman).value


def test_auroc_against_sklearn():
    assert auroc(REWARDS, CORRECT) == pytest.approx(roc_auc_score(CORRECT.ravel(), REWARDS.ravel()))
    assert auroc(CORRECT, CORRECT) == 1 and auroc(-CORRECT, CORRECT) == 0 and auroc(0 * CORRECT, CORRECT) == 0.5
    assert np.isnan(auroc(REWARDS, np.ones_like(CORRECT)))
    pairs = [
        (a > b) + (a == b) / 2 for r, c in zip(REWARDS, CORRECT, strict=True) for a in r[c == 1] for b in r[c == 0]
    ]
    assert auroc_within_prompts(REWARDS, CORRECT).value == pytest.approx(fmean(pairs))
    assert auroc_within_prompts(REWARDS, np.ones_like(CORRECT)) is None


def test_completions_without_a_score_are_left_out():
    scores = CORRECT.copy()
    scores[:, 2] = NAN
    kept = [0, 1, 3, 4]
    assert auroc(REWARDS, scores) == auroc(REWARDS[:, kept], scores[:, kept])
    assert overall(REWARDS, scores, spearman) == overall(REWARDS[:, kept], scores[:, kept], spearman)
    assert best_of(REWARDS, scores, 2).value == best_of(REWARDS[:, kept], scores[:, kept], 2).value
    with pytest.raises(ValueError, match="needs finite values"):
        best_of(REWARDS, scores, 5)


def test_completions_without_a_reward_tell_nothing_and_are_taken_last():
    """Such as an empty one: a number in its place would be the best or the worst."""
    rewards = REWARDS.copy()
    rewards[:, 2] = NAN
    kept = [0, 1, 3, 4]
    assert auroc(rewards, CORRECT) == auroc(REWARDS[:, kept], CORRECT[:, kept])
    assert (
        auroc_within_prompts(rewards, CORRECT).value == auroc_within_prompts(REWARDS[:, kept], CORRECT[:, kept]).value
    )
    assert overall(rewards, CORRECT, kendall) == overall(REWARDS[:, kept], CORRECT[:, kept], kendall)
    assert within_prompts(rewards, CORRECT, spearman).value == pytest.approx(
        within_prompts(REWARDS[:, kept], CORRECT[:, kept], spearman).value
    )
    last = REWARDS.copy()
    last[:, 2] = REWARDS.min() - 1
    for k in (1, 2, 5):
        assert best_of(rewards, CORRECT, k).value == best_of(last, CORRECT, k).value


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_best_of_against_every_choice(k):
    def brute(rewards, scores):
        found = []
        for chosen in combinations(range(5), k):
            best = max(rewards[i] for i in chosen)
            found.append(fmean(scores[i] for i in chosen if rewards[i] == best))
        return fmean(found)

    # Among equal rewards of a choice each is taken equally often, so the mean of the tied ones is what a choice gives.
    expected = fmean(brute(r, s) for r, s in zip(REWARDS, CORRECT, strict=True))
    assert best_of(REWARDS, CORRECT, k).value == pytest.approx(expected)
    if k == 1:
        assert best_of(REWARDS, CORRECT, 1).value == pytest.approx(CORRECT.mean())


def test_an_oracle_is_pass_at_k():
    from trl_irl.evaluation.metrics import pass_at_k

    for k in (1, 2, 4):
        expected = fmean(pass_at_k(row.tolist(), k) for row in CORRECT)
        assert best_of(CORRECT, CORRECT, k).value == pytest.approx(expected)


def test_majority_vote_by_hand():
    answers, scores = [["7", "7", "8", None]], np.array([[1.0, 1.0, 0.0, 0.0]])
    assert majority_of(answers, scores, 4).value == 1
    # Of the four choices of three, {7, 8, none} twice is a tie, the others are won by 7.
    assert majority_of(answers, scores, 3).value == pytest.approx((1 + 1 + 0.5 + 0.5) / 4)
    assert majority_of(answers, scores, 1).value == 0.5
    assert majority_of([[None, None]], np.array([[0.0, 0.0]]), 2).value == 0
    many = [["1"] * 9 + ["2"] * 11]
    sampled = majority_of(many, np.array([[1.0] * 9 + [0.0] * 11]), 5, choices=300).value
    assert sampled == pytest.approx(0.396, abs=0.07)  # P(3 or more of the 9 in 5 of 20), by the hypergeometric
