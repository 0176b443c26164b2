"""
What to watch in the logs: of each method a run that learns and one that goes wrong, on `arithmetic`, and a picture.
About an hour on one core after `make demo` and `make rlhf-demo`; what is done is kept.

```bash
.venv/bin/python -m benchmarks.good_and_bad_runs            # raw numbers in results/runs.json
.venv/bin/python -m benchmarks.good_and_bad_runs --draw     # only the pictures, docs/assets/runs_*.svg
```

Each pair differs in what `BAD` says alone. One seed: the curves show what to look for, and measure nothing.
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.demo_picture import INK
from benchmarks.seeds import RESULTS


ROOT = Path(__file__).parents[1]
RECORD = RESULTS / "runs.json"
# Samples of 100 validation problems during training, one each, at the temperature at which the policy learns.
_SAMPLES = {"eval_generations": 100, "eval_num_samples": 1, "eval_temperature": 1.0, "eval_max_new_tokens": 80}
_SAMPLES |= {"eval_generation_batch_size": 100, "eval_strategy": "steps", "eval_steps": 20}
# By method: command, recipe, the model to start from, and what is drawn, title by key.
METHODS = {
    "offline": ("trl-irl irl", "irl", "demo/base", {"nll": "nll", "td_loss": "td_loss"}),
    "online": ("trl-irl online_irl", "online_irl", "demo/mle", {"nll": "nll", "policy_v_mean": "policy_v_mean"}),
    "gail": (
        "trl-irl gail",
        "gail",
        "demo/mle",
        {"reward": "reward (of the discriminator)", "discriminator_accuracy_policy": "discriminator_accuracy_policy"},
    ),
    "ppo": (
        "trl-irl ppo",
        "ppo_checker",
        "rlhf/sft",
        {"objective/scores": "objective/scores (the reward)", "objective/kl": "objective/kl (nats)"},
    ),
}
_OF_SAMPLES = {"eval_accuracy": "eval_accuracy", "eval_ended": "eval_ended"}
GOOD = {"offline": {"lambda_td": 0.1}}  # beside what the recipe has
# What the run that goes wrong does otherwise, and how it is called.
BAD = {
    "offline": ("lambda_td 10, terminal_value zero", {"lambda_td": 10.0, "terminal_value": "zero"}),
    "online": (
        "chi2_on expert, gamma 0.9, five times the rate",
        {"chi2_on": "expert", "gamma": 0.9, "learning_rate": 5e-4},
    ),
    "gail": (
        "mle_coef 0, beta 0, ten times both rates",
        {"mle_coef": 0.0, "beta": 0.0, "learning_rate": 1e-4, "discriminator_learning_rate": 1e-3},
    ),
    # ppo_full.yaml: a reward model that has seen slips in references, and none of a policy's own mistakes.
    "ppo": ("the reward model's reward instead of the checker's", None),
}


def run(method: str, bad: bool, output_dir: Path) -> list[dict]:
    """Train one, and give what it logged of what is drawn."""
    from trl_irl.demos.recipe_runs import log_history, run_recipe

    command, recipe, start, panels = METHODS[method]
    told = BAD[method][1] if bad else GOOD.get(method, {})
    if told is None:
        folder = output_dir / "rlhf/ppo"  # `make rlhf-demo` has made it
    else:
        folder = output_dir / "runs" / f"{method}-{'bad' if bad else 'good'}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not (folder / "trainer_state.json").is_file():
            options = {} if command == "trl-irl ppo" else _SAMPLES
            run_recipe(command, recipe, output_dir / start, folder, 1, **options, **told)
    keys = {"step", *panels, *_OF_SAMPLES}
    entries = [{key: entry[key] for key in entry if key in keys} for entry in log_history(folder)]
    return [{k: float(f"{x:.6g}") for k, x in entry.items()} for entry in entries if len(entry) > 1]


def draw(found: dict[str, dict[str, list[dict]]]) -> None:
    """A row of four panels per method, on light and on dark pages."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams["svg.hashsalt"] = "trl_irl"  # the same bytes for the same numbers
    for method, runs in found.items():
        panels = {**METHODS[method][3], **_OF_SAMPLES}
        for theme, ink in INK.items():
            figure = Figure(figsize=(8.4, 4.8), layout="constrained")
            grid = figure.subplots(2, 2)
            for axes, (key, title) in zip(grid.flat, panels.items(), strict=True):
                for kind, colour in (("good", "#2da44e"), ("bad", "#d1603d")):
                    points = [(entry["step"], entry[key]) for entry in runs.get(kind, []) if key in entry]
                    label = f"goes wrong: {BAD[method][0]}" if kind == "bad" else "learns: the recipe"
                    line = "-" if kind == "good" else "--"
                    axes.plot(*zip(*points, strict=True), color=colour, linestyle=line, label=label)
                axes.set_title(title, color=ink, fontsize=10)
                axes.tick_params(colors=ink, labelsize=8)
                axes.set_facecolor("none")
                for side, spine in axes.spines.items():
                    spine.set_visible(side in ("left", "bottom"))
                    spine.set_color(ink)
                if key in _OF_SAMPLES:
                    axes.set_ylim(-0.03, 1.03)
                    axes.set_xlabel("step", color=ink, fontsize=8)
            handles, labels = grid[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, labelcolor=ink)
            path = ROOT / f"docs/assets/runs_{method}_{theme}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="where the demos' models are")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    options = parser.parse_args()
    found = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    for method in () if options.draw else options.methods:
        for kind in ("good", "bad"):
            if kind not in found.setdefault(method, {}):
                found[method][kind] = run(method, kind == "bad", options.output_dir)
                part = RECORD.with_suffix(".part")
                part.write_text(json.dumps(found) + "\n", encoding="utf-8")
                os.replace(part, RECORD)
    draw({method: runs for method, runs in found.items() if len(runs) == 2})


if __name__ == "__main__":
    main()
