"""
The frontier of a model: its performance at each diversity by the best of its samplers, chosen on other prompts than it
is judged on.

Samplers that cut off the same and differ in temperature are a family: a curve of performance over self-BLEU that
begins at greedy decoding. At a given self-BLEU each family has a value, and the best of them by one half of the
prompts is judged on the other half, and the other way round: a maximum of noisy numbers, taken and reported on the
same prompts, would be too high, and the higher the more samplers there are. The bootstrap draws prompts anew in each
half and chooses anew, so that intervals hold the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..text.samplers import GREEDY
from .comparison import Area, AtDiversity, Values
from .equal_diversity import Curve, common_levels, diversity, on_common_prompts, performance, prompts_of, read_off
from .statistics import Statistic, ends, percentile_interval


_GRID = [level + 0.5 for level in range(100)]  # of self-BLEU, for the area
_FEWEST = 8  # prompts


def families(values: Values, model: str) -> dict[str, Curve]:
    """
    A model's curves by family, each with greedy decoding where there is one; two samplers make a curve. Beam search
    has no diversity, and belongs to none.
    """
    own = {sampler: statistics for (name, sampler), statistics in values.items() if name == model}
    curves: dict[str, Curve] = {}
    for sampler, statistics in own.items():
        if sampler.is_random and "self_bleu" in statistics:
            curves.setdefault(sampler.family, {})[sampler] = statistics
    end = {GREEDY: own[GREEDY]} if GREEDY in own else {}
    return {family: {**end, **curve} for family, curve in curves.items() if len(curve) + len(end) > 1}


def frontier(curves: Mapping[str, Curve], metric: str, levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """
    The best family at each self-BLEU, by the other half of the prompts.

    Args:
        curves (`Mapping[str, Curve]`): by family, see [`families`].
        metric (`str`): what is performance; more is better.
        levels (`Sequence[float]`): of self-BLEU.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: the values, and those of each resample, of the shapes `(levels,)` and
        `(resamples, levels)`; NaN where no family reaches a level.
    """
    halves = [[], []]  # of the prompts: for each family the values and the resamples
    for curve in curves.values():
        for half, found in enumerate(halves):
            found.append(read_off(_half(curve, metric, half), metric, levels, seed=half))
    judged = []
    for half, other in ((0, 1), (1, 0)):
        by, on = ([np.concatenate([value[None], resampled]) for value, resampled in halves[i]] for i in (other, half))
        judged.append(_best(np.stack(by), np.stack(on)))
    both = np.stack(judged)
    known = (~np.isnan(both)).sum(axis=0)
    mean = np.divide(np.nansum(both, axis=0), known, out=np.full(known.shape, np.nan), where=known > 0)
    return mean[0], mean[1:]


def _best(by: np.ndarray, on: np.ndarray) -> np.ndarray:
    """What the family that is best in `by` has in `on`, both `(families, resamples, levels)`."""
    known = ~np.isnan(by) & ~np.isnan(on)
    best = np.where(known, by, -np.inf).argmax(axis=0)
    found = np.take_along_axis(on, best[None], axis=0)[0]
    return np.where(known.any(axis=0), found, np.nan)


def _half(curve: Curve, metric: str, half: int) -> Curve:
    """The statistics of a random half of the prompts, the same one for every model and sampler."""
    chosen = halves_of(len(next(iter(curve.values()))["length"].sums))[half]
    return {
        sampler: {
            name: Statistic(one.sums[chosen], one.score)
            for name, one in {"self_bleu": diversity(of_sampler), metric: performance(of_sampler, metric)}.items()
            if one is not None
        }
        for sampler, of_sampler in curve.items()
    }


def halves_of(prompts: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the prompts in each half: drawn, since data may alternate between two kinds."""
    order = np.random.default_rng(0).permutation(prompts)
    return np.sort(order[::2]), np.sort(order[1::2])


