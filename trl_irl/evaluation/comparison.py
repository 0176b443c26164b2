"""Several models over several temperatures, side by side: tables with intervals, differences and pictures."""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .report import Cell, _matplotlib, _save, decoding, plot_accuracy_against_diversity
from .statistics import Interval, bootstrap, paired_difference


# How a metric is shown: its factor, digits and unit. Others are shown as they are, with two digits.
_SHARE = (100, 1, " %")
_SHOWN = {"accuracy": _SHARE, "accuracy_math": _SHARE, "ended": _SHARE, "self_bleu": (1, 1, ""), "length": (1, 1, "")}


@dataclass(frozen=True)
class Result:
    """A model at a temperature: each metric's mean over prompts (seeds and samples averaged first), with interval."""

    model: str
    temperature: float
    metrics: dict[str, Interval]


Values = dict[tuple[str, float], dict[str, list[float]]]


def summarise(values: Values) -> list[Result]:
    """Results of the values of each metric by prompt, for each model and temperature."""
    return [
        Result(model, temperature, {name: bootstrap(by_prompt) for name, by_prompt in metrics.items()})
        for (model, temperature), metrics in values.items()
    ]


def differences(values: Values, baseline: str) -> list[Result]:
    """Each other model's metrics minus those of `baseline` at the same temperature, paired by prompt."""
    found = []
    for (model, temperature), metrics in values.items():
        of_baseline = values.get((baseline, temperature))
        if model == baseline or of_baseline is None:
            continue
        paired = {name: paired_difference(metrics[name], of_baseline[name]) for name in metrics if name in of_baseline}
        found.append(Result(model, temperature, paired))
    return found


def table(results: Sequence[Result], metrics: Sequence[str], intervals: bool = True) -> list[list[str]]:
    """Rows of cells as text, the header first; without intervals it fits a terminal."""
    rows = [["model", "decoding", *metrics]]
    for result in results:
        shown = {name: _shown(name, interval, intervals) for name, interval in result.metrics.items()}
        cells = [shown.get(name, "") for name in metrics]
        rows.append([result.model, decoding(result.temperature), *cells])
    return rows


def _shown(name: str, interval: Interval, with_ends: bool) -> str:
    factor, digits, unit = _SHARE if name.startswith("pass@") else _SHOWN.get(name, (1, 2, ""))
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{unit} [{low}, {high}]" if with_ends else f"{mean}{unit}"


def metric_names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.metrics))


def write_tables(results: Sequence[Result], output_dir: Path) -> None:
    """`metrics.json` (all metrics with their intervals) and `metrics.csv` (means, a line a model and temperature)."""
    (output_dir / "metrics.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    with (output_dir / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["model", "temperature", *metric_names(results)])
        writer.writeheader()
        for result in results:
            means = {name: interval.mean for name, interval in result.metrics.items()}
            writer.writerow({"model": result.model, "temperature": result.temperature, **means})


def plot(results: Sequence[Result], lengths: dict[str, Sequence[int]], output_dir: Path) -> list[str]:
    """
    Pictures of what there is to show: accuracy against diversity, pass@k curves, lengths.

    Args:
        results (`Sequence[Result]`)
        lengths (`dict[str, Sequence[int]]`):
            For each model the length of each completion, in tokens.
        output_dir (`Path`)

    Returns:
        `list[str]`: names of the files written.
    """
    written = []
    sampled = [result for result in results if "self_bleu" in result.metrics and "accuracy" in result.metrics]
    if sampled:
        cells = [
            Cell(r.model, r.temperature, r.metrics["accuracy"].mean, r.metrics["self_bleu"].mean) for r in sampled
        ]
        plot_accuracy_against_diversity(cells, output_dir / "accuracy_diversity.png")
        written.append("accuracy_diversity.png")
    curves = [result for result in results if "pass@2" in result.metrics]
    if curves:
        figure, axes = _matplotlib().subplots(figsize=(6.4, 4.4))
        styles = dict(
            zip(dict.fromkeys(result.temperature for result in curves), ("-", "--", ":", "-."), strict=False)
        )
        colours = {model: f"C{i}" for i, model in enumerate(dict.fromkeys(result.model for result in curves))}
        for result in curves:
            points = {int(name[5:]): x for name, x in result.metrics.items() if name.startswith("pass@")}
            means = [100 * interval.mean for interval in points.values()]
            ends = ([100 * getattr(interval, end) for interval in points.values()] for end in ("low", "high"))
            style = {"color": colours[result.model], "linestyle": styles.get(result.temperature, "-")}
            axes.plot(
                list(points), means, marker="o", label=f"{result.model}, {decoding(result.temperature)}", **style
            )
            axes.fill_between(list(points), *ends, color=colours[result.model], alpha=0.1, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(points), list(map(str, points)))
        axes.set(xlabel="k", ylabel="pass@k (%), with 95 % intervals")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        _save(figure, output_dir / "pass_at_k.png")
        written.append("pass_at_k.png")
    figure, axes = _matplotlib().subplots(figsize=(6.4, 3.4))
    axes.hist(list(lengths.values()), bins=30, label=list(lengths), density=True)
    axes.set(xlabel="length of a completion (tokens), all temperatures", ylabel="density")
    axes.legend(fontsize=8)
    _save(figure, output_dir / "lengths.png")
    return [*written, "lengths.png"]
