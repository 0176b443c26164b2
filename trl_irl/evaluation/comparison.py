"""Several models over several temperatures, side by side: their metrics with intervals, and differences."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .equal_diversity import Curve, at_levels, common_levels, difference_at_levels
from .statistics import Interval, Statistic


# How a metric is shown: its factor, digits and unit. Others are shown as they are, with two digits.
_SHARE, _POINTS, _LOSS = (100, 1, " %"), (1, 1, ""), (1, 3, "")
_SHOWN = dict.fromkeys(("accuracy", "accuracy_math", "answered", "win_rate", "ended", "empty"), _SHARE)
_SHOWN |= dict.fromkeys(("self_bleu", "length", "rouge1", "rouge2", "rougeL", "bleu", "chrf"), _POINTS)
_SHOWN |= dict.fromkeys(("nll", "td_loss"), _LOSS)

# The temperature of completions that a file gives, which nobody here has sampled.
GIVEN_TEMPERATURE = -1.0

Values = dict[tuple[str, float], dict[str, Statistic]]


@dataclass(frozen=True)
class Result:
    """A model at a temperature: each metric over prompts (seeds and samples averaged first), with its interval."""

    model: str
    temperature: float
    metrics: dict[str, Interval]


def summarise(values: Values) -> list[Result]:
    return [
        Result(model, temperature, {name: statistic.interval() for name, statistic in statistics.items()})
        for (model, temperature), statistics in values.items()
    ]


def differences(values: Values, baseline: str) -> list[Result]:
    """Each other model's metrics minus those of `baseline` at the same temperature, paired by prompt."""
    results = []
    for (model, temperature), statistics in values.items():
        of_baseline = values.get((baseline, temperature))
        if model == baseline or of_baseline is None:
            continue
        common = [name for name in statistics if name in of_baseline]
        metrics = {name: statistics[name].minus(of_baseline[name]) for name in common}
        results.append(Result(model, temperature, metrics))
    return results


def decoding(temperature: float) -> str:
    return {0: "greedy", GIVEN_TEMPERATURE: "as given"}.get(temperature, f"T = {temperature:g}")


def table(
    results: Sequence[Result], metrics: Sequence[str], intervals: bool = True, difference: bool = False
) -> list[list[str]]:
    """Rows of cells as text, the header first; without intervals it fits a terminal. See [`shown`]."""
    rows = [["model", "decoding", *metrics]]
    for result in results:
        cells = {name: shown(name, interval, intervals, difference) for name, interval in result.metrics.items()}
        rows.append([result.model, decoding(result.temperature), *(cells.get(name, "") for name in metrics)])
    return rows


@dataclass(frozen=True)
class AtDiversity:
    """A model's metric where self-BLEU has a value; of all models but the baseline, minus the baseline's."""

    model: str
    minus: str | None
    metric: str
    self_bleu: float
    value: Interval


def at_equal_diversity(values: Values, baseline: str, metrics: Sequence[str]) -> list[AtDiversity]:
    """
    Each metric of each model at every value of self-BLEU that all models' temperatures span: first the baseline's,
    then the other models' minus it, paired by prompt. Empty if there is no such value.
    """
    curves: dict[str, Curve] = {}
    for (model, temperature), statistics in values.items():
        curves.setdefault(model, {})[temperature] = statistics
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
    return f"{mean}{unit} [{low}, {high}]" if with_ends else f"{mean}{unit}"


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def write_tables(results: Sequence[Result], output_dir: Path) -> None:
    """Write `metrics.json`, with intervals, and `metrics.csv`, with means: a line per model and temperature."""
    (output_dir / "metrics.json").write_text(
        json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8"
    )
    with (output_dir / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["model", "temperature", *metric_names(results)])
        writer.writeheader()
        for result in results:
            means = {name: interval.mean for name, interval in result.metrics.items()}
            writer.writerow({"model": result.model, "temperature": result.temperature, **means})


def write_differences(
    same_temperature: Sequence[Result], same_diversity: Sequence[AtDiversity], baseline: str, output_dir: Path
) -> None:
    """`differences.json`: each model minus the baseline, paired by prompt, with its intervals."""
    content = {
        "baseline": baseline,
        "at_the_same_temperature": [asdict(one) for one in same_temperature],
        "at_equal_diversity": [asdict(one) for one in same_diversity],
    }
    text = json.dumps(_without_nan(content), indent=1)
    (output_dir / "differences.json").write_text(text + "\n", encoding="utf-8")


def _without_nan(content):
    """The same, `null` where there is no number: JSON knows no NaN."""
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and np.isnan(content) else content
