"""The whole demo, cut to a few steps, launched as `make demo` launches it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from trl_irl.demos.demo import build_base_model
from trl_irl.tasks.arithmetic import make_arithmetic


ROOT = Path(__file__).parents[2]


def test_tokenizer_of_the_base_model_keeps_text_and_numbers(tmp_path):
    build_base_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for row in make_arithmetic(num_train=200)["train"]:
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
        # Tokenised apart or together, the prompt is a prefix: nothing of it is ever scored.
        prompt = tokenizer(row["prompt"])["input_ids"]
        assert ids[: len(prompt)] == prompt


@pytest.mark.any_trl
def test_demo(tmp_path):
    output = tmp_path / "demo"
    words = ["--output_dir", str(output), "--max_steps", "2", "--num_prompts", "3", "--num_samples", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "trl_irl.cli", "demo", *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "self_bleu" in result.stdout and "Report: " in result.stdout
    assert "%|" not in result.stderr + result.stdout  # no bars on a pipe
    report = (output / "report.md").read_text()
    with (output / "metrics.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [(c["model"], float(c["temperature"])) for c in cells] == [
        (model, t) for model in ("MLE", "IRL") for t in (0.0, 0.3, 0.5, 0.7, 1.0)
    ]
    for cell in cells:
        assert f"{100 * float(cell['accuracy']):.1f} %" in report
    for name in ("training.png", "performance_diversity.png"):
        assert name in report and (output / name).stat().st_size > 10_000
