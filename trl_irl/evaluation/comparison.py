"""Several models by several samplers, side by side: their metrics with intervals, and differences."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..text.samplers import GREEDY, Sampler
from .equal_diversity import Curve, at_levels, common_levels, difference_at_levels
from .statistics import Interval, Statistic


# How a metric is shown: its factor, digits and unit. Others are shown as they are, with two digits.
_SHARE, _POINTS, _LOSS = (100, 1, " %"), (1, 1, ""), (1, 3, "")
_SHOWN = dict.fromkeys(("accuracy", "accuracy_math", "answered", "win_rate", "ended", "empty"), _SHARE)
_SHOWN |= dict.fromkeys(("self_bleu", "length", "rouge1", "rouge2", "rougeL", "bleu", "chrf"), _POINTS)
_SHOWN |= dict.fromkeys(("nll", "td_loss"), _LOSS)

# Of completions that a file gives, which nobody here has sampled.
AS_GIVEN = Sampler(temperature=-1.0)

Values = dict[tuple[str, Sampler], dict[str, Statistic]]


@dataclass(frozen=True)
class Result:
    """A model by a sampler: each metric over prompts (seeds and samples averaged first), with its interval."""

    model: str
    sampler: Sampler
    metrics: dict[str, Interval]

    @property
    def temperature(self) -> float:
        """The sampler's."""
        return self.sampler.temperature

    def as_dict(self) -> dict:
        """As JSON has it."""
        metrics = {name: asdict(interval) for name, interval in self.metrics.items()}
        return {"model": self.model, **of_sampler(self.sampler), "metrics": metrics}


def of_sampler(sampler: Sampler) -> dict:
    """What files say of a sampler: its temperature and, if it cuts something off, all of it as text."""
    return {"temperature": sampler.temperature, **({} if sampler.is_plain else {"sampler": str(sampler)})}


def sampler_of(line: Mapping) -> Sampler:
    """The sampler of a line that [`of_sampler`] has written."""
    return Sampler.parse(line["sampler"]) if "sampler" in line else Sampler(line["temperature"])


def summarise(values: Values) -> list[Result]:
    return [
        Result(model, sampler, {name: statistic.interval() for name, statistic in statistics.items()})
        for (model, sampler), statistics in values.items()
    ]


def differences(values: Values, baseline: str) -> list[Result]:
    """Each other model's metrics minus those of `baseline` by the same sampler, paired by prompt."""
    results = []
    for (model, sampler), statistics in values.items():
        of_baseline = values.get((baseline, sampler))
        if model == baseline or of_baseline is None:
            continue
        common = [name for name in statistics if name in of_baseline]
        metrics = {name: statistics[name].minus(of_baseline[name]) for name in common}
        results.append(Result(model, sampler, metrics))
    return results


def decoding(sampler: Sampler) -> str:
    return "as given" if sampler == AS_GIVEN else sampler.label


def table(
    results: Sequence[Result], metrics: Sequence[str], intervals: bool = True, difference: bool = False
) -> list[list[str]]:
    """Rows of cells as text, the header first; without intervals it fits a terminal. See [`shown`]."""
    rows = [["model", "decoding", *metrics]]
    for result in results:
        cells = {name: shown(name, interval, intervals, difference) for name, interval in result.metrics.items()}
        rows.append([result.model, decoding(result.sampler), *(cells.get(name, "") for name in metrics)])
    return rows


@dataclass(frozen=True)
class AtDiversity:
    """A model's metric where self-BLEU has a value; of all models but the baseline, minus the baseline's."""

    model: str
    minus: str | None
    metric: str
    self_bleu: float
    value: Interval


def curves_of_temperatures(values: Values) -> dict[str, Curve]:
    """By model what was sampled at temperatures and greedily; or by the one family of samplers that there is."""
    families = {sampler.family for _, sampler in values if sampler.is_random}
    shown = families if len(families) == 1 else {"temperature"}
    curves: dict[str, Curve] = {model: {} for model, sampler in values if sampler != AS_GIVEN}
    for (model, sampler), statistics in values.items():
        if sampler == GREEDY or (sampler.is_random and sampler.family in shown):
            curves[model][sampler] = statistics
    return curves


def at_equal_diversity(values: Values, baseline: str, metrics: Sequence[str]) -> list[AtDiversity]:
    """
    Each metric of each model at every value of self-BLEU that all models' temperatures span: first the baseline's,
    then the other models' minus it, paired by prompt. Empty if there is no such value. Of several families of samplers
    it is the temperatures alone; of the others see [`~evaluation.frontier`].
    """
    curves = curves_of_temperatures(values)
    if not all(curves.values()):
        return []
    levels = common_levels(list(curves.values()))
    rows = []
    for metric in metrics if levels else ():
        for model, curve in curves.items():
            if model == baseline:
                minus, intervals = None, at_levels(curve, metric, levels)
            else:
                minus, intervals = baseline, difference_at_levels(curve, curves[baseline], metric, levels)
            rows += [
                AtDiversity(model, minus, metric, level, one) for level, one in zip(levels, intervals, strict=True)
            ]
    return rows


