"""
How well a number per completion, such as a reward, tells good completions from bad ones: correlation with the task's
score, the area under the ROC curve, and the score of the best of n. Rewards and scores are arrays of the shape
`(prompts, completions)`; a score that is NaN leaves its completion out, and so does a reward that is NaN, but for the
best of n, where such a completion is taken after all others.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from math import comb

import numpy as np

from .statistics import Statistic, mean_of


Correlation = Callable[[np.ndarray, np.ndarray], float]


def spearman(rewards: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays of shape `(n,)`; NaN if either is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, rewards, scores)


def kendall(rewards: np.ndarray, scores: np.ndarray) -> float:
    """Kendall's tau-b, which allows for ties, of two arrays of shape `(n,)`; NaN if either is constant."""
    from scipy.stats import kendalltau

    return _correlation(kendalltau, rewards, scores)


def _correlation(function, rewards: np.ndarray, scores: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input: NaN says it
        return float(function(rewards, scores).statistic) if len(rewards) > 1 else float("nan")


def overall(rewards: np.ndarray, scores: np.ndarray, correlation: Correlation) -> float:
    """The correlation over all completions of all prompts."""
    there = _both(rewards, scores)
    return correlation(rewards[there], scores[there])


def within_prompts(rewards: np.ndarray, scores: np.ndarray, correlation: Correlation) -> Statistic | None:
    """
    Mean over prompts of the correlation over a prompt's completions; `None` if no prompt's scores differ. Where they
    do, and a reward is the same for all, it tells nothing: 0, so that all rewards are judged on the same prompts.
    """

    def of_prompt(reward: np.ndarray, score: np.ndarray) -> float:
        differ = len(score) > 1 and score.min() < score.max()
        return 0.0 if differ and reward.min() == reward.max() else correlation(reward, score)

    of_prompts = [
        of_prompt(reward[there], score[there])
        for reward, score, there in zip(rewards, scores, _both(rewards, scores), strict=True)
    ]
    return None if np.isnan(of_prompts).all() else mean_of(of_prompts)


def _both(rewards: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return ~(np.isnan(rewards) | np.isnan(scores))


def auroc(rewards: np.ndarray, scores: np.ndarray) -> float:
    """
    Probability that a completion of score 1 has a higher reward than one of score 0, a tie counting one half, over all
    completions; NaN if all are right or all wrong.
    """
    wins, pairs = _wins(rewards, scores)
    return wins / pairs if pairs else float("nan")


def auroc_within_prompts(rewards: np.ndarray, scores: np.ndarray) -> Statistic | None:
    """The same over pairs of completions of one prompt; `None` if no prompt has right and wrong ones."""
    sums = np.array([_wins(r, s) for r, s in zip(rewards, scores, strict=True)])
    return Statistic(sums) if sums[:, 1].any() else None


def _wins(rewards: np.ndarray, scores: np.ndarray) -> tuple[float, int]:
    """Pairs of a right and a wrong one that the right one wins, and all pairs."""
    known = ~np.isnan(rewards)
    right, wrong = rewards[known & (scores == 1)], rewards[known & (scores == 0)]
    ordered = np.sort(wrong)
    below = np.searchsorted(ordered, right, side="left")
    up_to = np.searchsorted(ordered, right, side="right")
    return float((below + up_to).sum() / 2), len(right) * len(wrong)


def best_of(rewards: np.ndarray, scores: np.ndarray, k: int) -> Statistic:
    """
    Expected score of the completion with the highest reward among `k` of a prompt's n, every choice of k being equally
    likely, as in pass@k; among equal rewards each is equally likely to be taken. `rewards = scores` is an oracle.

    Raises:
        `ValueError`: no prompt has k completions with a score.
    """
    rewards = np.where(np.isnan(rewards), -np.inf, rewards)
    return mean_of([_best_of(r[~np.isnan(s)], s[~np.isnan(s)], k) for r, s in zip(rewards, scores, strict=True)])


def _best_of(rewards: np.ndarray, scores: np.ndarray, k: int) -> float:
    n = len(rewards)
    if n < k:
        return float("nan")
    order = np.argsort(rewards, kind="stable")
    values, starts = np.unique(rewards[order], return_index=True)
    ends = [*starts[1:], n]
    # The highest of k lies in a block of equal rewards if all k are among those up to its end, and not all below it.
    shares = [(comb(end, k) - comb(start, k)) / comb(n, k) for start, end in zip(starts, ends, strict=True)]
    means = [scores[order][start:end].mean() for start, end in zip(starts, ends, strict=True)]
    return float(np.dot(shares, means)) if len(values) else float("nan")


def majority_of(
    answers: Sequence[Sequence], scores: np.ndarray, k: int, choices: int = 200, seed: int = 0
) -> Statistic:
    """
    Expected score of the most frequent answer among `k` of a prompt's n completions (self-consistency, arXiv
    2203.11171). Equally frequent answers share; completions without an answer have no vote.

    Args:
        answers (`Sequence[Sequence]`):
            For each prompt its completions' answers, hashable, or `None`.
        scores (`np.ndarray` of shape `(prompts, completions)`)
        k (`int`)
        choices (`int`, *optional*, defaults to `200`):
            Choices of k to average over, drawn where there are more.
        seed (`int`, *optional*, defaults to `0`)
    """
    rng = np.random.default_rng(seed)
    of_prompts = []
    for of_prompt, score in zip(answers, scores, strict=True):
        voters = np.flatnonzero(~np.isnan(score))
        if len(voters) < k:
            of_prompts.append(float("nan"))
            continue
        if comb(len(voters), k) <= choices:
            drawn = combinations(voters, k)
        else:
            drawn = (rng.choice(voters, k, replace=False) for _ in range(choices))
        of_prompts.append(float(np.mean([_vote([of_prompt[i] for i in c], [score[i] for i in c]) for c in drawn])))
    return mean_of(of_prompts)


def _vote(answers: Sequence, scores: Sequence[float]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return float(np.mean(scores))
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    means = [np.mean([s for a, s in zip(answers, scores, strict=True) if a == winner]) for winner in winners]
    return float(np.mean(means))
