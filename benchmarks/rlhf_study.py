"""
RLHF on `arithmetic`: how good is the reward model, and what do PPO and RLOO add to the supervised model when the
checker of answers is their reward? An hour on 2 cores; what is trained and each seed's numbers are kept.

```bash
.venv/bin/python -m benchmarks.rlhf_study    # raw numbers in results/rlhf_study.jsonl
```

A seed draws its own demonstrations, prompts and test problems. Recipes of `recipes/arithmetic`: `mle` (what `sft`
does), `reward` on references against corrupted ones, `ppo_checker`, and `rloo` with the checker as its reward. Means
over seeds, with their standard deviation; differences from the supervised model are taken seed by seed.
"""

import json
from pathlib import Path
from statistics import fmean

from benchmarks.seeds import shown, study


POLICIES = ("SFT", "PPO", "RLOO")
TEMPERATURES = (0.0, 1.0)
_CHECKER = "trl_irl.tasks.final_answer.accuracy_reward"


def train(output_dir: Path, seed: int) -> dict[str, Path]:
    """The seed's models, trained where they are not there."""
    from trl_irl.commands import prepare, reward_data
    from trl_irl.demos.recipe_runs import run_recipe

    base, data = output_dir / "base", {"task_seed": 1000 + seed}
    folders = {
        name: output_dir / f"{name}-seed{seed}" for name in ("SFT", "reward", "PPO", "RLOO", "pairs", "prompts")
    }

    def missing(name: str) -> bool:
        return not (folders[name] / "model.safetensors").is_file()

    if missing("SFT"):
        run_recipe("trl-irl irl", "mle", base, folders["SFT"], seed=seed, eval_strategy="no", **data)
    if missing("reward"):
        of_pairs = {"task": "arithmetic", "num_train_rows": 4000, "seed": seed, **data}
        reward_data.main(reward_data.RewardDataArguments(output_dir=str(folders["pairs"]), **of_pairs))
        options = {"dataset_name": folders["pairs"], "eval_strategy": "no", "seed": seed}
        run_recipe("trl reward", "reward", folders["SFT"], folders["reward"], **options)
    if missing("PPO"):
        run_recipe("trl-irl ppo", "ppo_checker", folders["SFT"], folders["PPO"], seed=seed, eval_generations=0, **data)
    if missing("RLOO"):
        of_prompts = {"task": "arithmetic", "num_train_rows": 2000, "reference_column": "reference", **data}
        of_prompts |= {"tokenizer": str(folders["SFT"]), "output_dir": str(folders["prompts"])}
        prepare.main(prepare.PrepareArguments(**of_prompts))
        options = {"dataset_name": folders["prompts"], "reward_funcs": [_CHECKER], "seed": seed}
        options["beta"] = 0.01  # that reward is 0 or 1; the recipe's own, a mean over tokens, is some tenths of a nat
        run_recipe("trl rloo", "rloo", folders["SFT"], folders["RLOO"], **options)
    return folders


def kl_of(folder: Path) -> float:
    """KL to the supervised model at the end of training, in nats a completion: the mean of the last five steps."""
    from trl_irl.demos.recipe_runs import log_history, reward_and_kl

    return fmean(point["kl"] for point in reward_and_kl(log_history(folder))[-5:])


def run_seed(output_dir: Path, seed: int) -> dict[str, float]:
    from datasets import load_dataset

    from trl_irl import PreferenceReward
    from trl_irl.commands import evaluate

    folders = train(output_dir, seed)
    pairs = load_dataset(str(folders["pairs"]), split="test")
    found = {"pair accuracy": PreferenceReward(str(folders["reward"]), batch_size=100).pair_accuracy(list(pairs))}
    arguments = evaluate.EvaluateArguments(
        models=[f"{name}={folders[name]}" for name in POLICIES],
        task="arithmetic",
        task_seed=1000 + seed,
        metrics=["accuracy"],
        temperatures=list(TEMPERATURES),
        seeds=[seed],
        max_new_tokens=80,
        batch_size=400,
        output_dir=str(output_dir / f"rlhf_study-seed{seed}"),
    )
    evaluate.main(arguments)
    results = json.loads((Path(arguments.output_dir) / "metrics.json").read_text(encoding="utf-8"))
    for result in results:
        for metric in ("accuracy", "self_bleu"):
            if metric in result["metrics"]:
                mean = result["metrics"][metric]["mean"]
                found[f"{result['model']} {metric} {result['temperature']:g}"] = mean
    return found | {f"{name} KL": kl_of(folders[name]) for name in POLICIES[1:]}


def report(seeds: list[dict[str, float]]) -> str:
    """A Markdown table, and the reward model's accuracy."""
    accuracy = shown([seed["pair accuracy"] for seed in seeds], 100)
    lines = [f"Reward model, held-out pairs: {accuracy} %.", ""]
    lines += ["| model | greedy (%) | minus SFT | T = 1 (%) | minus SFT | self-BLEU, T = 1 | KL (nats) |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|"]
    for name in POLICIES:
        cells = []
        for temperature in TEMPERATURES:
            own = [seed[f"{name} accuracy {temperature:g}"] for seed in seeds]
            of_sft = [seed[f"SFT accuracy {temperature:g}"] for seed in seeds]
            gains = [a - b for a, b in zip(own, of_sft, strict=True)]
            cells += [shown(own, 100), "" if name == "SFT" else shown(gains, 100)]
        cells.append(shown([seed[f"{name} self_bleu 1"] for seed in seeds]))
        cells.append("" if name == "SFT" else shown([seed[f"{name} KL"] for seed in seeds], digits=2))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    study(__doc__, "rlhf_study", run_seed, report)
