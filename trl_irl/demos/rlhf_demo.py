"""
RLHF in small: a tiny base model through SFT, a reward model and PPO, and through IRL and RLOO on the reward that IRL
learned. No download, no GPU.

```bash
make rlhf-demo    # or: trl-irl rlhf-demo --output_dir outputs/rlhf
```
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import yaml

from ..commands.console.command import command
from .demo import DemoArguments, build_base_model
from .recipe_runs import log_history, recipe_path, reward_and_kl, run_recipe


TEMPERATURES = (0.0, 1.0)
_PAIRS = "pair accuracy, held out"
_OF_MODEL, _OF_IRL = "PPO: the reward model's reward", "RLOO: IRL's reward (nats per token)"
_KL = "KL to the start (nats per solution)"
_SHORT = {"max_steps": 32, "per_device_train_batch_size": 256}  # half of the recipe: the demo ends in 15 minutes
_TITLES = {
    "base": "Pretraining a base model on simpler text",
    "sft": "SFT on 300 demonstrations",
    "irl": "IRL on the same demonstrations",
    "reward": "A reward model from 4,000 preference pairs",
    "ppo": "PPO from SFT, on the reward model",
    "rloo": "RLOO from IRL, on the reward that it learned",
}


@dataclass
class RLHFDemoArguments(DemoArguments):
    """
    Those of the `demo` command. `num_samples` are drawn at T = 1; with `max_steps` the steps of RL are small as well.
    """

    output_dir: str = field(default="outputs/rlhf", metadata={"help": "Folder for models, data, logs and the report."})


def prepare_data(folders: dict[str, Path]) -> None:
    """Demonstrations, prompts for RL, and preference pairs: references against corrupted ones."""
    from ..commands import prepare, reward_data

    tokenizer = str(folders["untrained"])
    for name, rows in (("demonstrations", 300), ("prompts", 2000)):
        prepare.main(
            prepare.PrepareArguments(
                task="arithmetic", tokenizer=tokenizer, num_train_rows=rows, output_dir=str(folders[name])
            )
        )
    reward_data.main(
        reward_data.RewardDataArguments(task="arithmetic", num_train_rows=4000, output_dir=str(folders["pairs"]))
    )


def rloo_recipe(folders: dict[str, Path]) -> Path:
    """`rloo.yaml` with the model of this demo as its reward: what stands under `env` no word can override."""
    recipe = yaml.safe_load(recipe_path("rloo").read_text(encoding="utf-8"))
    recipe["env"]["TRL_IRL_REWARD"]["model"] = str(folders["irl"])
    path = folders["rloo"].with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def train_all(folders: dict[str, Path], max_steps: int | None) -> dict[str, float]:
    """
    Every stage by its recipe; returns the seconds that each took. After the base model there are two lines of them,
    which run side by side: models this small are no faster on all cores.
    """
    cut = {} if max_steps is None else {"max_steps": max_steps}
    cut_rl = {} if max_steps is None else {"per_device_train_batch_size": 32}
    episodes = {} if max_steps is None else {"total_episodes": 32 * max_steps, "eval_generations": 8}
    stages = {
        "base": ("trl-irl irl", "base", "untrained", cut),
        "sft": ("trl sft", "sft", "base", {"dataset_name": folders["demonstrations"], **cut}),
        "irl": ("trl-irl irl", "irl", "base", {"lambda_td": 0.1, **cut}),  # whose reward was measured
        "reward": ("trl reward", "reward", "sft", {"dataset_name": folders["pairs"], **cut}),
        "ppo": ("trl-irl ppo", "ppo_full", "sft", {"reward_model_path": folders["reward"], **cut_rl, **episodes}),
        "rloo": (
            "trl rloo",
            rloo_recipe(folders),
            "irl",
            {"dataset_name": folders["prompts"], **_SHORT, **cut, **cut_rl},
        ),
    }
    seconds, began = {}, time.perf_counter()

    def run(names: tuple[str, ...], threads: int | None) -> None:
        for name in names:
            program, recipe, start, options = stages[name]
            print(f"{(time.perf_counter() - began) / 60:4.1f} min  {_TITLES[name]}", flush=True)
            seconds[name] = run_recipe(program, recipe, folders[start], folders[name], threads, **options)

    run(("base",), None)
    share = max(1, (os.cpu_count() or 2) // 2)
    with ThreadPoolExecutor(2) as pool:
        lines = [pool.submit(run, names, share) for names in (("sft", "reward", "ppo"), ("irl", "rloo"))]
        for line in lines:
            line.result()
    print(f"{(time.perf_counter() - began) / 60:4.1f} min  Sampling solutions of held-out problems", flush=True)
    return seconds


def write_report(folders: dict[str, Path], seconds: dict[str, float], accuracy: float) -> None:
    """What evaluation wrote, with the trainings and their curves after it."""
    from ..evaluation.rendering import markdown, plot_training

    output_dir = folders["base"].parent
    curves = {name: reward_and_kl(log_history(folders[name.lower()])) for name in ("PPO", "RLOO")}
    of_pairs = [
        {"step": entry["step"], _PAIRS: entry["eval_accuracy"]}
        for entry in log_history(folders["reward"])
        if "eval_accuracy" in entry
    ]
    histories = {"reward model": of_pairs}
    for name, key in (("PPO", _OF_MODEL), ("RLOO", _OF_IRL)):
        histories[name] = [{"step": p["step"], key: p["reward"], _KL: p["kl"]} for p in curves[name]]
    plot_training(histories, (_PAIRS, _OF_MODEL, _OF_IRL, _KL), output_dir / "training.png")
    kl = {name: fmean(point["kl"] for point in points[-5:]) for name, points in curves.items()}
    numbers = {"seconds": seconds, "pair_accuracy": accuracy, "kl": kl}
    (output_dir / "training.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    rows = [["stage", "from", "seconds", "KL to where it began (nats)"]]
    began = {"base": "", "sft": "base", "irl": "base", "reward": "SFT", "ppo": "SFT", "rloo": "IRL"}
    for name, start in began.items():
        distance = f"{kl[name.upper()]:.2f}" if name.upper() in kl else ""
        rows.append([name, start, f"{seconds[name]:.0f}", distance])
    report = output_dir / "report.md"
    report.write_text(
        f"""{report.read_text(encoding="utf-8")}
