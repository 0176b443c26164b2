"""
How still each arm of the referee holds V: its moves from token to token of held-out references after a training with
what the arm has chosen, on 300 demonstrations. Beside the referee's gains it says whether what holds V still is what
gains (docs/mechanism.md).

```bash
.venv/bin/python -m benchmarks.stillness    # two minutes of a core per arm and seed; results/stillness.jsonl
```

A run is a line, and what is there is not run again. The base model is the demo's present one, in `--output_dir`.
"""

import argparse
from pathlib import Path
from statistics import fmean

from benchmarks.mechanism import along, train
from benchmarks.referee import HERE, chosen, done_of, keys_for_training, plan_of, settings_of, weights_digest
from benchmarks.seeds import RESULTS, add_row, difference, read_rows, shown


RECORD = RESULTS / "stillness.jsonl"
SIZE, SEEDS = 300, (1, 2, 3)
MOVE = "root mean square move"


def wanted(plan: dict, rows: list[dict]) -> list[dict]:
    """Runs that are not there; the average with the base is no training of its own."""
    done, there = done_of(plan, read_rows(RESULTS / "referee.jsonl")), {(row["arm"], row["seed"]) for row in rows}
    found = []
    for seed in SEEDS:
        for name, arm in plan["arms"].items():
            run = chosen(plan, done, SIZE, name)
            keys = keys_for_training(settings_of(arm, run["strength"]))
            if "average" not in keys and (name, seed) not in there:
                keys |= {"learning_rate": run["learning_rate"], "max_steps": run["steps"]}
                found.append({"arm": name, "strength": run["strength"], "seed": seed, "keys": keys})
    return found


def table(plan: dict, rows: list[dict], gains: dict[str, list[float]]) -> list[list[str]]:
    """V's moves by arm, the stillest first, beside the arm's gain in the referee; a header first."""
    by_arm = {name: [row["v"][MOVE] for row in rows if row["arm"] == name] for name in plan["arms"]}
    order = sorted((name for name in by_arm if by_arm[name]), key=lambda name: fmean(by_arm[name]))
    body = [[name, shown(by_arm[name], digits=2), difference(gains[name]) if name in gains else ""] for name in order]
    return [["arm", "V's moves (nats)", "accuracy at 80, minus MLE's"], *body]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/referee"), help="the base model")
    parser.add_argument("--results", type=Path, default=RECORD)
    options = parser.parse_args()
    from trl_irl.demos.demo import pretrained_base

    pretrained_base(options.output_dir)
    plan, base = plan_of(HERE / "referee.yaml"), weights_digest(options.output_dir / "base")
    for run in wanted(plan, read_rows(options.results)):
        _, before, after = train(options.output_dir, run["keys"], observe=False, seed=run["seed"])
        add_row(options.results, {**run, "base": base, "v": along(after), "v before": along(before)})


if __name__ == "__main__":
    main()
