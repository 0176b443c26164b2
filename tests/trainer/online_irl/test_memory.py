"""What a step of online IRL takes beside an offline one on as many tokens, measured as the benchmark does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[3]


@pytest.mark.any_trl
def test_memory_of_an_online_step(tmp_path):
    words = ["--model-size", "40m-untied", "--vocab", "8192", "--batch-size", "16", "--steps", "2", "--warmup", "1"]
    words += ["--threads", "1", "--variants", "IRLTrainer", "OnlineIRLTrainer", "--json", str(tmp_path / "found.json")]
    subprocess.run([sys.executable, "benchmarks/irl_step.py", *words], cwd=ROOT, check=True, capture_output=True)
    offline, online = json.loads((tmp_path / "found.json").read_text())
    assert online["variant"] == "OnlineIRLTrainer"
    assert offline["peak_mib"] > 100
    assert online["peak_mib"] < 1.3 * offline["peak_mib"]
