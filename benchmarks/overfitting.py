"""
How much is learnt and forgotten again: likelihood of held-out references and problems solved over the steps of a
training that goes on for too long, on few demonstrations and on many. The paper's question of its XSUM subsets (arXiv
2409.01369, section 4): does the temporal-difference term hold overfitting back?

```bash
.venv/bin/python -m benchmarks.overfitting                 # `arithmetic`; raw numbers in results/overfitting.jsonl
.venv/bin/python -m benchmarks.overfitting --task e2e      # SmolLM2-135M (`make real-model`), E2E in data/e2e
.venv/bin/python -m benchmarks.overfitting --report
```

A run is a line, and what is there is not run again. The learning rate rises and then stays; a seed draws its own
demonstrations and order, the same for every arm; validation problems are looked at and nothing is chosen by them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.demo_picture import INK
from benchmarks.referee import base_model
from benchmarks.seeds import RESULTS, add_row, read_rows, shown


ROOT = Path(__file__).parents[1]
RECORD = RESULTS / "overfitting.jsonl"
LIKELIHOOD = {"objective": "nll", "lambda_td": 0, "td_scale": "null", "lambda_td_warmup_steps": 0}
TASKS = {
    "arithmetic": {
        "recipe": "arithmetic/irl.yaml",
        "model": "demo",
        "sizes": {100: 600, 300: 600, 1000: 600, 4000: 600},  # demonstrations: steps, of 32
        "checks": 12,
        "seeds": (1, 2, 3),
        "generations": {"eval_generations": 100, "eval_max_new_tokens": 96, "eval_generation_batch_size": 100},
        "score": ("eval_accuracy", "problems solved", 100),
        # The weights that the referee chose on other validation problems (docs/referee.md).
        "arms": {
            "MLE": LIKELIHOOD,
            "soft-Q": {"lambda_td": 1.0},
            "value consistency": {"objective": "value_consistency", "lambda_td": 1.0},
            "z-loss around a constant": {
                **LIKELIHOOD,
                "objective": "z_loss",
                "z_loss_center": "measured",
                "z_loss_weight": 1.0,
            },
        },
    },
    "e2e": {
        "recipe": "e2e/irl_smollm2.yaml",
        "model": "smollm2",
        "sizes": {100: 56, 300: 152},  # of 16: 8 epochs
        "checks": 8,
        "seeds": (1,),
        "generations": {"eval_generations": 40, "eval_max_new_tokens": 80, "eval_generation_batch_size": 40},
        "score": ("eval_slots_right", "slots right", 100),
        # The weight that E2E's validation chose with 1,000 demonstrations (docs/results.md), and the default.
        "arms": {"MLE": LIKELIHOOD, "soft-Q": {"lambda_td": 1.0}, "soft-Q at 0.1": {}},
    },
}


def wanted(task: str, rows: list[dict]) -> list[dict]:
    """Runs that are not there: the first two arms, which are likelihood's and IRL's, on all seeds and sizes first."""
    done = {key_of(row) for row in rows}
    runs = [
        {"task": task, "demonstrations": size, "seed": seed, "arm": arm, "keys": keys}
        for arms in (list(TASKS[task]["arms"].items())[:2], list(TASKS[task]["arms"].items())[2:])
        for seed in TASKS[task]["seeds"]
        for size in TASKS[task]["sizes"]
        for arm, keys in arms
    ]
    return [run for run in runs if key_of(run) not in done]


def key_of(run: dict) -> str:
    return json.dumps([run[name] for name in ("task", "demonstrations", "seed", "arm", "keys")])


def run_job(output_dir: Path, run: dict) -> dict:
    """Train, and take what each check found."""
    from trl_irl.commands.irl import make_parser, make_trainer
    from trl_irl.demos.recipe_runs import words_of

    plan, start = TASKS[run["task"]], time.perf_counter()
    steps = plan["sizes"][run["demonstrations"]]
    keys = {
        "output_dir": output_dir / "trained",
        "model_name_or_path": output_dir / "base",
        "num_train_rows": run["demonstrations"],
        "task_seed": 2000 + run["seed"],
        "seed": run["seed"],
        "max_steps": steps,
        "lr_scheduler_type": "constant_with_warmup",
        "eval_strategy": "steps",
        "eval_steps": steps // plan["checks"],
        "eval_on_start": "true",
        "logging_steps": steps // plan["checks"],
        "eval_temperature": 0,
        "disable_tqdm": "true",
        **plan["generations"],
        **run["keys"],
    }
    words = ["--config", str(ROOT / "recipes" / plan["recipe"]), *words_of(keys)]
    trainer, _ = make_trainer(*make_parser().parse(words))
    trainer.train()
    checks, (score, *_) = [], plan["score"]
    for entry in trainer.state.log_history:
        if "eval_nll" in entry or score in entry:
            if not checks or checks[-1]["step"] != entry["step"]:
                checks.append({"step": entry["step"], "epoch": entry["epoch"]})
            told = {"nll": entry.get("eval_nll"), "score": entry.get(score)}
            checks[-1] |= {name: value for name, value in told.items() if value is not None}
    trained = {entry["step"]: entry["nll"] for entry in trainer.state.log_history if "nll" in entry}
    for check in checks:
        check["train_nll"] = trained.get(check["step"])
    return {**run, "checks": checks, "seconds": time.perf_counter() - start}


def work(options: argparse.Namespace) -> None:
    """The runs that are missing, so many at a time."""
    running: list[subprocess.Popen] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for run in wanted(options.task, read_rows(options.results)):
        while len(running) == options.workers:
            time.sleep(1)
            running = _going_on(running)
        command = [sys.executable, "-m", "benchmarks.overfitting", "--output_dir", str(options.output_dir)]
        command += ["--results", str(options.results), "--run", json.dumps(run)]
        running.append(subprocess.Popen(command, env=environment))
    while running:
        time.sleep(1)
        running = _going_on(running)


def _going_on(running: list[subprocess.Popen]) -> list[subprocess.Popen]:
    if any(process.poll() for process in running):
        for process in running:  # what is under way is kept
            process.wait()
        raise SystemExit("A run failed; start the study again to go on.")
    return [process for process in running if process.poll() is None]


def summary(task: str, rows: list[dict]) -> list[list[str]]:
    """
    For each number of demonstrations and arm: the lowest held-out nll and the step it is at, the nll of the end, and
    the score at that step, at the end, and the highest. Means and standard deviations over seeds.
    """
    _, name, factor = TASKS[task]["score"]
    header = ["demonstrations", "arm", "seeds", "lowest nll", "at step", "nll at the end"]
    table = [[*header, f"{name} there, %", "at the end, %", "highest, %"]]
    for size in TASKS[task]["sizes"]:
        for arm in TASKS[task]["arms"]:
            found = _checks(rows, task, size, arm)
            if not found:
                continue
            lowest = [min(checks, key=lambda check: check["nll"]) for checks in found]
            cells = [shown([one["nll"] for one in lowest], digits=3), shown([one["step"] for one in lowest], digits=0)]
            cells.append(shown([checks[-1]["nll"] for checks in found], digits=3))
            cells.append(shown([one["score"] for one in lowest], factor))
            cells.append(shown([checks[-1]["score"] for checks in found], factor))
            cells.append(shown([max(check["score"] for check in checks) for checks in found], factor))
            table.append([f"{size:,}", arm, str(len(found)), *cells])
    return table


def _checks(rows: list[dict], task: str, size: int, arm: str) -> list[list[dict]]:
    """Of the runs of an arm as it is now: rows of what it was before stay in the file."""
    run = {"task": task, "demonstrations": size, "arm": arm, "keys": TASKS[task]["arms"][arm]}
    return [row["checks"] for row in rows if run.items() <= row.items()]


def draw(task: str, rows: list[dict]) -> None:
    """
    Held-out nll and score over steps, a column for each number of demonstrations; means over seeds. An arm is drawn
    where it has all of them.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    sizes, (_, score, factor) = list(TASKS[task]["sizes"]), TASKS[task]["score"]
    for theme, ink in INK.items():
        with plt.rc_context({"svg.hashsalt": "overfitting", "text.color": ink, "axes.labelcolor": ink}):
            shape = {"figsize": (2.8 * len(sizes), 5), "sharex": "col", "sharey": "row", "layout": "constrained"}
            picture, axes = plt.subplots(2, len(sizes), **shape)
            for (above, below), size in zip(axes.T, sizes, strict=True):
                for arm in TASKS[task]["arms"]:
                    of = _checks(rows, task, size, arm)
                    if len(of) == len(TASKS[task]["seeds"]):
                        steps = [check["step"] for check in of[0]]
                        for at, key, times in ((above, "nll", 1), (below, "score", factor)):
                            means = np.mean([[times * check[key] for check in checks] for checks in of], axis=0)
                            at.plot(steps[1:], means[1:], label=arm)  # the base model is far above
                above.set_title(f"{size:,} demonstrations", color=ink, fontsize=10)
                below.set_xlabel("step")
            axes[0, 0].set_ylabel("nll of held-out references (nats)")
            axes[1, 0].set_ylabel(f"{score}, greedy (%)")
            for one in axes.flat:
                one.patch.set_alpha(0)
                one.grid(alpha=0.25)
                one.tick_params(colors=ink)
                for spine in one.spines.values():
                    spine.set_color(ink)
            axes[0, 0].legend(frameon=False, fontsize=8)
            picture.savefig(
                ROOT / f"docs/assets/overfitting_{task}_{theme}.svg", transparent=True, metadata={"Date": None}
            )
            plt.close(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="arithmetic")
    parser.add_argument("--output_dir", type=Path, help="for the base model; outputs/overfitting_TASK if unset")
    parser.add_argument("--results", type=Path, default=RECORD, help="raw numbers, kept")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only the table and the picture of what is done")
    options = parser.parse_args()
    if options.run:
        add_row(options.results, run_job(options.output_dir, json.loads(options.run)))
        return
    options.output_dir = options.output_dir or Path("outputs") / f"overfitting_{options.task}"
    if not options.report:
        base_model(TASKS[options.task]["model"], options.output_dir)
        work(options)
    rows = read_rows(options.results)
    for line in summary(options.task, rows):
        print(" | ".join(line))
    draw(options.task, rows)


if __name__ == "__main__":
    main()