## Training

A Llama of 0.9 M weights, pretrained by `recipes/arithmetic/base.yaml`. SFT and IRL learn from the same 300
demonstrations. The reward model learns from 4,000 references set against corrupted ones, and is right on
{100 * accuracy:.1f} % of 200 held-out pairs. PPO goes on from SFT on that reward, RLOO from IRL on the reward that IRL
learned; neither sees the checker by which `accuracy` is judged. KL is of the last five steps. {os.cpu_count()} CPU
cores, one seed.

{markdown(rows)}

![Training curves](training.png)
""",
        encoding="utf-8",
    )


def main(arguments: RLHFDemoArguments) -> None:
    from datasets import load_dataset

    from ..commands import evaluate
    from ..evaluation.metrics import check_installed
    from ..rewards import PreferenceReward
    from ..tasks.files import check_writable
    from ..trainer.ppo.trainer import PPOTrainer  # noqa: F401  (what a TRL without it says, before anything runs)

    start = time.perf_counter()
    output_dir = Path(arguments.output_dir)
    names = ("untrained", "base", "demonstrations", "prompts", "pairs", "sft", "irl", "reward", "ppo", "rloo")
    folders = {name: output_dir / name for name in names}
    check_installed()
    check_writable(arguments.output_dir, "output_dir")
    output_dir.mkdir(parents=True, exist_ok=True)
    build_base_model(folders["untrained"])
    prepare_data(folders)
    seconds = train_all(folders, arguments.max_steps)
    pairs = list(load_dataset("parquet", data_files=str(folders["pairs"] / "test.parquet"), split="train"))
    accuracy = PreferenceReward(str(folders["reward"]), batch_size=100).pair_accuracy(pairs)
    evaluate.main(
        evaluate.EvaluateArguments(
            models=[f"{name}={folders[name.lower()]}" for name in ("SFT", "PPO", "IRL", "RLOO", "base")],
            task="arithmetic",
            metrics=["accuracy"],
            reward_model_path=str(folders["reward"]),
            temperatures=list(TEMPERATURES),
            num_prompts=arguments.num_prompts,
            num_samples=arguments.num_samples,
            max_new_tokens=80,
            batch_size=100,
            output_dir=str(output_dir),
        )
    )
    write_report(folders, seconds, accuracy)
    (output_dir / "reward_model.json").write_text(
        json.dumps({"pair_accuracy": accuracy, "pairs": len(pairs)}) + "\n", encoding="utf-8"
    )
    print(f"Reward model: {100 * accuracy:.1f} % of {len(pairs)} held-out pairs.")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes in all.")


def _kept(arguments: RLHFDemoArguments) -> str:
    return f"What was done is in {arguments.output_dir}; the same command begins anew."


make_parser, run = command("rlhf-demo", RLHFDemoArguments, __doc__, main, _kept)

if __name__ == "__main__":
    from trl_irl.commands.console.failures import leave

    leave(run())
