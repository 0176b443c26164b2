"""
Does what the referee found hold for other base models? Its arms fine-tune one; here each seed pretrains its own, from
other weights and in another order, and trains the arms on it that stand out there, by what they have chosen there.

```bash
.venv/bin/python -m benchmarks.bases                 # 25 minutes of a core per base model; results/bases.jsonl
.venv/bin/python -m benchmarks.bases --bases 1 3     # some of them: the others may be another process's
.venv/bin/python -m benchmarks.bases --report
```

A run is a line, and what is there is not run again. A base's seed is that of its runs too, so that demonstrations,
problems and samples are those of the referee's seed, and differences to MLE are paired by base; their intervals are
Student's.
"""

import argparse
import os
from pathlib import Path

from benchmarks.referee import HERE, chosen, done_of, key_of, plan_of, run_job, weights_digest
from benchmarks.referee_report import against, each
from benchmarks.seeds import RESULTS, add_row, read_rows


RECORD = RESULTS / "bases.jsonl"
SIZE, BASES = 300, (1, 2, 3, 4, 5)
ARMS = ("MLE", "soft-Q", "value consistency", "z-loss around a constant")


def wanted(plan: dict, rows: list[dict], base: int) -> list[dict]:
    """A base's runs that are not there: each arm as the referee has chosen it."""
    of_referee, there = done_of(plan, read_rows(RESULTS / "referee.jsonl")), done_of(plan, rows)
    found = [chosen(plan, of_referee, SIZE, arm) | {"split": "test", "seed": base} for arm in ARMS]
    return [run for run in found if key_of(run) not in there]


def judged(plan: dict, rows: list[dict]) -> list[dict]:
    """
    The runs of each base model that all arms have seen.

    Raises:
        `ValueError`: the runs of a base began with several models.
    """
    done = list(done_of(plan, rows).values())
    of_base = {seed: [row for row in done if row["seed"] == seed] for seed in sorted({row["seed"] for row in done})}
    if several := [seed for seed, runs in of_base.items() if len({run["base"] for run in runs}) > 1]:
        raise ValueError(f"Runs of base {several[0]} began with several models: take out those of all but one.")
    return [run for runs in of_base.values() if len(runs) == len(ARMS) for run in runs]


def tables(plan: dict, rows: list[dict]) -> dict[str, list[list[str]]]:
    """Rows of tables by name, a header first: points above MLE over the bases, and each run."""
    found = judged(plan, rows)
    return {
        "frontier": against(plan, found, "frontier", "MLE", list(ARMS[1:])),
        "each": each(plan, found, SIZE),
    }


def main() -> None:
    from trl_irl.demos.demo import pretrained_base
    from trl_irl.evaluation.rendering import markdown

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bases"), help="the base models")
    parser.add_argument("--results", type=Path, default=RECORD)
    parser.add_argument("--bases", type=int, nargs="+", default=list(BASES), help="their seeds")
    parser.add_argument("--report", action="store_true", help="only print the tables of what is done")
    options = parser.parse_args()
    plan = plan_of(HERE / "referee.yaml")
    for base in [] if options.report else options.bases:
        folder, runs = options.output_dir / str(base), wanted(plan, read_rows(options.results), base)
        if not runs:
            continue
        pretrained_base(folder, seed=base)
        others = {row["base"] for row in done_of(plan, read_rows(options.results)).values() if row["seed"] == base}
        if others - {(digest := weights_digest(folder / "base"))}:
            raise SystemExit(f"Runs of base {base} began with {', '.join(others)}, and this machine made {digest}.")
        for run in runs:
            told, _ = run_job(folder, plan, run)
            add_row(options.results, told)
            print(run, f"at self-BLEU {plan['levels']}: {told['frontier']}", flush=True)
    print("\n\n".join(markdown(table, left=1) for table in tables(plan, read_rows(options.results)).values() if table))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
