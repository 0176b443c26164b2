"""
The `irl` command under every launcher that the recipes offer, each on two CPU processes, against one process: the same
losses and weights. The accelerate configs are the shipped files; only device, precision and process count are changed.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import make_model
from tests.trainer.conftest import ROWS


ROOT = Path(__file__).parents[2]
STEPS = 20
ROWS_A_STEP = len(ROWS)

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
METHODS = {
    "full": {},
    "full, kl": {"lambda_kl": 0.5},
    "lora, kl": {**LORA, "lambda_kl": 0.5, "learning_rate": 1e-2},
}
CHECKPOINTED = {"gradient_checkpointing": True}
ACCUMULATED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launchers")
    make_model("llama").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def cpu_twin(name, processes, folder):
    config = yaml.safe_load((ROOT / f"accelerate_configs/{name}.yaml").read_text())
    config |= {"use_cpu": True, "num_processes": processes, "mixed_precision": "no", "main_process_port": 0}
    config.pop("gpu_ids", None)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(folder, name, launcher, processes, **overrides):
    """Losses of each step, and the saved weights."""
    output = folder / name
    output.mkdir()
    keys = {
        "model_name_or_path": str(folder / "model"),
        "dataset_name": str(folder / "rows.jsonl"),
        "output_dir": str(output),
        "lambda_td": 0.3,
        "max_steps": STEPS,
        "per_device_train_batch_size": ROWS_A_STEP // processes,
        "learning_rate": 1.0e-3,
        "lambda_td_warmup_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        **overrides,
    }
    (output / "recipe.yaml").write_text(yaml.safe_dump(keys))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(cpu_twin(launcher, processes, output)), "-m", "trl_irl.commands.irl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    for _ in range(2):
        result = subprocess.run(
            [*command, "--config", str(output / "recipe.yaml")],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        # Seen once in forty runs, after everything was saved: a communication thread of torch or DeepSpeed aborts the
        # process while it ends. That is not what is tested here; any other failure is.
        if "terminate called without an active exception" not in result.stderr:
            break
    assert result.returncode == 0, result.stderr[-5000:]
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    weights = load_file(output / ("adapter_model.safetensors" if overrides.get("use_peft") else "model.safetensors"))
    return [entry for entry in history if "nll" in entry], weights


@pytest.fixture(scope="module")
def one_process(folder):
    """`one_process(method)`: the run that the others must equal, made once a method."""

    @functools.cache
    def reference(method):
        return run(folder, f"one-{method}", "cpu", 1, **METHODS[method])

    return reference


@pytest.mark.parametrize(
    "launcher, method, options",
    [
        ("ddp", "full", {}),
        ("ddp", "lora, kl", CHECKPOINTED),
        ("ddp", "full, kl", ACCUMULATED),
        ("zero2", "full", {}),
        ("zero2", "lora, kl", ACCUMULATED),
        ("zero3", "full", CHECKPOINTED),
        ("zero3", "full, kl", ACCUMULATED),
        ("zero3", "lora, kl", {}),
        ("zero3", "lora, kl", CHECKPOINTED),
        ("fsdp2", "full", {}),
        ("fsdp2", "full", CHECKPOINTED | ACCUMULATED),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_two_processes_train_as_one(launcher, method, options, folder, one_process):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    expected, expected_weights = one_process(method)
    name = "-".join([launcher, method, *options])
    actual, weights = run(folder, name, launcher, 2, **METHODS[method], **options)
    assert len(actual) == len(expected) == STEPS
    for metric in ("loss", "nll", "td_loss", "reward_std") + (("kl",) if "kl" in method else ()):
        assert actual[0][metric] == pytest.approx(expected[0][metric], rel=1e-5, abs=1e-6), metric
        ours, theirs = ([entry[metric] for entry in history] for history in (actual, expected))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), metric
    assert [entry["lambda_td"] for entry in actual] == pytest.approx([entry["lambda_td"] for entry in expected])
    assert weights.keys() == expected_weights.keys()
    for key, tensor in expected_weights.items():
        torch.testing.assert_close(weights[key], tensor, rtol=0, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
