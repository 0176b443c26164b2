"""Several models over several temperatures, side by side: their metrics with intervals, differences and pictures."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .matched import Curve, at_levels, common_levels, difference_at_levels
from .report import figure, save
from .statistics import Interval, Statistic


# How a metric is shown: its factor, digits and unit. Others are shown as they are, with two digits.
_SHARE, _POINTS, _LOSS = (100, 1, " %"), (1, 1, ""), (1, 3, "")
_SHOWN = dict.fromkeys(("accuracy", "accuracy_math", "win_rate", "ended", "empty"), _SHARE)
_SHOWN |= dict.fromkeys(("self_bleu", "length", "rouge1", "rouge2", "rougeL", "bleu", "chrf"), _POINTS)
_SHOWN |= dict.fromkeys(("nll", "td_loss"), _LOSS)

# The temperature of completions that a file gives, which nobody here has sampled.
GIVEN = -1.0

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
    found = []
    for (model, temperature), statistics in values.items():
        of_baseline = values.get((baseline, temperature))
        if model == baseline or of_baseline is None:
            continue
        common = [name for name in statistics if name in of_baseline]
        found.append(Result(model, temperature, {name: statistics[name].minus(of_baseline[name]) for name in common}))
    return found


def decoding(temperature: float) -> str:
    return {0: "greedy", GIVEN: "as given"}.get(temperature, f"T = {temperature:g}")


def table(results: Sequence[Result], metrics: Sequence[str], intervals: bool = True) -> list[list[str]]:
    """Rows of cells as text, the header first; without intervals it fits a terminal."""
    rows = [["model", "decoding", *metrics]]
    for result in results:
        cells = {name: shown(name, interval, intervals) for name, interval in result.metrics.items()}
        rows.append([result.model, decoding(result.temperature), *(cells.get(name, "") for name in metrics)])
    return rows


def table_at_equal_diversity(
    values: Values, baseline: str, metrics: Sequence[str], intervals: bool = True
) -> list[list[str]]:
    """
    A row a model and metric, a column a value of self-BLEU that all models' temperatures span: the baseline's metric,
    then the other models' minus it. Only a header if there is no such value. Without intervals, a star marks a
    difference whose interval leaves out 0.
    """
    curves: dict[str, Curve] = {}
    for (model, temperature), statistics in values.items():
        curves.setdefault(model, {})[temperature] = statistics
    levels = common_levels(list(curves.values()))
    rows = [["model", "metric", *(f"self-BLEU {level:g}" for level in levels)]]
    for metric in metrics:
        for model, curve in curves.items() if levels else ():
            if model == baseline:
                label, cells = model, at_levels(curve, metric, levels)
            else:
                label = f"{model} - {baseline}"
                cells = difference_at_levels(curve, curves[baseline], metric, levels)
            texts = [shown(metric, interval, intervals) for interval in cells]
            if not intervals and model != baseline:
                texts = [
                    text + (" *" if text and 0 not in cell else "") for text, cell in zip(texts, cells, strict=True)
                ]
            rows.append([label, metric, *texts])
    return rows


def shown(name: str, interval: Interval, with_ends: bool) -> str:
    if np.isnan(interval.mean):
        return ""
    factor, digits, unit = _SHARE if name.startswith("pass@") else _SHOWN.get(name, (1, 2, ""))
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{unit} [{low}, {high}]" if with_ends else f"{mean}{unit}"


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def write_tables(results: Sequence[Result], output_dir: Path) -> None:
    """`metrics.json` (all metrics with their intervals) and `metrics.csv` (means, a line a model and temperature)."""
    (output_dir / "metrics.json").write_text(
        json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8"
    )
    with (output_dir / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["model", "temperature", *metric_names(results)])
        writer.writeheader()
        for result in results:
            means = {name: interval.mean for name, interval in result.metrics.items()}
            writer.writerow({"model": result.model, "temperature": result.temperature, **means})


def plot(results: Sequence[Result], metric: str, lengths: dict[str, Sequence[int]], output_dir: Path) -> list[str]:
    """
    Pictures of what there is to show: performance against diversity, pass@k curves, lengths.

    Args:
        results (`Sequence[Result]`)
        metric (`str`):
            The metric that is performance.
        lengths (`dict[str, Sequence[int]]`):
            For each model the length of each completion, in tokens.
        output_dir (`Path`)

    Returns:
        `list[str]`: names of the files written.
    """
    written = []
    scored = [result for result in results if metric in result.metrics]
    if any("self_bleu" in result.metrics for result in scored):
        written.append("performance_diversity.png")
        _plot_performance(scored, metric, output_dir / written[-1])
    curves = [result for result in results if "pass@2" in result.metrics]
    if curves:
        written.append("pass_at_k.png")
        _plot_pass_at_k(curves, output_dir / written[-1])
    picture, axes = figure(6.4, 3.4)
    axes.hist(list(lengths.values()), bins=30, label=list(lengths), density=True)
    axes.set(xlabel="length of a completion (tokens), all temperatures", ylabel="density")
    axes.legend(fontsize=8)
    save(picture, output_dir / "lengths.png")
    return [*written, "lengths.png"]


def _plot_performance(results: Sequence[Result], metric: str, path: Path) -> None:
    """One line a model, one point a temperature, greedy decoding without diversity; up and to the right is better."""
    picture, axes = figure(6.4, 4.4)
    factor, _, unit = _SHOWN.get(metric, (1, 2, ""))
    labels = []
    for model in dict.fromkeys(result.model for result in results):
        points = sorted((r for r in results if r.model == model), key=lambda result: result.temperature)
        diversity = [100 - p.metrics["self_bleu"].mean if "self_bleu" in p.metrics else 0 for p in points]
        intervals = [point.metrics[metric] for point in points]
        means = [factor * interval.mean for interval in intervals]
        ends = [[factor * abs(getattr(i, end) - i.mean) for i in intervals] for end in ("low", "high")]
        line, *_ = axes.errorbar(diversity, means, yerr=ends, marker="o", capsize=3, label=model)
        labels += [
            (decoding(point.temperature), place, line.get_color())
            for point, *place in zip(points, diversity, means, strict=True)
        ]
    axes.set(xlabel="diversity: 100 - self-BLEU", ylabel=f"{metric}{unit and ' (%)'}, with 95 % intervals")
    axes.margins(x=0.12, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    _place(axes, labels)
    save(picture, path)


def _place(axes, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Each label at the nearest place beside its point where it covers no other label and no point."""
    axes.figure.canvas.draw()  # the scale of the axes is known now
    points = [axes.transData.transform(place) for _, place, _ in labels]
    taken = [axes.get_legend().get_window_extent()]
    for text, place, colour in labels:
        label = axes.annotate(text, place, textcoords="offset points", xytext=(0, 0), fontsize=8, color=colour)
        label.set_bbox({"pad": 0.5, "facecolor": "white", "edgecolor": "none", "alpha": 0.6})
        size = label.get_window_extent()
        scale = axes.figure.dpi / 72
        width, height = size.width / scale, size.height / scale
        for radius in (6, 14, 24, 36, 50, 66):
            sides = [(radius, radius), (radius, -radius - height), (-radius - width, radius)]
            sides += [
                (-radius - width, -radius - height),
                (-width / 2, radius + 4),
                (-width / 2, -radius - height - 4),
            ]
            free = next((side for side in sides if _is_free(label, side, taken, points)), None)
            if free is not None:
                break
        label.set_position(free or (6, 6))
        taken.append(label.get_window_extent())


