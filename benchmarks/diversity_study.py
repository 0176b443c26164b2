"""
MLE against IRL on `arithmetic`, at equal diversity: few demonstrations and many, both values of `terminal_value`,
several seeds. About 40 minutes on 2 cores; what is done is kept, so it can be killed and taken up.

```bash
.venv/bin/python -m benchmarks.diversity_study    # raw numbers in results/diversity_study.jsonl, a line per run
.venv/bin/python -m benchmarks.diversity_study --report
```

A seed draws its own demonstrations, its own 200 test problems, the order of training and the samples, all alike for
every objective; so the differences are paired by seed, and their intervals are Student's over seeds.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

from benchmarks.seeds import RESULTS, add_row, difference, read_rows


TEMPERATURES = (0.0, 0.3, 0.6, 1.0)
LAMBDAS = (0.1,)  # the referee tries others
ARMS = (("mle", 0.0, "zero"), *((f"{x:g} {end}", x, end) for x in LAMBDAS for end in ("zero", "mask")))
STEPS = {300: 300, 2500: 400}  # demonstrations: optimiser steps of 32 sequences
LEVELS = (90, 80, 70)  # of self-BLEU
NUM_SAMPLES = 4
RECIPE = Path(__file__).parents[1] / "recipes/arithmetic/irl.yaml"


def jobs(seeds: int) -> list[tuple[int, int, str, float, str]]:
    """Seed by seed, so that a study that is cut short has whole seeds; few demonstrations first."""
    return [(seed, size, *arm) for size in STEPS for seed in range(seeds) for arm in ARMS]


def run_job(output_dir: Path, seed: int, size: int, name: str, lambda_td: float, terminal_value: str) -> dict:
    """Train and evaluate: at each temperature the means over prompts, and the held-out losses."""
    from trl_irl.commands.irl import make_parser, make_trainer
    from trl_irl.evaluation.scoring import Scorer
    from trl_irl.tasks.arithmetic import make_arithmetic
    from trl_irl.tasks.scoring import exact_answer
    from trl_irl.text.sampling import sample

    folder = output_dir / f"{size}-{name.replace(' ', '-')}-seed{seed}"
    words = ["--config", str(RECIPE), "--model_name_or_path", str(output_dir / "base"), "--output_dir", str(folder)]
    words += ["--lambda_td", str(lambda_td), "--terminal_value", terminal_value, "--num_train_rows", str(size)]
    words += ["--task_seed", str(1000 + seed), "--seed", str(seed), "--max_steps", str(STEPS[size])]
    words += ["--eval_strategy", "no", "--do_eval", "true", "--disable_tqdm", "true", "--logging_steps", "100"]
    trainer, _ = make_trainer(*make_parser().parse(words))
    trainer.train()
    held_out = trainer.evaluate()
    rows = list(make_arithmetic(num_train=1, seed=1000 + seed)["test"])
    told = {"objective": name, "seed": seed, "demonstrations": size}
    told |= {"lambda_td": lambda_td, "terminal_value": terminal_value}
    told |= {name: held_out[f"eval_{name}"] for name in ("nll", "td_loss", "reward_mean")}
    told["temperatures"] = {}
    for temperature in TEMPERATURES:
        groups = sample(
            trainer.model,
            trainer.processing_class,
            [row["prompt"] for row in rows],
            max_new_tokens=80,
            temperature=temperature,
            num_samples=NUM_SAMPLES if temperature > 0 else 1,
            batch_size=50,
            seed=seed,
        )
        found = Scorer(exact_answer).statistics([list(map(vars, group)) for group in groups], rows)
        told["temperatures"][temperature] = {name: statistic.value for name, statistic in found.items()}
    return told


def by_run(results: Path) -> dict[tuple[int, int, str], dict]:
    """What is there, by seed, demonstrations and objective."""
    return {(row["seed"], row["demonstrations"], row["objective"]): row for row in read_rows(results)}


def work(output_dir: Path, results: Path, seeds: int, worker: int, workers: int) -> None:
    done = by_run(results)
    for job in [job for job in jobs(seeds) if job[:3] not in done][worker::workers]:
        add_row(results, run_job(output_dir, *job))
        print(*job[:3], flush=True)


def curve(result: dict, metric: str) -> tuple[list[float], list[float]]:
    """Self-BLEU and a metric at each temperature; greedy decoding says the same in all of its samples."""
    cells = result["temperatures"].values()
    self_bleu = [cell.get("self_bleu", 100.0) for cell in cells]
    return self_bleu, [100 * cell.get(metric, cell["accuracy"]) for cell in cells]


def runs_of(results: Path, size: int) -> dict[tuple[str, int], dict]:
    """The runs on so many demonstrations that are there, by objective and seed, in the order of the tables."""
    done = by_run(results)
    seeds = sorted({seed for seed, *_ in done})
    keys = [(name, seed) for name, *_ in ARMS for seed in seeds if (seed, size, name) in done]
    return {(name, seed): done[seed, size, name] for name, seed in keys}


def report(results: Path) -> str:
    """Markdown tables of what is there; a difference needs the seed of both models."""
    from trl_irl.evaluation.rendering import markdown

    parts = []
    for size in STEPS:
        if found := runs_of(results, size):
            matched = markdown(at_equal_diversity(found), left=1)
            of_mask = "; ".join(f"{name} {text}" for name, text in mask_minus_zero(found).items())
            tables = matched, f"mask minus zero at T = 1: {of_mask}", _by_temperature(found)
            parts.append("\n\n".join((f"### {size} demonstrations", *tables)))
    return "\n\n".join(parts) + "\n"


def _seeds_of(found: dict, name: str) -> list[int]:
    return [seed for other, seed in found if other == name and ("mle", seed) in found]


def at_equal_diversity(found: dict) -> list[list[str]]:
    """
    Rows of a table, the header first: MLE's percentages, and the other objectives' minus them, paired by seed, with
    95 % intervals.
    """
    import numpy as np

    from trl_irl.evaluation.equal_diversity import interpolate

    columns = [(metric, level) for metric in ("accuracy", "pass@4") for level in LEVELS]
    rows = [["objective", "seeds", *(f"{metric} at {level}" for metric, level in columns)]]
    at = {
        (metric, key): interpolate(*curve(result, metric), LEVELS)
        for key, result in found.items()
        for metric in ("accuracy", "pass@4")
    }
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for metric, level in columns:
            i = LEVELS.index(level)
            mine = np.array([at[metric, (name, seed)][i] for seed in _seeds_of(found, name)])
            of_mle = np.array([at[metric, ("mle", seed)][i] for seed in _seeds_of(found, name)])
            cells.append(f"{of_mle.mean():.1f}" if name == "mle" else difference(mine - of_mle))
        rows.append([name, str(len(_seeds_of(found, name))), *cells])
    return rows


def mask_minus_zero(found: dict) -> dict[str, str]:
    """What leaving the terminal state out changes at temperature 1, in points, paired by seed, by metric."""
    (value,) = LAMBDAS
    pairs = [
        (result["temperatures"]["1.0"], found[f"{value:g} zero", seed]["temperatures"]["1.0"])
        for (name, seed), result in found.items()
        if name == f"{value:g} mask" and (f"{value:g} zero", seed) in found
    ]
    shown = {"accuracy": 100, "pass@4": 100, "self_bleu": 1, "ended": 100}
    return {name: difference([scale * (a[name] - b[name]) for a, b in pairs]) for name, scale in shown.items()}


def _by_temperature(found: dict) -> str:
    """Means over seeds: held-out loss, accuracy of greedy decoding, and at each temperature four percentages."""
    headers = [f"T = {temperature:g}: accuracy / pass@4 / self-BLEU / ended" for temperature in TEMPERATURES[1:]]
    lines = [f"| objective | nll | greedy | {' | '.join(headers)} |", "|---|---:|---:|" + "---:|" * len(headers)]
    for name in dict.fromkeys(name for name, _ in found):
        runs = [result for (other, _), result in found.items() if other == name]
        cells = [f"{fmean(run['nll'] for run in runs):.3f}"]
        for temperature in TEMPERATURES:
            shown = {"accuracy": 100}
            if temperature > 0:
                shown |= {"pass@4": 100, "self_bleu": 1, "ended": 100}
            at = [run["temperatures"][str(temperature)] for run in runs]
            cells.append(" / ".join(f"{scale * fmean(x[metric] for x in at):.1f}" for metric, scale in shown.items()))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/diversity_study"), help="models")
    parser.add_argument("--results", type=Path, default=RESULTS / "diversity_study.jsonl", help="raw numbers, kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--worker", type=int, help="run only the share of this worker, from 0")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is done")
    options = parser.parse_args()
    if options.worker is not None:
        return work(options.output_dir, options.results, options.seeds, options.worker, options.workers)
    if not options.report:
        from trl_irl.demos.demo import pretrained_base

        pretrained_base(options.output_dir)
        command = [sys.executable, "-m", "benchmarks.diversity_study", "--output_dir", str(options.output_dir)]
        command += ["--results", str(options.results), "--seeds", str(options.seeds)]
        command += ["--workers", str(options.workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        workers = [subprocess.Popen([*command, "--worker", str(i)], env=environment) for i in range(options.workers)]
        statuses = [worker.wait() for worker in workers]
        if any(statuses):
            raise SystemExit("A worker failed; start the study again to go on.")
    print(report(options.results))


if __name__ == "__main__":
    main()
