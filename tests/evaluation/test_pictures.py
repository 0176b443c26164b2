"""What the pictures of an evaluation show, read off the figures that are saved."""

import subprocess
import sys

import numpy as np
import pytest

from trl_irl.evaluation import pictures, rendering
from trl_irl.evaluation.comparison import Result
from trl_irl.evaluation.frontier import FrontierCurve
from trl_irl.evaluation.statistics import Interval
from trl_irl.text.samplers import Sampler


@pytest.fixture
def figures(monkeypatch):
    """By file name, the figures that would have been saved."""
    found = {}
    for module in (pictures, rendering):
        monkeypatch.setattr(module, "save", lambda picture, path: found.update({path.name: picture}))
    return found


def results(accuracies):
    """Models by name, each at temperatures 0, 0.5 and 1 with the accuracy given for each."""
    found = []
    for model, values in accuracies.items():
        for temperature, value in zip((0.0, 0.5, 1.0), values, strict=True):
            metrics = {"accuracy": Interval(value, max(value - 0.02, 0), min(value + 0.02, 1))}
            if temperature:
                metrics["self_bleu"] = Interval(100 - 30 * temperature, 60, 90)
                metrics |= {f"pass@{k}": Interval(value, value, value) for k in (1, 2, 4)}
            found.append(Result(model, Sampler(temperature), metrics))
    return found


SHIFTS = (("first", 0.0), ("other", 0.2))
SAID = {
    "first": [{"length": 10, "ended": True}] * 3 + [{"length": 40, "ended": False}],
    "other": [{"length": n, "ended": True} for n in (5, 10, 20, 40, 40)],
}


@pytest.mark.parametrize(
    "accuracies",
    [
        {"first": (0.5, 0.5, 0.5), "other": (0.5, 0.5, 0.5)},
        {"first": (0.51, 0.5, 0.4), "other": (0.5, 0.49, 0.41)},
        dict.fromkeys("abcde", (0.5, 0.45, 0.4)),
        {"alone": (0.0, 0.0, 0.0)},
        {"first": (1.0, 1.0, 1.0), "other": (0.0, 0.0, 0.0)},
    ],
)
def test_labels_of_close_curves_do_not_cover_each_other(accuracies, figures, tmp_path):
    pictures.plot(results(accuracies), "accuracy", dict.fromkeys(accuracies, SAID["first"]), tmp_path)
    picture = figures["performance_diversity.png"]
    (axes,) = picture.axes
    picture.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.texts]
    assert len(boxes) >= 2  # not by leaving all of them out
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
    low, high = axes.get_ylim()
    assert high - low >= 5 and -5 <= low and high <= 105  # percent, and not a hair's breadth around 0


def test_the_frontier_is_drawn_with_its_interval(figures, tmp_path):
    x, y = np.array([0.5, 1.5, 2.5]), np.array([0.5, 0.4, 0.3])
    drawn = [FrontierCurve(name, "accuracy", x, y + more, y + more - 0.1, y + more + 0.1) for name, more in SHIFTS]
    other = FrontierCurve("first", "pass@4", x, y, y, y)
    names = pictures.plot(
        results({"first": (0.5, 0.4, 0.3), "other": (0.5, 0.4, 0.3)}), "accuracy", SAID, tmp_path, [*drawn, other]
    )
    assert names == ["performance_diversity.png", "frontier.png", "pass_at_k.png", "lengths.png"]
    (axes,) = figures["frontier.png"].axes
    assert [line.get_label() for line in axes.lines] == ["first", "other"]
    assert axes.lines[1].get_ydata() == pytest.approx(100 * (y + 0.2)) and axes.lines[1].get_xdata().tolist() == [*x]
    band = axes.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((40, 80))


def test_the_diversity_of_references_is_a_line_across(figures, tmp_path):
    x, y = np.array([0.5, 1.5, 2.5]), np.array([0.5, 0.4, 0.3])
    curve, of_model = FrontierCurve("first", "accuracy", x, y, y, y), results({"first": (0.5, 0.4, 0.3)})
    for diversity in (None, 60.5):
        pictures.plot(of_model, "accuracy", SAID, tmp_path, [curve], diversity)
        for name in ("performance_diversity.png", "frontier.png"):
            (axes,) = figures[name].axes
            marks = [line.get_xdata() for line in axes.lines if line.get_label() == "references"]
            assert marks == ([] if diversity is None else [[60.5, 60.5]])
            legend = [text.get_text() for text in axes.get_legend().get_texts()]
            assert ("references" in legend) == (diversity is not None)


def test_of_two_equal_curves_both_are_seen(figures, tmp_path):
    pictures.plot(results({"first": (0.5, 0.4, 0.3), "other": (0.5, 0.4, 0.3)}), "accuracy", SAID, tmp_path)
    for axes in figures["pass_at_k.png"].axes:
        first, other = axes.lines
        assert first.get_ydata() == pytest.approx(other.get_ydata())
        assert first.get_marker() != other.get_marker() and first.get_markersize() > other.get_markersize()
        assert first.get_fillstyle() == other.get_fillstyle() == "none"


def test_lengths_are_shares_and_tell_what_was_cut_off(figures, tmp_path):
    pictures.plot(results({"first": (0.5, 0.4, 0.3), "other": (0.5, 0.4, 0.3)}), "accuracy", SAID, tmp_path)
    (axes,) = figures["lengths.png"].axes
    heights = {bars.get_label(): sum(bar.get_height() for bar in bars) for bars in axes.containers}
    assert heights == pytest.approx({"first": 75.0, "first: cut off at the limit, 25.0 %": 25.0, "other": 100.0})
    assert "share" in axes.get_ylabel()


@pytest.mark.parametrize("count, grid", [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (5, (3, 2))])
def test_panels_of_a_training_are_two_a_row(count, grid, figures, tmp_path):
    metrics = [f"m{i}" for i in range(count)]
    history = [{"step": step, **dict.fromkeys(metrics, float(step))} for step in range(3)]
    rendering.plot_training({"MLE": history}, metrics, tmp_path / "training.png")
    picture = figures["training.png"]
    assert [axes.get_title() for axes in picture.axes] == metrics
    specification = picture.axes[0].get_gridspec()
    assert (specification.nrows, specification.ncols) == grid
    assert all(width >= 4 for width in [picture.get_figwidth() / grid[1]])


def test_a_notebook_goes_on_showing_its_own_figures(tmp_path):
    """Drawing to files leaves pyplot's backend and its open figures alone."""
    code = f"""
import matplotlib
import matplotlib.pyplot as plt
plt.switch_backend("svg")
from pathlib import Path
from trl_irl.evaluation.rendering import plot_training
plot_training({{"a": [{{"step": 1, "nll": 2.0}}]}}, ["nll"], Path({str(tmp_path / "t.png")!r}))
print(matplotlib.get_backend(), plt.get_fignums())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["svg", "[]"] and (tmp_path / "t.png").stat().st_size > 1000
