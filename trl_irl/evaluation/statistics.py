"""Metrics over prompts with their uncertainty: what a bootstrap draws anew is the prompts, with all their samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return not (value < self.low or value > self.high)  # one without ends may be anywhere


def ratio(sums: np.ndarray) -> np.ndarray:
    """First term over second; NaN where the second is 0."""
    with np.errstate(invalid="ignore"):
        return np.divide(sums[..., 0], sums[..., 1])


@dataclass(frozen=True)
class Statistic:
    """
    A metric of any set of prompts, computed from sums over them: a mean from values and their count, a loss per token
    from losses and tokens, corpus BLEU from matching and all n-grams.

    Args:
        sums (`np.ndarray` of shape `(prompts, terms)`):
            What each prompt adds.
        score (`Callable`, *optional*, defaults to [`ratio`]):
            The metric of such sums: from shape `(..., terms)` to `(...)`.
    """

    sums: np.ndarray
    score: Callable[[np.ndarray], np.ndarray] = ratio

    def __add__(self, other: "Statistic") -> "Statistic":
        """The same prompts asked once more, such as with another seed."""
        return Statistic(self.sums + other.sums, self.score)

    @property
    def prompts(self) -> int:
        """How many prompts have a value."""
        there = self.sums[:, 1] > 0 if self.score is ratio else (self.sums != 0).any(axis=1)
        return int(there.sum())

    @property
    def value(self) -> float:
        return float(self.score(self.sums.sum(axis=0)))

    def only(self, prompts: np.ndarray) -> "Statistic":
        """The metric of those prompts alone that a mask `(prompts,)` names; the others stay, and add nothing."""
        return Statistic(self.sums * prompts[:, None], self.score)

    def resampled(self, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
        """
        The metric of prompts drawn with replacement, `resamples` times: shape `(resamples,)`. The same seed draws the
        same prompts for every metric and model, which is what makes differences paired.
        """
        counts = _draws(len(self.sums), resamples, seed)
        # Some at a time, since numpy makes float64 of them.
        drawn = [counts[start : start + 200] @ self.sums for start in range(0, resamples, 200)]
        return self.score(np.concatenate(drawn))

    def interval(self, **options) -> Interval:
        """The value with its 95 % bootstrap interval ([`ends`]); `options` are those of [`resampled`]."""
        return percentile_interval(self.value, self.resampled(**options), self.prompts)

    def minus(self, other: "Statistic", **options) -> Interval:
        """
        The difference over the prompts that both have a value of: narrower than two intervals apart, since easy and
        hard prompts cancel.

        Raises:
            `ValueError`: they are not of equally many prompts.
        """
        if len(self.sums) != len(other.sums):
            raise ValueError(
                f"A paired difference needs the same prompts, and there are {len(self.sums)} and {len(other.sums)} of "
                "them."
            )
        mine, theirs = self, other
        if self.score is ratio and other.score is ratio:
            both = (self.sums[:, 1] > 0) & (other.sums[:, 1] > 0)
            mine, theirs = self.only(both), other.only(both)
        drawn = mine.resampled(**options) - theirs.resampled(**options)
        return percentile_interval(mine.value - theirs.value, drawn, min(mine.prompts, theirs.prompts))


def mean_of(values: Sequence[float]) -> Statistic:
    """
    The mean over prompts of one value each; NaN leaves a prompt out.

    Raises:
        `ValueError`: there is no value, or one is infinite, which would make a wrong mean.
    """
    values = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(values)
    if not there.any() or np.isinf(values).any():
        raise ValueError(f"A mean over prompts needs finite values, and these are {values.size}: {values[:5]} ...")
    return Statistic(np.stack([np.where(there, values, 0.0), there], axis=1))


def percentile_interval(value: float, resampled: np.ndarray, prompts: int, parts: int = 1) -> Interval:
    """95 %, from the resamples in which there is a value; NaN where there is none. See [`ends`]."""
    if np.isnan(resampled).all():
        return Interval(float(value), np.nan, np.nan)
    low, high = ends(resampled, prompts, parts)
    return Interval(float(value), float(low), float(high))


def ends(resampled: np.ndarray, prompts: int, parts: int = 1) -> np.ndarray:
    """
    The percentiles of resamples, along their first axis, that a 95 % interval ends at: 2.5 and 97.5 for many prompts,
    and further out for few, whose bootstrap is too narrow. They are as far out as Student's quantile for so many
    prompts, times sqrt(n / (n - 1)), is on the normal distribution (the expanded percentile interval of Hesterberg,
    arXiv 1411.5279). Of ten normal numbers the interval then holds the mean in 95 % of cases, and not in 90 %; of ten
    numbers from a skewed distribution, such as an exponential one, it holds it in fewer.

    Args:
        resampled (`np.ndarray` of shape `(resamples, ...)`):
            NaN where a resample has no value.
        prompts (`int`):
            How many were drawn from.
        parts (`int`, *optional*, defaults to `1`):
            Into how many equal parts they were divided before each was drawn from by itself.

    Returns:
        `np.ndarray` of shape `(2, ...)`: NaN where one number per part says nothing of their spread.
    """
    from scipy.stats import norm, t

    if prompts <= parts:
        return np.full((2, *resampled.shape[1:]), np.nan)
    below = 100 * norm.cdf(t.ppf(0.025, prompts - parts) * (prompts / (prompts - parts)) ** 0.5)
    return np.nanpercentile(resampled, [below, 100 - below], axis=0)


@lru_cache(maxsize=2)
def _draws(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn, `(resamples, prompts)`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.uint16)
