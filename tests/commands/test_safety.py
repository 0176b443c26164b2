"""Nothing runs, and nothing is told, that the user did not ask for."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.commands.test_irl import ROOT, write_recipe
from tests.conftest import make_model
from tests.distributed.launchers import finish, make_inputs, start
from trl_irl.commands import irl


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_remote_code_is_off_unless_set(model_folder, tmp_path):
    recipe = write_recipe(tmp_path, model_folder)
    training_args = irl.make_parser().parse(["--config", str(recipe)])[1]
    assert training_args.trust_remote_code is False


def test_a_models_own_code_does_not_run(model_folder, tmp_path, capfd):
    """A model whose config names a Python file beside it, as remote code does."""
    folder = tmp_path / "model"
    make_model("qwen2").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, "model_type": "of_its_own"}
    (folder / "config.json").write_text(json.dumps(config | own))
    assert irl.run(["--config", str(write_recipe(tmp_path, folder))]) == 2
    assert "trust_remote_code" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.any_trl
@pytest.mark.parametrize("launcher", ["cpu", "zero3"])
def test_a_checkpoint_that_is_not_what_it_seems(launcher, tmp_path):
    """Pickles in a checkpoint are loaded as tensors or not at all, DeepSpeed's too."""
    if launcher == "zero3" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    inputs = make_inputs(tmp_path)
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "resume_from_checkpoint": True}
    options |= {"preloaded": True}
    processes = 1 if launcher == "cpu" else 2
    output = tmp_path / "run"
    assert finish(start(inputs, output, launcher, processes, **options))[0] == 0
    pattern = "optimizer.pt" if launcher == "cpu" else "*optim_states.pt"
    for path in (output / "checkpoint-2").rglob(pattern):
        torch.save({"state": Payload(tmp_path / "ran")}, path)
    status, _, stderr = finish(start(inputs, output, launcher, processes, **{**options, "max_steps": 4}))
    assert status != 0 and "eights only load failed" in stderr
    assert not (tmp_path / "ran").exists()


def test_a_hub_token_is_in_no_file_and_no_log(model_folder, tmp_path):
    """Given as a key, it goes to where huggingface_hub looks, and nowhere else."""
    token = "hf_" + "Secret" * 5
    options = {"hub_token": token, "log_level": "debug", "logging_steps": 1, "report_to": "tensorboard"}
    if importlib.util.find_spec("tensorboard") is None:
        options["report_to"] = "none"
    recipe = write_recipe(tmp_path, model_folder, **options)
    words = ["--config", str(recipe), "--accelerate_config", "cpu"]
    result = subprocess.run(
        [sys.executable, "-m", "trl_irl.cli", "irl", *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_DEBUG_VERBOSITY": "detail"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert token not in result.stdout + result.stderr
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "config.json", "trainer_state.json"} <= {path.name for path in files}
    for path in files:
        assert token.encode() not in path.read_bytes(), path


def test_a_disk_that_is_too_small_is_refused_before_the_training(model_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**12))
    assert irl.run(["--config", str(write_recipe(tmp_path, model_folder))]) != 0
    told = capfd.readouterr().err
    assert re.search(r"output_dir: \S+ is on a disk with 0 MiB left, and the trained weights alone take \d+ MiB", told)
    assert not (tmp_path / "run").exists()