def _is_free(label, offset: tuple[float, float], taken: list, points: list) -> bool:
    label.set_position(offset)
    box = label.get_window_extent()
    return not any(box.overlaps(other) for other in taken) and not any(box.contains(*point) for point in points)


def _plot_pass_at_k(results: Sequence[Result], path: Path) -> None:
    """A panel a temperature, a line a model."""
    temperatures = sorted({result.temperature for result in results})
    picture, panels = figure(1 + 3.2 * len(temperatures), 3.6, panels=len(temperatures), share_y=True)
    models = list(dict.fromkeys(result.model for result in results))
    for temperature, axes in zip(temperatures, panels, strict=True):
        for result in (result for result in results if result.temperature == temperature):
            points = {int(name[5:]): x for name, x in result.metrics.items() if name.startswith("pass@")}
            means = [100 * interval.mean for interval in points.values()]
            ends = ([100 * getattr(interval, end) for interval in points.values()] for end in ("low", "high"))
            colour = f"C{models.index(result.model)}"
            axes.plot(list(points), means, marker="o", label=result.model, color=colour)
            axes.fill_between(list(points), *ends, color=colour, alpha=0.1, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(points), list(map(str, points)))
        axes.set(title=decoding(temperature), xlabel="k")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("pass@k (%), with 95 % intervals")
    panels[0].legend()
    save(picture, path)