def table_at_equal_diversity(values: Sequence[AtDiversity], intervals: bool = True) -> list[list[str]]:
    """
    There is a row per model and metric and a column per value of self-BLEU, or only a header if there is no value.
    Without intervals, a star marks a difference whose interval leaves out 0.
    """
    levels = list(dict.fromkeys(one.self_bleu for one in values))
    rows = [["model", "metric", *(f"self-BLEU {level:g}" for level in levels)]]
    for start in range(0, len(values), len(levels) or 1):
        cells = values[start : start + len(levels)]
        model, minus, metric = cells[0].model, cells[0].minus, cells[0].metric
        texts = [shown(metric, one.value, intervals, minus is not None) for one in cells]
        if not intervals and minus is not None:
            pairs = zip(texts, cells, strict=True)
            texts = [text + (" *" if text and 0 not in one.value else "") for text, one in pairs]
        rows.append([model if minus is None else f"{model} - {minus}", metric, *texts])
    return rows


@dataclass(frozen=True)
class Area:
    """
    The area that a model's frontier ([`~evaluation.frontier`]) dominates: at each diversity (100 - self-BLEU) from 0
    to 100 the best performance that is had there or at a higher one, 0 beyond the most diverse sampler; in the mean
    over all of them. It is the hypervolume with respect to no diversity and no performance, over 100. Of all models
    but the baseline, minus the baseline's.
    """

    model: str
    minus: str | None
    metric: str
    value: Interval


def table_of_areas(areas: Sequence[Area], intervals: bool = True) -> list[list[str]]:
    """There is a row per model and metric."""
    rows = [["model", "metric", "area under the frontier"]]
    for one in areas:
        model = one.model if one.minus is None else f"{one.model} - {one.minus}"
        rows.append([model, one.metric, shown(one.metric, one.value, intervals, one.minus is not None)])
    return rows


def factor_of(metric: str) -> tuple[float, int, str]:
    """By what a metric is multiplied to be shown, its digits, and its unit with a space before it."""
    return _SHARE if metric.startswith("pass@") else _SHOWN.get(metric, (1, 2, ""))


def shown(name: str, interval: Interval, with_ends: bool, difference: bool = False) -> str:
    """
    A metric as text, shares in percent; a difference with its sign and, of shares, in points and without a unit, since
    three percent more would be something else.
    """
    if np.isnan(interval.mean):
        return ""
    factor, digits, unit = factor_of(name)
    sign = "+" if difference else ""
    mean, low, high = (f"{factor * value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    unit = "" if difference else unit
    return f"{mean}{unit} [{low}, {high}]" if with_ends and not np.isnan(interval.low) else f"{mean}{unit}"


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def write_tables(results: Sequence[Result], output_dir: Path) -> None:
    """Write `metrics.json`, with intervals, and `metrics.csv`, with means: a line per model and sampler."""
    (output_dir / "metrics.json").write_text(
        json.dumps(_without_nan([result.as_dict() for result in results]), indent=1) + "\n", encoding="utf-8"
    )
    with (output_dir / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        keys = list(dict.fromkeys(key for result in results for key in of_sampler(result.sampler)))
        writer = csv.DictWriter(file, ["model", *keys, *metric_names(results)])
        writer.writeheader()
        for result in results:
            means = {name: interval.mean for name, interval in result.metrics.items()}
            writer.writerow({"model": result.model, **of_sampler(result.sampler), **means})


def write_differences(
    same_sampler: Sequence[Result],
    same_diversity: Sequence[AtDiversity],
    at_frontier: Sequence[AtDiversity],
    areas: Sequence[Area],
    baseline: str,
    output_dir: Path,
) -> None:
    """`differences.json`: each model minus the baseline, paired by prompt, with its intervals."""
    content = {
        "baseline": baseline,
        "at_the_same_temperature": [one.as_dict() for one in same_sampler],
        "at_equal_diversity": [asdict(one) for one in same_diversity],
    }
    if areas:
        content |= {"frontier": [asdict(one) for one in at_frontier], "frontier_area": [asdict(one) for one in areas]}
    text = json.dumps(_without_nan(content), indent=1)
    (output_dir / "differences.json").write_text(text + "\n", encoding="utf-8")


def _without_nan(content):
    """The same, `null` where there is no number: JSON knows no NaN."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and np.isnan(content) else content
