"""Pictures of an evaluation: performance against diversity, pass@k, lengths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..text.samplers import GREEDY, Sampler
from .comparison import Result, decoding, factor_of
from .frontier import FrontierCurve
from .rendering import figure, save


_MARKERS = "osD^vP*X"
_LINES = ("-", "--", ":", "-.")  # of families of samplers


def plot(
    results: Sequence[Result],
    metric: str,
    said: dict[str, Sequence[dict]],
    output_dir: Path,
    frontiers: Sequence[FrontierCurve] = (),
    of_references: float | None = None,
) -> list[str]:
    """
    Pictures of what there is to show: performance against diversity, the frontier, pass@k curves, lengths.

    Args:
        results (`Sequence[Result]`)
        metric (`str`):
            The metric that is performance.
        said (`dict[str, Sequence[dict]]`):
            Each model's completions, with `length` in tokens, and `ended`: whether one stopped by itself.
        output_dir (`Path`)
        frontiers (`Sequence[FrontierCurve]`, *optional*):
            Of each model; those of `metric` are drawn.
        of_references (`float`, *optional*):
            The diversity of the references of a prompt, 100 - self-BLEU: a line across what is drawn over diversity.

    Returns:
        `list[str]`: names of the files written.
    """
    written = []
    scored = [result for result in results if metric in result.metrics]
    if any("self_bleu" in result.metrics for result in scored):
        written.append("performance_diversity.png")
        _plot_performance(scored, metric, output_dir / written[-1], of_references)
    drawn = [curve for curve in frontiers if curve.metric == metric and len(curve.diversity) > 1]
    if drawn:
        written.append("frontier.png")
        _plot_frontiers(drawn, output_dir / written[-1], of_references)
    curves = [result for result in results if "pass@2" in result.metrics]
    if curves:
        written.append("pass_at_k.png")
        _plot_pass_at_k(curves, output_dir / written[-1])
    _plot_lengths(said, output_dir / "lengths.png")
    return [*written, "lengths.png"]


def _plot_performance(results: Sequence[Result], metric: str, path: Path, of_references: float | None) -> None:
    """
    A line per model and family of samplers, a point per sampler; greedy decoding has no diversity. Up and to the right
    is better.
    """
    picture, axes = figure(7.0, 4.6)
    factor, _, unit = factor_of(metric)
    curves = {}
    models = list(dict.fromkeys(result.model for result in results))
    families = list(dict.fromkeys(result.sampler.family for result in results if result.sampler.is_random))
    for model, family in itertools.product(models, families or [""]):
        i, j = models.index(model), families.index(family) if family in families else 0
        # Greedy decoding is where every family begins; what else has no diversity stands with the first.
        points = [r for r in results if r.model == model and _is_of(r.sampler, family, first=j == 0)]
        points.sort(key=lambda result: result.sampler)
        if not points:
            continue
        diversity = [100 - p.metrics["self_bleu"].mean if "self_bleu" in p.metrics else 0 for p in points]
        intervals = [point.metrics[metric] for point in points]
        means = [factor * interval.mean for interval in intervals]
        ends = [[factor * abs(getattr(i, end) - i.mean) for i in intervals] for end in ("low", "high")]
        label = model if len(families) < 2 else f"{model}, {family}"
        style = {"marker": _MARKERS[i % len(_MARKERS)], "capsize": 3, "elinewidth": 0.8, "label": label}
        if len(families) > 1:
            style |= {"color": f"C{i}", "linestyle": _LINES[j % len(_LINES)]}
        line, *_ = axes.errorbar(diversity, means, yerr=ends, **style)
        names = [decoding(point.sampler) for point in points]
        curves[label] = (line.get_color(), names, list(zip(diversity, means, strict=True)))
    axes.set(xlabel="diversity: 100 - self-BLEU", ylabel=f"{metric}{unit and ' (%)'}, with 95 % intervals")
    axes.margins(x=0.1, y=0.12)
    _keep_apart(axes, share=bool(unit))
    _mark_references(axes, of_references)
    axes.grid(alpha=0.3)
    if len(families) > 1:
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    else:
        axes.legend()
        _label(axes, curves)
    save(picture, path)


def _plot_frontiers(curves: Sequence[FrontierCurve], path: Path, of_references: float | None) -> None:
    """A line per model: by the best of its samplers at each diversity. Up and to the right is better."""
    picture, axes = figure(7.0, 4.6)
    factor, _, unit = factor_of(curves[0].metric)
    for i, curve in enumerate(curves):
        axes.plot(curve.diversity, factor * curve.mean, color=f"C{i}", linestyle=("-", "--")[i % 2], label=curve.model)
        ends = (factor * end for end in (curve.low, curve.high))
        axes.fill_between(curve.diversity, *ends, color=f"C{i}", alpha=0.15, linewidth=0)
    label = f"{curves[0].metric}{unit and ' (%)'} by the best sampler, 95 % intervals"
    axes.set(xlabel="diversity: 100 - self-BLEU", ylabel=label)
    _keep_apart(axes, share=bool(unit))
    _mark_references(axes, of_references)
    axes.grid(alpha=0.3)
    axes.legend()
    save(picture, path)


def _mark_references(axes, diversity: float | None) -> None:
    """To the right of the line samples differ more than the references of a prompt do."""
    if diversity is not None:
        axes.axvline(diversity, color="0.4", linestyle=":", linewidth=1.2, label="references")


def _is_of(sampler: Sampler, family: str, first: bool) -> bool:
    if sampler.is_random:
        return sampler.family == family
    return sampler == GREEDY or first


def _keep_apart(axes, share: bool) -> None:
    """Where all values are alike, an axis that shows them as alike; of shares, one within 0 and 100 %."""
    low, high = axes.get_ylim()
    if share:
        if high - low < 10:
            middle = min(max((low + high) / 2, 4.0), 96.0)
            low, high = middle - 5, middle + 5
        axes.set_ylim(max(low, -2.0), min(high, 102.0))
    elif high - low < 1e-6 * max(abs(low), abs(high), 1e-6):
        axes.set_ylim(low - 1, high + 1)


def _label(axes, curves: dict[str, tuple[str, list[str], list[tuple[float, float]]]]) -> None:
    """
    Temperatures beside points: above the points of one model and below those of another. With three models or more,
    and for a label that finds no room, the other curve's label and the order of the points must do.
    """
    axes.figure.canvas.draw()  # the scale of the axes is known now
    best_first = sorted(curves.values(), key=lambda curve: -float(np.mean([y for _, y in curve[2]])))
    points = [axes.transData.transform(place) for _, _, places in best_first for place in places]
    taken = [axes.get_legend().get_window_extent()]
    for curve, above in ((best_first[0], True), (best_first[-1], False))[: len(best_first)]:
        colour, names, places = curve
        for name, place in zip(names, places, strict=True):
            label = axes.annotate(name, place, textcoords="offset points", xytext=(0, 0), fontsize=8, color=colour)
            label.set_bbox({"pad": 0.5, "facecolor": "white", "edgecolor": "none", "alpha": 0.6})
            scale = axes.figure.dpi / 72
            extent = label.get_window_extent()
            width, height = extent.width / scale, extent.height / scale
            sides = []
            for radius in (5, 12, 20):
                up = radius if above else -radius - height
                sides += [(radius, up), (-width / 2, up), (-radius - width, up)]
            if any(_is_free(label, side, taken, points) for side in sides):  # it stays at the first that is
                taken.append(label.get_window_extent())
            else:
                label.remove()


def _is_free(label, offset: tuple[float, float], taken: list, points: list) -> bool:
    label.set_position(offset)
    box = label.get_window_extent()
    return not any(box.overlaps(other) for other in taken) and not any(box.contains(*point) for point in points)


def _plot_pass_at_k(results: Sequence[Result], path: Path) -> None:
    """A panel per sampler, a line per model: open markers, so that of two equal curves both are seen."""
    samplers = sorted({result.sampler for result in results})
    columns = 2 if len(samplers) == 4 else min(3, len(samplers))
    picture, panels = figure(1 + 3.2 * columns, 3.4, panels=len(samplers), columns=columns, share_y=True)
    models = list(dict.fromkeys(result.model for result in results))
    for i, (sampler, axes) in enumerate(zip(samplers, panels, strict=True)):
        for result in (result for result in results if result.sampler == sampler):
            points = {int(name[5:]): x for name, x in result.metrics.items() if name.startswith("pass@")}
            means = [100 * interval.mean for interval in points.values()]
            ends = ([100 * getattr(interval, end) for interval in points.values()] for end in ("low", "high"))
            at = models.index(result.model)
            marker = {"marker": _MARKERS[at % len(_MARKERS)], "markersize": max(10 - 2 * at, 4), "fillstyle": "none"}
            axes.plot(list(points), means, label=result.model, color=f"C{at}", linestyle=("-", "--")[at % 2], **marker)
            axes.fill_between(list(points), *ends, color=f"C{at}", alpha=0.1, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(points), list(map(str, points)))
        axes.set(title=decoding(sampler), xlabel="k")
        axes.grid(alpha=0.3)
        if i % columns == 0:
            axes.set_ylabel("pass@k (%), 95 % intervals")
    panels[0].legend()
    save(picture, path)


def _plot_lengths(said: dict[str, Sequence[dict]], path: Path) -> None:
    """Which share of a model's completions is how long; hatched are those that were cut off at the limit."""
    picture, axes = figure(7.0, 3.6)
    edges = np.histogram_bin_edges([one["length"] for ones in said.values() for one in ones], bins=30)
    width = (edges[1] - edges[0]) / (len(said) + 0.5)
    cut_any, highest = False, 0.0
    for i, (name, ones) in enumerate(said.items()):
        ended, cut = (
            100 * np.histogram([x["length"] for x in ones if bool(x["ended"]) is whether], edges)[0] / len(ones)
            for whether in (True, False)
        )
        places, highest = edges[:-1] + (i + 0.75) * width, max(highest, (ended + cut).max())
        axes.bar(places, ended, width, color=f"C{i}", label=name)
        if cut.any():
            label = f"{name}: cut off at the limit, {cut.sum():.1f} %"
            bar = {"facecolor": "none", "edgecolor": f"C{i}", "hatch": "/////", "linewidth": 0.6}
            axes.bar(places, cut, width, bottom=ended, label=label, **bar)
            cut_any = True
    every = "all temperatures" if cut_any else "all temperatures; every one ended by itself"
    axes.set(xlabel=f"length of a completion (tokens), {every}", ylabel="share of completions (%)")
    axes.set_ylim(0, 1.08 * highest)
    axes.legend(fontsize=8)
    save(picture, path)
