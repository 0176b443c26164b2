"""What studies over seeds share: how a mean is shown, and how one is started."""

import argparse
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev


def shown(values: list[float], factor: float = 1, digits: int = 1) -> str:
    """The mean and, of several values, their standard deviation, each times `factor`."""
    spread = f" ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * fmean(values):.{digits}f}{spread}"


def run_study(
    description: str,
    output_dir: str,
    run_seed: Callable[[Path, int], dict[str, float]],
    report: Callable[[list[dict[str, float]]], str],
) -> None:
    """The command of a study: its base model, its seeds, and `report.md` of what each seed gave."""
    from benchmarks.diversity_study import prepare_base

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(output_dir))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    prepare_base(options.output_dir)
    text = report([run_seed(options.output_dir, seed) for seed in options.seeds])
    (options.output_dir / "report.md").write_text(text, encoding="utf-8")
    print(text)
