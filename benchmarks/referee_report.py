"""
What a study of `benchmarks.referee` found: its tables, and its picture.

```bash
.venv/bin/python -m benchmarks.referee --report             # tables
.venv/bin/python -m benchmarks.referee_report --picture     # docs/assets/referee_light.svg and _dark.svg
```
"""

import argparse
from pathlib import Path
from statistics import fmean

from benchmarks.seeds import difference, ratio_interval, student


OF_SOFT_Q = {"soft_q", "value_consistency", "squared_nll"}  # objectives of r^2 or of one of its terms
_CHOICES = ("strength", "learning_rate", "steps")
_EDGE = -16  # of the picture, in points
ASSETS = Path(__file__).parents[1] / "docs/assets"


def tested(rows: list[dict], size: int) -> list[dict]:
    """The runs that were judged on test problems after so many demonstrations."""
    return _of("test", rows, size)


def _of(split: str, rows: list[dict], size: int) -> list[dict]:
    return [row for row in rows if (row["split"], row["demonstrations"]) == (split, size)]


def _chosen(run: dict) -> list[str]:
    """What an arm may choose, as a table has it."""
    return ["" if run[key] is None else f"{run[key]:g}" for key in _CHOICES]


def mean_on_frontier(plan: dict, run: dict) -> float:
    """The plan's first metric on the frontier, in the mean over its levels; one that does not get there has 0."""
    values = run["frontier"][next(iter(plan["metrics"]))]
    return fmean(0.0 if x is None or x != x else x for x in values)


def best_rival(plan: dict, rows: list[dict], size: int) -> str:
    """The arm without any part of r^2 that was the best on the validation problems, by which all was chosen."""
    rivals = {name for name, arm in plan["arms"].items() if arm["objective"] not in OF_SOFT_Q}
    runs = _of("validation", rows, size)
    return max((run for run in runs if run["arm"] in rivals), key=lambda run: mean_on_frontier(plan, run))["arm"]


def hull(samplers: dict[str, dict], metric: str, levels: list[float]) -> list[float | None]:
    """
    The upper hull of an arm's samplers, read off at each self-BLEU: what one has who draws for each prompt between two
    samplers. A line between two samplers that lie far apart flatters an arm that has none between them; here every
    arm has all of its lines. Samplers are chosen and judged on the same prompts, for all arms alike.
    """
    of_greedy = "accuracy" if metric.startswith("pass@") else metric  # the same, however often it is asked
    points = [
        (one.get("self_bleu", 100.0), one[name])
        for one in samplers.values()
        if (name := metric if "self_bleu" in one else of_greedy) in one
    ]

    def on_best_line(level: float) -> float | None:
        below, above = ([p for p in points if side * (p[0] - level) >= 0] for side in (-1, 1))
        return max((_on_line(p, q, level) for p in below for q in above), default=None)

    return [on_best_line(level) for level in levels]


def _on_line(p: tuple[float, float], q: tuple[float, float], x: float) -> float:
    return p[1] if p[0] == q[0] else p[1] + (q[1] - p[1]) * (x - p[0]) / (q[0] - p[0])


def numbers_of(row: dict, which: str, plan: dict) -> dict[str, float]:
    """What a table has of a run, each metric times the plan's factor: shares in percent."""
    found, factors = {}, plan["metrics"]
    for metric, factor in factors.items():
        at_levels = hull(row["samplers"], metric, plan["levels"]) if which == "hull" else row[which][metric]
        pairs = zip(plan["levels"], at_levels, strict=True)
        found |= {f"{metric} at {level}": float("nan") if x is None else factor * x for level, x in pairs}
    if which == "frontier":
        areas = row["area"]  # of the task's own metric and of pass@k
        found |= {f"area, {metric}": factor * areas[metric] for metric, factor in factors.items() if metric in areas}
    greedy = {metric: factor for metric, factor in factors.items() if metric in row["samplers"]["t=0"]}
    found |= {f"{metric}, greedy": factor * row["samplers"]["t=0"][metric] for metric, factor in greedy.items()}
    return found | {"nll": row["nll"]}


def _shown(numbers: dict[str, float]) -> list[str]:
    """Numbers of one run as a table has them, nothing where there is none."""
    return ["" if x != x else f"{x:.{3 if key == 'nll' else 1}f}" for key, x in numbers.items()]


def differences(
    plan: dict, rows: list[dict], which: str, base: str, arms: list[str]
) -> dict[str, dict[str, list[float]]]:
    """By arm and column, an arm's numbers minus the base's, a number for each seed that both have."""
    by_arm = {name: {row["seed"]: row for row in rows if row["arm"] == name} for name in {base, *arms}}
    found = {}
    for name in arms:
        seeds = sorted(by_arm[name].keys() & by_arm[base].keys())
        pairs = [[numbers_of(by_arm[arm][seed], which, plan) for arm in (name, base)] for seed in seeds]
        if pairs:
            found[name] = {key: [ours[key] - theirs[key] for ours, theirs in pairs] for key in pairs[0][0]}
    return found


