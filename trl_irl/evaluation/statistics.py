"""Means over prompts with their uncertainty: what a bootstrap draws anew is the prompts, with all their samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def bootstrap(values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """
    Mean over prompts with its percentile bootstrap interval (scipy's).

    Args:
        values (`Sequence[float]`):
            One value a prompt, already averaged over its samples.
        confidence (`float`, *optional*, defaults to `0.95`)
        resamples (`int`, *optional*, defaults to `2000`)
        seed (`int`, *optional*, defaults to `0`)

    Raises:
        `ValueError`: no value, or one that is not finite, which would make a wrong mean.
    """
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"A mean over prompts needs finite values, and these are {values.size}: {values[:5]} ...")
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, mean, mean)
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=seed,
        batch=max(1, 10_000_000 // values.size),
    ).confidence_interval
    return Interval(mean, float(result.low), float(result.high))


def paired_difference(a: Sequence[float], b: Sequence[float], **options) -> Interval:
    """
    Mean of `a - b` over the prompts that both were asked, with its interval: narrower than that of two means apart,
    since easy and hard prompts cancel. `options` are those of [`bootstrap`].

    Raises:
        `ValueError`: they are not of equal length.
    """
    if len(a) != len(b):
        raise ValueError(f"A paired difference needs the same prompts, and there are {len(a)} and {len(b)} of them.")
    return bootstrap(np.subtract(a, b, dtype=np.float64), **options)
