"""Recipes of `recipes/arithmetic`, each run in a process of its own: for demos and studies."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..commands.console.recipe_file import shipped_recipes


def words_of(keys: Mapping[str, Any]) -> list[str]:
    """Keys as a command line has them, a list as several words; `None` leaves a key out."""
    given = {key: value if isinstance(value, list) else [value] for key, value in keys.items() if value is not None}
    return [word for key, values in given.items() for word in (f"--{key}", *map(str, values))]


def run_recipe(
    program: str, recipe: str | Path, model: Path, output_dir: Path, threads: int | None = None, **overrides
) -> float:
    """
    Run a recipe of `recipes/arithmetic` in a process of its own; its log goes to a file beside `output_dir`.

    Args:
        program (`str`): what reads it: `"trl-irl irl"`, `"trl reward"` and so on.
        recipe (`str` or `Path`): its name, without `.yaml`, or a file elsewhere.
        model (`Path`): folder of the model to train.
        output_dir (`Path`): folder to save it to.
        threads (`int`, *optional*): threads to compute with, where several recipes run at a time: then its progress
            goes to the log too, instead of the terminal.
        **overrides: keys of the recipe to override, lists for several values; `None` leaves the recipe's value.

    Returns:
        `float`: seconds it took.
    """
    # What the two programs launch, without their launcher: it would set the number of threads, and import for seconds.
    whose, command = program.split()
    words = [sys.executable, "-m", f"{'trl.scripts' if whose == 'trl' else 'trl_irl.commands'}.{command}"]
    if whose == "trl":
        # TRL's own commands leave what they logged in checkpoints only: one at the end.
        overrides = {"save_strategy": "steps", "save_steps": 1_000_000, "save_only_model": True, **overrides}
    words += ["--config", str(recipe if isinstance(recipe, Path) else recipe_path(recipe))]
    words += words_of({"model_name_or_path": model, "output_dir": output_dir, **overrides})
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true", "TRL_IRL_PART_OF": "a demo"}  # which speaks when it is interrupted
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    log = output_dir.with_suffix(".log")
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as file:
        stderr = None if threads is None else subprocess.STDOUT
        code = subprocess.run(words, stdout=file, stderr=stderr, env=environment).returncode
    if code != 0:
        raise SystemExit(f"`{program}` failed on {recipe}; its log is {log}.")
    return time.perf_counter() - start


def log_history(output_dir: Path) -> list[dict]:
    """What the training that saved to `output_dir` logged."""
    newest = max(output_dir.rglob("trainer_state.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text(encoding="utf-8"))["log_history"]


def reward_and_kl(history: list[dict]) -> list[dict]:
    """
    The curve of an RL run of `trl-irl ppo`, `trl rloo` or `trl grpo`: at each `step` the mean `reward` of the sampled
    completions, and their `kl` to the reference in nats per completion.
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
    return shipped_recipes()[f"recipes/arithmetic/{name}.yaml"]