def against(plan: dict, rows: list[dict], which: str, base: str, arms: list[str]) -> list[list[str]]:
    """The base's numbers, and those of the arms minus them, paired by seed, with 95 % intervals; a header first."""
    own = [numbers_of(row, which, plan) for row in rows if row["arm"] == base]
    if not own:
        return []
    means = [f"{fmean(one[key] for one in own):.{3 if key == 'nll' else 1}f}" for key in own[0]]
    table = [["arm", "seeds", *own[0]], [base, str(len(own)), *means]]
    for name, columns in differences(plan, rows, which, base, arms).items():
        cells = [difference(values, 3 if key == "nll" else 1) for key, values in columns.items()]
        table.append([name, str(len(next(iter(columns.values())))), *cells])
    return table


def _at_lower_levels(plan: dict, rows: list[dict], arms: list[str]) -> list[list[str]]:
    """Where the plan names some: the hull needs no levels to be known when a run is judged."""
    if "lower_levels" not in plan:
        return []
    table = against({**plan, "levels": plan["lower_levels"]}, rows, "hull", "MLE", arms)
    return columns_of(table, ["arm", *(name for name in table[0] if " at " in name)])


def against_each(plan: dict, rows: list[dict], which: str, arm: str, names: list[str]) -> list[list[str]]:
    """An arm minus each that has no part of r^2, paired by seed, with 95 % intervals; a header first."""
    table = []
    for name in names:
        if plan["arms"][name]["objective"] in OF_SOFT_Q or name == arm:
            continue
        for columns in differences(plan, rows, which, name, [arm]).values():
            cells = [difference(values, 3 if key == "nll" else 1) for key, values in columns.items()]
            table.append([name, *cells])
            header = [f"{arm} minus", *columns]
    return [header, *table] if table else []


def choices(plan: dict, rows: list[dict], size: int) -> list[list[str]]:
    """What each arm has chosen, and what it had on the validation problems of seed 0."""
    metric, factor = next(iter(plan["metrics"].items()))
    table = [["arm", *_CHOICES, f"{metric} on the frontier, validation"]]
    runs = {row["arm"]: row for row in tested(rows, size)}
    for name, run in runs.items():
        (there,) = (
            mean_on_frontier(plan, row)
            for row in _of("validation", rows, size)
            if all(row[key] == run[key] for key in ("arm", *_CHOICES))
        )
        table.append([name, *_chosen(run), f"{factor * there:.1f}"])
    return table


def tried(plan: dict, rows: list[dict], size: int, which: str) -> list[list[str]]:
    """Every run on the validation problems, by which all is chosen: one seed, so that no interval can be told."""
    runs = _of("validation", rows, size)
    if not runs:
        return []
    metric, factor = next(iter(plan["metrics"].items()))
    table = [["arm", *_CHOICES, *numbers_of(runs[0], which, plan), f"{metric} on the frontier"]]
    order = {name: i for i, name in enumerate(plan["arms"])}
    for run in sorted(runs, key=lambda run: (order[run["arm"]], *(run[key] or 0 for key in _CHOICES))):
        shown = _shown(numbers_of(run, which, plan))
        table.append([run["arm"], *_chosen(run), *shown, f"{factor * mean_on_frontier(plan, run):.1f}"])
    return table


def each(plan: dict, rows: list[dict], size: int) -> list[list[str]]:
    """Every run on the test problems, by the best sampler at each diversity and by a draw between two samplers."""
    order, numbers = {name: i for i, name in enumerate(plan["arms"])}, {}
    runs = sorted(tested(rows, size), key=lambda run: (run["seed"], order[run["arm"]]))
    table = []
    for run in runs:
        drawn = numbers_of(run, "hull", plan)
        numbers = numbers_of(run, "frontier", plan) | {f"{key}, drawn": drawn[key] for key in drawn if " at " in key}
        table.append([run["arm"], str(run["seed"]), *_shown(numbers)])
    return [["arm", "seed", *numbers], *table]


def tables(plan: dict, rows: list[dict], size: int) -> dict[str, list[list[str]]]:
    """Rows of tables by title, a header first; before anything is judged, only what was tried."""
    judged, names, found = tested(rows, size), list(plan["arms"]), {}
    if judged:
        others = [name for name in names if name != "MLE"]
        rival = best_rival(plan, rows, size)
        ours = [name for name in names if plan["arms"][name]["objective"] in OF_SOFT_Q]
        found = {
            "By the best sampler at each diversity": against(plan, judged, "frontier", "MLE", others),
            "By temperatures alone": against(plan, judged, "temperatures", "MLE", others),
            "By a draw between two samplers": against(plan, judged, "hull", "MLE", others),
            "By a draw between two samplers, at lower levels": _at_lower_levels(plan, judged, others),
            "What was chosen": choices(plan, rows, size),
            "Against the best rival by validation": against(plan, judged, "frontier", rival, ours),
            "Soft-Q against each rival": against_each(plan, judged, "frontier", "soft-Q", names),
            "Each run": each(plan, rows, size),
        }
    found["What was tried, on validation"] = tried(plan, rows, size, "frontier")
    found["What was tried, on validation, by a draw between two samplers"] = tried(plan, rows, size, "hull")
    return {title: table for title, table in found.items() if table}


