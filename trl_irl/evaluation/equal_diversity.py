"""Performance at equal diversity. A flatter policy moves along its own curve; only a better one lies above it."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from ..text.samplers import Sampler
from .statistics import RESAMPLES, Interval, Statistic, percentile_interval, ratio


Curve = dict[Sampler, dict[str, Statistic]]  # a model's statistics by each sampler
_MOST_LEVELS = 6
_LONG = 30.0  # of self-BLEU, between two neighbouring samplers


def interpolate(self_bleu: Sequence[float], performance: Sequence[float], levels: Sequence[float]) -> np.ndarray:
    """
    A model's performance at given diversities, read off the straight lines between its temperatures.

    Args:
        self_bleu (`Sequence[float]`):
            At each temperature, from 0 to 100. Greedy decoding says the same every time, which is 100.
        performance (`Sequence[float]`):
            At the same temperatures.
        levels (`Sequence[float]`):
            Values of self-BLEU to read it at.

    Returns:
        `np.ndarray` of shape `(len(levels),)`, float64; NaN outside the range that the temperatures span: nothing is
        extrapolated.
    """
    order = np.argsort(self_bleu)
    x, y = np.asarray(self_bleu, dtype=np.float64)[order], np.asarray(performance, dtype=np.float64)[order]
    return np.interp(levels, x, y, left=np.nan, right=np.nan)


def common_levels(curves: Sequence[Curve]) -> list[float]:
    """Up to six round values of self-BLEU below 100 that the temperatures of every model span."""
    spans = [[diversity(statistics).value for statistics in curve.values()] for curve in curves]
    low, high = max(map(min, spans)), min(map(max, spans))
    for step in (5.0, 10.0, 20.0):
        levels = [float(level) for level in np.arange(100 - step, 0.0, -step) if low <= level <= high]
        if len(levels) <= _MOST_LEVELS:
            break
    return levels


def long_lines(curves: Mapping[str, Curve], levels: Collection[float]) -> list[str]:
    """
    Where a model's numbers at these levels lie on a long straight line, which no sampler of it holds up: who draws for
    each prompt one of the two samplers at its ends has what the line says, but a curve of temperatures may fall below.

    Args:
        curves (`Mapping[str, Curve]`): by model.
        levels (`Collection[float]`): of self-BLEU, at which the models are compared.

    Returns:
        `list[str]`: a clause for each such line, with the model, the levels on it and its ends.
    """
    told = []
    for model, curve in curves.items():
        points = [(diversity(statistics).value, sampler) for sampler, statistics in curve.items()]
        points.sort(key=lambda point: point[0])
        for (low, less), (high, more) in pairwise(points):
            on_it = [f"{level:g}" for level in sorted(levels) if low < level < high]
            if high - low > _LONG and on_it:
                ends = " and ".join(f"{sampler.label} ({x:.0f})" for x, sampler in ((high, more), (low, less)))
                told.append(f"{model} at self-BLEU {', '.join(on_it)} between {ends}")
    return told


def at_levels(curve: Curve, metric: str, levels: Sequence[float]) -> list[Interval]:
    """A metric at these values of self-BLEU, with 95 % bootstrap intervals over prompts."""
    value, resampled = read_off(curve, metric, levels)
    count = prompts_of(curve, metric)
    return [percentile_interval(*pair, count) for pair in zip(value, resampled.T, strict=True)]


def difference_at_levels(curve: Curve, baseline: Curve, metric: str, levels: Sequence[float]) -> list[Interval]:
    """
    The same, minus another model's: paired, over the prompts that both have a value of, and every resample draws the
    same ones for both.
    """
    curve, baseline = on_common_prompts(curve, baseline, metric)
    (value, resampled), (of_baseline, also) = (read_off(c, metric, levels) for c in (curve, baseline))
    count = prompts_of(curve, metric)
    return [percentile_interval(*pair, count) for pair in zip(value - of_baseline, (resampled - also).T, strict=True)]


def prompts_of(curve: Curve, metric: str) -> int:
    """How many prompts every sampler of a curve has a value of; 0 where none has any."""
    used = [performance(statistics, metric) for statistics in curve.values()]
    return min((statistic.prompts for statistic in used if statistic is not None), default=0)


def on_common_prompts(curve: Curve, baseline: Curve, metric: str) -> tuple[Curve, Curve]:
    """
    Both curves without the prompts whose metric some sampler of either has not, their self-BLEU left out as well: a
    model whose answers to hard prompts cannot be scored would else be compared on easy ones.
    """
    used = [performance(of_sampler, metric) for one in (curve, baseline) for of_sampler in one.values()]
    there = [statistic.sums[:, 1] > 0 for statistic in used if statistic is not None and statistic.score is ratio]
    common = np.logical_and.reduce(there) if there else np.array(True)
    if common.all():
        return curve, baseline

    def kept(statistics: dict[str, Statistic]) -> dict[str, Statistic]:
        found = {"self_bleu": diversity(statistics), metric: performance(statistics, metric)}
        more = {
            name: one.only(common) if one.score is ratio else one for name, one in found.items() if one is not None
        }
        return statistics | more

    return tuple({sampler: kept(statistics) for sampler, statistics in one.items()} for one in (curve, baseline))


def read_off(curve: Curve, metric: str, levels: Sequence[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """
    At the levels: the values, and those of each resample, `(resamples, levels)`; `seed` decides which prompts a
    resample draws.
    """
    points = ((diversity(statistics), performance(statistics, metric)) for statistics in curve.values())
    pairs = [(x, y) for x, y in points if y is not None]
    if not pairs:  # a function of the user's that never gave it to this model
        return np.full(len(levels), np.nan), np.full((RESAMPLES, len(levels)), np.nan)
    value = interpolate([x.value for x, _ in pairs], [y.value for _, y in pairs], levels)
    x, y = (np.stack([pair[i].resampled(seed=seed) for pair in pairs], axis=1) for i in (0, 1))
    return value, np.stack([interpolate(*row, levels) for row in zip(x, y, strict=True)])


def diversity(statistics: dict[str, Statistic]) -> Statistic:
    """Self-BLEU; that of one completion is 100."""
    if "self_bleu" in statistics:
        return statistics["self_bleu"]
    prompts = len(statistics["length"].sums)  # greedy: one completion, whoever asks
    return Statistic(np.tile([100.0, 1.0], (prompts, 1)))


def performance(statistics: dict[str, Statistic], metric: str) -> Statistic | None:
    """The metric, if there is one."""
    if metric.startswith("pass@") and "self_bleu" not in statistics:  # one completion, or the same k times: greedy
        metric = "pass@1" if "pass@1" in statistics else "accuracy"
    return statistics.get(metric)
