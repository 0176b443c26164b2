"""
What the model's own samples add on `arithmetic`: MLE, offline IRL, online IRL and GAIL, in one report per seed. More
than an hour on one core; what is trained and each seed's numbers are kept.

```bash
.venv/bin/python -m benchmarks.online_study    # raw numbers in results/online_study.jsonl
```

A seed draws its own 300 demonstrations and its own 200 test problems. MLE and IRL start from the demo's base model, by
its recipes; online IRL and GAIL go on for 200 steps from that MLE model on the same demonstrations, by theirs, and so
does online IRL without samples of its own (`online_fraction: 0`), which is offline IRL from the same start.
`trl-irl evaluate --reward_analysis` then samples from all four (greedy, and 8 completions at temperature 1) and asks
each model's reward (`soft_q`, its mean over tokens) to tell right from wrong completions of one prompt, MLE's and its
own (AUROC); GAIL's discriminator is asked the same. Means over seeds, with their standard deviation; "minus MLE" is
taken seed by seed.
"""

import json
import math
from pathlib import Path
from statistics import fmean

from benchmarks.seeds import shown, study


# Each model's command, recipe and what differs from it.
MODELS = {
    "MLE": ("trl-irl irl", "mle", {}),
    "IRL": ("trl-irl irl", "irl", {"lambda_td": 0.1}),  # what the online runs have
    "online IRL": ("trl-irl online_irl", "online_irl", {}),
    "online IRL without samples": ("trl-irl online_irl", "online_irl", {"online_fraction": 0.0}),
    "GAIL": ("trl-irl gail", "gail", {}),
}
FROM_BASE = ("MLE", "IRL")  # the others go on from MLE
TEMPERATURES = (0.0, 1.0)


def train(output_dir: Path, seed: int) -> dict[str, Path]:
    """Train what is not there yet, one after the other on one thread; folders by name."""
    from trl_irl.demos.recipe_runs import run_recipe

    folders = {name: output_dir / f"{name.lower().replace(' ', '_')}-seed{seed}" for name in MODELS}
    for name, (command, recipe, options) in MODELS.items():
        if (folders[name] / "trainer_state.json").is_file():
            continue
        start = output_dir / "base" if name in FROM_BASE else folders["MLE"]
        options = {**options, "task_seed": 1000 + seed, "seed": seed, "eval_strategy": "no"}
        run_recipe(command, recipe, start, folders[name], 1, **options)
    return folders


def discriminator_auroc(folder: Path, samples: Path, of: str) -> float:
    """How often what GAIL's discriminator says tells a right from a wrong completion of one prompt."""
    import numpy as np

    from trl_irl import PreferenceReward
    from trl_irl.evaluation.reward_analysis import auroc_within_prompts
    from trl_irl.tasks.scoring import completion_score

    reward = PreferenceReward(str(folder / "discriminator"), batch_size=400)
    score = completion_score("arithmetic")
    rewards, scores = [], []
    for row in map(json.loads, samples.read_text(encoding="utf-8").splitlines()):
        if row["model"] == of and row["temperature"] == 1:
            texts = [completion["text"] for completion in row["completions"]]
            told = {"prompt": row["prompt"], "completion": row["reference"]}
            rewards.append(reward([row["prompt"]] * len(texts), texts))
            scores.append([score(text, told)["accuracy"] for text in texts])
    return auroc_within_prompts(np.array(rewards), np.array(scores)).value


def run_seed(output_dir: Path, seed: int) -> dict[str, float]:
    """Train and evaluate; numbers by the model's name and what they are."""
    from trl_irl.commands import evaluate
    from trl_irl.demos.recipe_runs import log_history

    folders = train(output_dir, seed)
    arguments = evaluate.EvaluateArguments(
        models=[f"{name}={folder}" for name, folder in folders.items()],
        task="arithmetic",
        task_seed=1000 + seed,
        metrics=["accuracy", "nll"],
        temperatures=list(TEMPERATURES),
        num_samples=8,
        seeds=[seed],
        max_new_tokens=80,
        batch_size=400,
        reward_analysis=True,
        output_dir=str(output_dir / f"online_study-seed{seed}"),
    )
    evaluate.main(arguments)
    found = {}
    for result in json.loads((Path(arguments.output_dir) / "metrics.json").read_text(encoding="utf-8")):
        for metric in ("accuracy", "self_bleu", "nll"):
            if metric in result["metrics"]:
                mean = result["metrics"][metric]["mean"]
                found[f"{result['model']} {metric} {result['temperature']:g}"] = mean
    for judged in ("MLE", "GAIL"):
        samples = Path(arguments.output_dir) / "samples.jsonl"
        found[f"discriminator AUROC on {judged}"] = discriminator_auroc(folders["GAIL"], samples, judged)
    agreement = json.loads((Path(arguments.output_dir) / "rewards.json").read_text(encoding="utf-8"))["agreement"]
    by_pair = {(row["model"], row["reward"]): row["AUROC in prompt"]["mean"] for row in agreement}
    for name, folder in folders.items():
        for judged in ("MLE", name):
            found[f"{name} AUROC on {judged}"] = by_pair[judged, f"{name} soft_q mean"]
        history = log_history(folder)
        found[f"{name} seconds"] = next(entry["train_runtime"] for entry in history if "train_runtime" in entry)
        # A run whose loss had not been finite would have ended, but for GAIL's policy.
        losses = [entry["loss"] for entry in history if "loss" in entry]
        found[f"{name} finite"] = float(all(math.isfinite(loss) for loss in losses))
    return found


def report(seeds: list[dict[str, float]]) -> str:
    """A Markdown table."""
    columns = ["greedy (%)", "minus MLE", "T = 1 (%)", "minus MLE", "self-BLEU, T = 1", "held-out NLL (nats)"]
    columns += ["AUROC, MLE's samples", "own samples", "minutes"]
    lines = [f"| model | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name in MODELS:
        cells = []
        for temperature in TEMPERATURES:
            own, mle = ([seed[f"{who} accuracy {temperature:g}"] for seed in seeds] for who in (name, "MLE"))
            gains = [a - b for a, b in zip(own, mle, strict=True)]
            cells += [shown(own, 100), "" if name == "MLE" else shown(gains, 100)]
        cells.append(shown([seed[f"{name} self_bleu 1"] for seed in seeds]))
        cells.append(shown([seed[f"{name} nll 1"] for seed in seeds], digits=3))
        cells += [shown([seed[f"{name} AUROC on {judged}"] for seed in seeds], digits=2) for judged in ("MLE", name)]
        cells.append(f"{fmean(seed[f'{name} seconds'] for seed in seeds) / 60:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    judged = [shown([seed[f"discriminator AUROC on {name}"] for seed in seeds], digits=2) for name in ("MLE", "GAIL")]
    lines += ["", f"GAIL's discriminator: AUROC {judged[0]} on MLE's samples, {judged[1]} on GAIL's own."]
    finite = all(seed[f"{name} finite"] for seed in seeds for name in MODELS)
    lines += ["", f"Every logged loss of every run is {'' if finite else '**not** '}finite."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    study(__doc__, "online_study", run_seed, report)