@dataclass(frozen=True)
class FrontierCurve:
    """
    A model's frontier, from the least to the greatest diversity that it reaches.

    Attributes:
        model, metric (`str`)
        diversity (`np.ndarray` of shape `(levels,)`): 100 - self-BLEU.
        mean, low, high (`np.ndarray` of the same shape): the metric, with its 95 % bootstrap interval.
    """

    model: str
    metric: str
    diversity: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, model: str, metric: str, value: np.ndarray, resampled: np.ndarray, prompts: int) -> FrontierCurve:
        """From the metric at [`_GRID`], and that of each resample, `(resamples, levels)`; NaN where it has none."""
        reached = np.flatnonzero(~np.isnan(value))[::-1]  # the grid is of self-BLEU
        low, high = ends(resampled[:, reached], prompts, parts=2) if len(reached) else (value[:0],) * 2
        return cls(model, metric, 100 - np.array(_GRID)[reached], value[reached], low, high)


Frontiers = tuple[list[AtDiversity], list[Area], list[FrontierCurve]]


def frontiers(values: Values, models: Sequence[str], metrics: Sequence[str]) -> Frontiers:
    """
    Each metric on the frontier of each model, at the values of self-BLEU that every model spans, and the area under
    it: first the baseline's, then the other models' minus it, paired by prompt; and the frontiers as curves. Empty
    where a model has no curve, or there are too few prompts to halve.
    """
    of_models = {model: families(values, model) for model in models}
    prompts = len(next(iter(values.values()))["length"].sums) if values else 0
    if not all(of_models.values()) or prompts < _FEWEST:
        return [], [], []
    levels = common_levels([together(curves) for curves in of_models.values()])
    at, areas, drawn = [], [], []
    for metric in metrics:
        baseline = None
        for model, curves in of_models.items():
            found, curve = _read(curves, metric, levels)
            count = prompts_of(together(curves), metric)
            drawn.append(FrontierCurve.of(model, metric, *curve, count))
            minus = None if baseline is None else models[0]
            shown = found
            if baseline is not None:
                ours, theirs = _on_common_prompts(curves, of_models[models[0]], metric)
                if ours is not curves:
                    found, reference = (_read(one, metric, levels)[0] for one in (ours, theirs))
                else:
                    reference = baseline
                shown = tuple(a - b for a, b in zip(found, reference, strict=True))
                count = min(prompts_of(together(one), metric) for one in (ours, theirs))
            baseline = baseline or found
            at += [
                AtDiversity(model, minus, metric, level, percentile_interval(one, column, count, parts=2))
                for level, one, column in zip(levels, shown[0], shown[1].T, strict=True)
            ]
            areas.append(Area(model, minus, metric, percentile_interval(shown[2], shown[3], count, parts=2)))
    return at, areas, drawn


def _read(curves: Mapping[str, Curve], metric: str, levels: Sequence[float]) -> tuple[tuple, tuple]:
    """At the levels and under the whole frontier, each with its resamples; and the frontier itself, with its own."""
    value, resampled = frontier(curves, metric, [*levels, *_GRID])
    whole = value[len(levels) :], resampled[:, len(levels) :]
    areas = map(_area, whole)
    if min(np.nanmin(part, initial=0.0) for part in whole) < 0:  # an area counts from 0, and rewards may be below it
        areas = (np.full(part.shape[:-1], np.nan) for part in whole)
    return (value[: len(levels)], resampled[:, : len(levels)], *areas), whole


def _on_common_prompts(
    curves: Mapping[str, Curve], baseline: Mapping[str, Curve], metric: str
) -> tuple[Mapping[str, Curve], Mapping[str, Curve]]:
    """All families of both without the prompts that some sampler has no value of; the same objects if all have."""
    mine, theirs = together(curves), together(baseline)
    kept = on_common_prompts(mine, theirs, metric)
    if kept[0] is mine:
        return curves, baseline
    return tuple(
        {family: {sampler: of[sampler] for sampler in curve} for family, curve in one.items()}
        for one, of in zip((curves, baseline), kept, strict=True)
    )


def _area(values: np.ndarray) -> np.ndarray:
    """
    What dominates: at each diversity the best that is had there or at a higher one, and no less than 0; its mean over
    all of them. NaN where nothing is known.
    """
    best = np.maximum.accumulate(np.where(np.isnan(values), 0.0, values), axis=-1)  # the most diverse first
    return np.where(np.isnan(values).all(axis=-1), np.nan, np.maximum(best, 0.0).mean(axis=-1))


def together(curves: Mapping[str, Curve]) -> Curve:
    """All samplers of all families."""
    return {sampler: statistics for curve in curves.values() for sampler, statistics in curve.items()}