def columns_of(table: list[list[str]], names: list[str]) -> list[list[str]]:
    """The columns with these names, in this order."""
    places = [table[0].index(name) for name in names]
    return [[row[i] for i in places] for row in table]


def shares(plan: dict, rows: list[dict], size: int) -> list[list[str]]:
    """
    What each part of r^2 has of the gain of the whole over MLE, in the plan's first metric at its middle level: a
    ratio of means over seeds, beside the paired differences that it is made of.
    """
    metric, level = next(iter(plan["metrics"])), plan["levels"][len(plan["levels"]) // 2]
    parts = {
        "soft-Q": "all three",
        "value consistency": "(V - V')²",
        "squared likelihood": "(log π)²",
        "soft-Q without its cross term": "(log π)² + (V - V')²",
    }
    column, judged = f"{metric} at {level}", tested(rows, size)
    over_mle = differences(plan, judged, "frontier", "MLE", list(parts))
    over_all = differences(plan, judged, "frontier", "soft-Q", list(parts))
    whole = fmean(over_mle["soft-Q"][column])
    table = [["terms of r²", "arm", f"{column}, minus MLE's", "minus soft-Q's", "share of the gain"]]
    for name, terms in parts.items():
        gain = over_mle[name][column]
        less = "" if name == "soft-Q" else difference(over_all[name][column])
        share = f"{100 * fmean(gain) / whole:.0f} %"
        if name != "soft-Q":
            low, high = ratio_interval(gain, over_mle["soft-Q"][column])
            share += f" [{100 * low:.0f}, {100 * high:.0f}]"
        table.append([terms, name, difference(gain), less, share])
    return table


def report(plan: dict, rows: list[dict]) -> str:
    """Markdown: for each size what the arms are on the test problems, and what each has chosen."""
    from trl_irl.evaluation.rendering import markdown

    parts = []
    for size in plan["demonstrations"]:
        told = [f"{title}:\n\n{markdown(table, left=1)}" for title, table in tables(plan, rows, size).items()]
        parts += [f"### {size} demonstrations", *told] if told else []
    return "\n\n".join(parts) + "\n"


def draw(plan: dict, rows: list[dict], size: int, path: Path, dark: bool) -> None:
    """Each arm's difference to MLE in the middle column, with its interval, the best on top."""
    import matplotlib.pyplot as plt

    metric, level = next(iter(plan["metrics"])), plan["levels"][len(plan["levels"]) // 2]
    names = [name for name in plan["arms"] if name != "MLE"]
    found = differences(plan, tested(rows, size), "frontier", "MLE", names)
    ends = {name: student(columns[f"{metric} at {level}"]) for name, columns in found.items()}
    order = sorted((name for name in ends if ends[name]), key=lambda name: ends[name][0])
    ink = "#e6e6e6" if dark else "#222222"
    with plt.rc_context({"svg.hashsalt": "referee", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(7.2, 0.3 * len(order) + 1.0), layout="constrained")
        for y, name in enumerate(order):
            mean, low, high = ends[name]
            of_r = plan["arms"][name]["objective"] in OF_SOFT_Q
            color = ("#ff9f40" if dark else "#d1570a") if of_r else ("#6ab0f3" if dark else "#1f6fb4")
            if high < _EDGE:  # one that fails would leave no room for the others
                axes.text(_EDGE, y, f"\u25c2 {mean:.0f} [{low:.0f}, {high:.0f}]", color=color, va="center")
                continue
            axes.plot([low, high], [y, y], color=color, linewidth=2, solid_capstyle="round")
            axes.plot(mean, y, "o", color=color, markersize=6)
        axes.axvline(0, color=ink, linewidth=1)
        axes.set_ylim(-0.7, len(order) - 0.3)
        if any(ends[name][2] < _EDGE for name in order):
            axes.set_xlim(left=_EDGE - 0.5)
        axes.set_yticks(range(len(order)), order)
        axes.set_xlabel(f"{metric} at self-BLEU {level}, points above MLE; 95 % interval over seeds")
        axes.tick_params(colors=ink)
        axes.xaxis.label.set_color(ink)
        axes.grid(axis="x", alpha=0.25)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(ink)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    from benchmarks.referee import HERE, finished, plan_of
    from benchmarks.seeds import RESULTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=HERE / "referee.yaml")
    parser.add_argument("--size", type=int, default=300, help="demonstrations")
    parser.add_argument("--picture", action="store_true", help="draw it instead of printing the tables")
    options = parser.parse_args()
    plan = plan_of(options.plan)
    rows = finished(plan, RESULTS / f"{options.plan.stem}.jsonl")
    if not options.picture:
        return print(report(plan, rows))
    for name in ("light", "dark"):
        draw(plan, rows, options.size, ASSETS / f"{options.plan.stem}_{name}.svg", dark=name == "dark")


if __name__ == "__main__":
    main()
