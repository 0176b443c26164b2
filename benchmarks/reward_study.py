"""
The reward inside on `arithmetic`: does what IRL learned tell right solutions from wrong ones better than MLE's
likelihood and log-ratio? Half an hour on 2 cores; what is trained and each seed's numbers are kept.

```bash
.venv/bin/python -m benchmarks.reward_study    # raw numbers in results/reward_study.jsonl
```

A seed draws its own 300 demonstrations and its own 200 test problems. An MLE and an IRL model are fine-tuned on them
by the demo's recipes, and both rewards judge the samples of both (`trl-irl evaluate --reward_analysis --rerank`, with
the base model as the log-ratio's reference). Means over seeds, with their standard deviation.
"""

import json
from pathlib import Path

from benchmarks.seeds import shown, study


MODELS = ("mle", "irl")
TEMPERATURES = (0.6, 1.0)
_COLUMNS = ("AUROC in prompt", "AUROC", "Spearman in prompt", "Kendall in prompt")


def run_seed(output_dir: Path, seed: int) -> dict:
    """Train both models and evaluate them; what `rewards.json` holds."""
    from trl_irl.commands import evaluate
    from trl_irl.demos.recipe_runs import run_recipe

    folders = {name: output_dir / f"{name}-seed{seed}" for name in MODELS}
    for name, folder in folders.items():
        if not (folder / "trainer_state.json").is_file():
            options = {"task_seed": 1000 + seed, "seed": seed, "eval_strategy": "no"}
            options |= {"lambda_td": 0.1} if name == "irl" else {}
            run_recipe("trl-irl irl", name, output_dir / "base", folder, **options)
    arguments = evaluate.EvaluateArguments(
        models=[f"{name}={folder}" for name, folder in folders.items()],
        task="arithmetic",
        task_seed=1000 + seed,
        temperatures=list(TEMPERATURES),
        num_samples=8,
        seeds=[seed],
        max_new_tokens=80,
        batch_size=400,
        reward_analysis=True,
        rerank=True,
        reward_ref_model=str(output_dir / "base"),
        output_dir=str(output_dir / f"reward_study-seed{seed}"),
    )
    evaluate.main(arguments)
    return json.loads((Path(arguments.output_dir) / "rewards.json").read_text(encoding="utf-8"))


def report(seeds: list[dict]) -> str:
    """Three Markdown tables."""
    lines = [f"| completions of | reward | {' | '.join(_COLUMNS)} |", "|---|---|" + "---:|" * len(_COLUMNS)]
    for i, one in enumerate(seeds[0]["agreement"]):
        cells = [shown([told["agreement"][i][name]["mean"] for told in seeds], 1, 3) for name in _COLUMNS]
        lines.append(f"| {one['model']} | {one['reward']} | {' | '.join(cells)} |")
    lines += ["", "| reward | lowest token (%) | chance (%) | place | return falls (%) |", "|---|---:|---:|---:|---:|"]
    for i, one in enumerate(seeds[0]["corruption"]):
        columns = (("lowest", 100, 1), ("chance", 100, 1), ("place", 1, 3), ("falls", 100, 1))
        cells = [shown([told["corruption"][i][key]["mean"] for told in seeds], *how) for key, *how in columns]
        lines.append(f"| {one['reward']} | {' | '.join(cells)} |")
    n = max(map(int, seeds[0]["best_of_n"][0]["scores"]))
    lines += ["", f"| completions of | decoding | best of {n} by | accuracy (%) |", "|---|---|---|---:|"]
    for i, one in enumerate(seeds[0]["best_of_n"]):
        cell = shown([told["best_of_n"][i]["scores"][str(n)]["mean"] for told in seeds], 100, 1)
        lines.append(f"| {one['model']} | T = {one['temperature']:g} | {one['way']} | {cell} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    study(__doc__, "reward_study", run_seed, report)
