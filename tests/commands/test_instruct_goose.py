"""InstructGoose's README example, as recipes/imdb/instruct_goose.py has it, on a tiny GPT-2 and a few reviews."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import make_model, make_tokenizer


SCRIPT = Path(__file__).parents[2] / "recipes/imdb/instruct_goose.py"


@pytest.mark.skipif(version("trl") >= "1.13", reason="PPOTrainer is in TRL 1.12 only")
def test_the_script(tmp_path):
    make_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None  # as GPT-2's
    tokenizer.save_pretrained(tmp_path / "gpt2")
    reviews = [f"The quick brown fox jumps over the lazy dog. {i}" for i in range(12)]
    (tmp_path / "imdb.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in reviews))
    words = ["--model", tmp_path / "gpt2", "--dataset", tmp_path / "imdb.jsonl", "--output_dir", tmp_path / "run"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [sys.executable, SCRIPT, *words, "--total_episodes", "8"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["saved"] == str(tmp_path / "run") and told["first"] != told["last"]
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("gpt2", "run"))
    changed = [name for name in before if not torch.equal(before[name], after[name][: len(before[name])])]
    assert changed
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.config.vocab_size == 301  # one more, to pad with
