"""Recipes of `recipes/arithmetic` run one after the other, each as a user would run it: for demos and studies."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def run_recipe(program: str, recipe: str | Path, model: Path, output_dir: Path, **overrides) -> float:
    """
    Run a recipe of `recipes/arithmetic` in a process of its own; its progress shows, its log goes to a file beside
    `output_dir`.

    Args:
        program (`str`): what reads it: `"trl-irl irl"`, `"trl reward"` and so on.
        recipe (`str` or `Path`): its name, without `.yaml`, or a file elsewhere.
        model (`Path`): folder of the model to train.
        output_dir (`Path`): folder to save it to.
        **overrides: keys of the recipe to override, lists for several values; `None` leaves the recipe's value.

    Returns:
        `float`: seconds it took.
    """
    whose, command = program.split()
    if whose == "trl":
        words = [str(Path(sys.executable).with_name("trl")), command]
        # TRL's own commands leave what they logged in checkpoints only: one at the end.
        overrides = {"save_strategy": "steps", "save_steps": 1_000_000, "save_only_model": True, **overrides}
    else:
        words = [sys.executable, "-m", "trl_irl.cli", command, "--accelerate_config", "cpu"]
    words += ["--config", str(recipe if isinstance(recipe, Path) else recipe_path(recipe))]
    for key, value in {"model_name_or_path": model, "output_dir": output_dir, **overrides}.items():
        if value is not None:
            words += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment["ACCELERATE_USE_CPU"] = "true"
    log = output_dir.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run(words, stdout=file, env=environment).returncode
    if code != 0:
        raise SystemExit(f"`{program}` failed on {recipe}; its log is {log}.")
    return time.perf_counter() - start


def log_history(output_dir: Path) -> list[dict]:
    """What the training that saved to `output_dir` logged."""
    newest = max(output_dir.rglob("trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())["log_history"]


def reward_and_kl(history: list[dict]) -> list[dict]:
    """
    The curve of an RL run of `trl-irl ppo`, `trl rloo` or `trl grpo`: at each `step` the mean `reward` of the sampled
    completions, and their `kl` to the reference in nats a completion.
    """
    points = []
    for entry in history:
        if "objective/kl" in entry:
            points.append({"step": entry["step"], "reward": entry["objective/scores"], "kl": entry["objective/kl"]})
        elif "kl" in entry:  # TRL's RLOO and GRPO log it as a mean over tokens
            kl = entry["kl"] * entry["completions/mean_length"]
            points.append({"step": entry["step"], "reward": entry["reward"], "kl": kl})
    return points


def recipe_path(name: str) -> Path:
    """The file of a recipe of `recipes/arithmetic`."""
    # In a wheel the recipes lie inside the package, in a checkout beside it.
    package = Path(__file__).parents[1]
    candidates = [folder / f"recipes/arithmetic/{name}.yaml" for folder in (package, package.parent)]
    return next(path for path in candidates if path.is_file())
