"""The whole RLHF demo, cut to a few steps, launched as `make rlhf-demo` launches it."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from trl_irl.demos.recipe_runs import log_history, reward_and_kl


def run(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "trl_irl.cli", "rlhf-demo", *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRL_IRL_REWARD": "of the shell, which the recipe overrides"},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(version("trl") >= "1.13", reason="PPOTrainer is in TRL 1.12 only")
def test_rlhf_demo(tmp_path):
    output = tmp_path / "rlhf"
    words = ["--output_dir", str(output), "--max_steps", "2", "--num_prompts", "3", "--num_samples", "2"]
    result = run(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    report = (output / "report.md").read_text()
    with (output / "metrics.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [(c["model"], float(c["temperature"])) for c in cells] == [
        (model, t) for model in ("SFT", "PPO", "IRL", "RLOO", "base") for t in (0.0, 1.0)
    ]
    for cell in cells:
        assert f"{100 * float(cell['win_rate']):.1f} %" in report
    accuracy = json.loads((output / "reward_model.json").read_text())["pair_accuracy"]
    assert f"right on\n{100 * accuracy:.1f} % of 200 held-out pairs" in report
    assert f"Reward model: {100 * accuracy:.1f} %" in result.stdout
    for name, steps in (("ppo", [1, 2]), ("rloo", [1])):  # the second step of rloo is on the first one's samples
        curve = reward_and_kl(log_history(output / name))
        assert curve[0]["kl"] == pytest.approx(0, abs=1e-3) and [point["step"] for point in curve] == steps
    assert "training.png" in report and (output / "training.png").stat().st_size > 10_000


@pytest.mark.skipif(version("trl") < "1.13", reason="this TRL has PPOTrainer")
def test_a_trl_without_ppo_says_so_before_anything_runs(tmp_path):
    result = run("--output_dir", str(tmp_path / "rlhf"), cwd=tmp_path)
    assert result.returncode != 0 and 'pip install ".[ppo]"' in result.stderr
    assert not (tmp_path / "rlhf").exists()
