"""What studies over seeds share: how a mean is shown, where raw numbers are kept, and how one is started."""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev


RESULTS = Path(__file__).parents[1] / "results"


def shown(values: list[float], factor: float = 1, digits: int = 1) -> str:
    """The mean and, of several values, their standard deviation, each times `factor`."""
    spread = f" ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * fmean(values):.{digits}f}{spread}"


def student(values: list[float]) -> tuple[float, float, float] | None:
    """The mean of paired differences over seeds and Student's 95 % interval; `None` where it cannot be known."""
    import numpy as np
    from scipy import stats

    if len(values) < 2 or np.isnan(values).any():
        return None
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    return float(np.mean(values)), float(low), float(high)


def ratio_interval(part: list[float], whole: list[float]) -> tuple[float, float]:
    """
    95 % of the ratio of two means over the same seeds (Fieller 1954): every R for which Student's test does not
    reject that part - R * whole is 0 in the mean. Infinite where the whole may be 0.
    """
    import numpy as np
    from scipy import stats

    n = len(part)
    (aa, ab), (_, bb) = np.cov(part, whole) / n * stats.t.ppf(0.975, n - 1) ** 2
    a, b = np.mean(part), np.mean(whole)
    square, middle, constant = b * b - bb, a * b - ab, a * a - aa
    root = middle * middle - square * constant
    if square <= 0 or root < 0:
        return -np.inf, np.inf
    return float((middle - root**0.5) / square), float((middle + root**0.5) / square)


def difference(values: list[float], digits: int = 1) -> str:
    """[`student`] for a table, a star where the interval leaves out 0."""
    found = student(values)
    if found is None:
        return ""
    mean, low, high = (f"{value:+.{digits}f}" for value in found)
    return f"{mean} [{low}, {high}]{'' if found[1] <= 0 <= found[2] else ' *'}"


def read_json(name: str):
    """What a file of `results/` holds."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[dict]:
    """The rows of a file with one JSON object per line; none if it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def add_row(path: Path, row: dict) -> None:
    """One line more, in one write, so that two processes may add theirs; numbers keep six digits."""
    line = json.dumps(row, default=float)
    rounded = json.loads(line, parse_float=lambda text: float(f"{float(text):.6g}"))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(file, (json.dumps(rounded) + "\n").encode())
    finally:
        os.close(file)


def study(
    description: str,
    name: str,
    run_seed: Callable[[Path, int], dict],
    report: Callable[[list[dict]], str],
    seeds: Iterable[int] = (0, 1, 2),
) -> None:
    """
    The command of a study: its base model, its seeds, and its tables.

    What a seed gave is a line of `results/NAME.jsonl` as soon as it is there, and a seed that has a line is not run
    again. Studies share a folder for what they train: the same recipe and seed give the same model.
    """
    from trl_irl.demos.demo import pretrained_base

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/studies"), help="models and evaluations")
    parser.add_argument("--results", type=Path, default=RESULTS / f"{name}.jsonl", help="raw numbers, kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    options = parser.parse_args()
    for seed in options.seeds:
        if seed not in [row["seed"] for row in read_rows(options.results)]:
            pretrained_base(options.output_dir)
            add_row(options.results, {"seed": seed} | run_seed(options.output_dir, seed))
    print(report(sorted(read_rows(options.results), key=lambda row: row["seed"])))
