"""
The README's picture: accuracy against diversity of the demo's two models, on light and on dark pages.

```bash
python benchmarks/demo_picture.py  # from results/demo.json (metrics.json of `make demo`) to docs/assets/demo_*.svg
```
"""

import json
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure


rcParams["svg.hashsalt"] = "trl_irl"  # the same bytes for the same numbers
ROOT = Path(__file__).parents[1]
INK = {"light": "#24292f", "dark": "#e6edf3"}
COLOURS = {"light": {"MLE": "#6e7781", "IRL": "#0969da"}, "dark": {"MLE": "#8b949e", "IRL": "#58a6ff"}}


def draw(cells: list[dict], theme: str, path: Path) -> None:
    """Accuracy in % over 100 - self-BLEU, one curve per model, temperatures beside its points."""
    ink = INK[theme]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, colour in COLOURS[theme].items():
        points = [cell for cell in cells if cell["model"] == name and "self_bleu" in cell["metrics"]]
        x = [100 - cell["metrics"]["self_bleu"]["mean"] for cell in points]
        y = [100 * cell["metrics"]["accuracy"]["mean"] for cell in points]
        axes.plot(x, y, color=colour, marker="o", linewidth=2)
        above = name == "IRL"
        for cell, left, height in zip(points, x, y, strict=True):
            place = {"xytext": (9, 5) if above else (-9, -13), "textcoords": "offset points"}
            place["ha"] = "left" if above else "right"
            axes.annotate(f"T = {cell['temperature']:g}", (left, height), color=colour, fontsize=9, **place)
        middle = ((x[-2] + x[-1]) / 2, (y[-2] + y[-1]) / 2)
        place = {"xytext": (14, 4) if above else (-40, -18), "textcoords": "offset points", "fontweight": "bold"}
        axes.annotate(name, middle, color=colour, fontsize=13, **place)
    axes.set_xlabel("diversity of 4 samples: 100 - self-BLEU", color=ink)
    axes.set_ylabel("problems solved, %", color=ink)
    axes.margins(x=0.14, y=0.14)
    axes.tick_params(colors=ink)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    cells = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    for theme in INK:
        draw(cells, theme, ROOT / f"docs/assets/demo_{theme}.svg")


if __name__ == "__main__":
    main()
