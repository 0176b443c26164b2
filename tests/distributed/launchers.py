"""
The `irl` command as a user starts it, on CPU twins of the shipped accelerate configs: the files themselves, with only
device and process count changed, and precision where numbers are compared more closely than bfloat16 keeps them.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import make_model, make_tokenizer
from tests.distributed.preloaded import python_of_tests
from tests.trainer.conftest import ROWS


ROOT = Path(__file__).parents[2]
STEPS = 20

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)

LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True, "dtype": "float32"}
METHODS = {
    "full": {},
    "full, kl": {"lambda_kl": 0.5, "value_origin": "reference"},
    "lora": {**LORA, "learning_rate": 1e-2},
    "lora, kl": {**LORA, "lambda_kl": 0.5, "learning_rate": 1e-2},
    "lora, head": {**LORA, "lora_modules_to_save": ["lm_head"], "learning_rate": 1e-2},
    # Adapters in bfloat16 round: with the term at its full size, gradients are far above what that changes.
    "qlora, kl": {**LORA, **NF4, "lambda_kl": 0.5, "td_scale": 1.0},
}
# Keys of any training command: every step logged, nothing saved on the way, on the CPU and quiet.
QUIET = {
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}
CHECKPOINTED = {"gradient_checkpointing": True}
# DeepSpeed keeps weights of less than 100,000 numbers gathered, and a billion numbers in all: a tiny model's, always.
# With limits of 0 each is released after each use, as a large model's are.
RELEASING = " releasing"
NOTHING_KEPT = {
    "zero_optimization": {
        "stage": 3,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    },
    "gradient_accumulation_steps": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_clipping": "auto",
}
ACCUMULATED = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}


def make_inputs(folder, edit_model=lambda model: None):
    """A tiny Llama with its tokenizer in `folder/model` and rows to train on in `folder/rows.jsonl`."""
    model = make_model("llama")
    edit_model(model)
    model.save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


PAIRS = [
    {"prompt": "What is the sky?", "completion": " It is blue."},
    {"prompt": "Count:", "completion": " one two three 1 2 3"},
    {"prompt": "The quick", "completion": " brown"},
    {"prompt": "One", "completion": " two three"},
]


def make_pairs(folder):
    """As [`make_inputs`], with prompts and completions alone."""
    make_inputs(folder)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return folder


def cpu_twin(name, processes, folder, precision="no"):
    """The path of a copy of a shipped config. With `precision=None` it keeps its own, which is bfloat16."""
    config = yaml.safe_load((ROOT / f"accelerate_configs/{name.removesuffix(RELEASING)}.yaml").read_text())
    config |= {"use_cpu": True, "num_processes": processes, "main_process_port": 0}
    config |= {"mixed_precision": precision} if precision else {}
    config.pop("gpu_ids", None)
    if name.endswith(RELEASING):
        (folder / "deepspeed.json").write_text(json.dumps(NOTHING_KEPT | {"bf16": {"enabled": precision is None}}))
        config["deepspeed_config"] = {"deepspeed_config_file": str(folder / "deepspeed.json"), "zero3_init_flag": True}
        del config["mixed_precision"]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def launch(words, preloaded=True):
    """
    `python -m` with these words, from the project's folder, one thread a process and offline. With `preloaded` it and
    the ranks that torch's launcher starts are forks of a Python with all imports.
    """
    python = python_of_tests() if preloaded else sys.executable
    given = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "PYTHON_EXEC": python}
    return subprocess.Popen(
        [python, "-m", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(inputs, output, launcher, processes, by="trl-irl", preloaded=False, **overrides):
    """
    A run under way, started by `trl-irl irl`, by `accelerate launch -m trl_irl.commands.irl`, or (`by="observed"`, and
    always for FSDP) by `accelerate launch` of `observed_irl.py`; `preloaded` as for [`launch`].
    """
    output.mkdir(exist_ok=True)
    keys = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "rows.jsonl"),
        "output_dir": str(output),
        "lambda_td": 0.3,
        "terminal_value": "zero",
        "max_steps": STEPS,
        "per_device_train_batch_size": len(ROWS) // processes,
        "learning_rate": 1.0e-3,
        "lambda_td_warmup_steps": 5,
        **QUIET,
        **overrides,
    }
    recipe = output / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(keys))
    config = str(cpu_twin(launcher, processes, output, None if keys["bf16"] else "no"))
    command = ["trl_irl.cli", "irl", "--config", str(recipe), "--accelerate_config", config]
    if by != "trl-irl" or launcher == "fsdp2":
        plain = by == "accelerate" and launcher != "fsdp2"
        module = "trl_irl.commands.irl" if plain else "tests.distributed.observed_irl"
        command = ["accelerate.commands.launch", "--config_file", config, "-m", module, "--config", str(recipe)]
    return launch(command, preloaded)


def finish(process, timeout=300):
    """Wait for a run: its status, stdout and stderr. One that does not end is killed, and `TimeoutExpired` raised."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, stdout, stderr


def kill(process):
    """kill -9 the launcher and its ranks, to which torch's launcher gives sessions of their own."""
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
        victim.kill()
    process.communicate()


def run(inputs, name, launcher, processes, by="accelerate", **overrides):
    """Log entries of each step, and the saved weights, of a run that must end well."""
    output = inputs / name
    for _ in range(2):
        status, _, stderr = finish(start(inputs, output, launcher, processes, by, preloaded=True, **overrides))
        # Seen once in forty runs, after everything was saved: a communication thread of torch or DeepSpeed aborts the
        # process while it ends. That is not what is tested here; any other failure is.
        if "terminate called without an active exception" not in stderr:
            break
    assert status == 0, stderr[-5000:]
    return history(output), weights(output)


def history(output):
    entries = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "nll" in entry]


def weights(output):
    name = "adapter_model" if (output / "adapter_model.safetensors").exists() else "model"
    return load_file(output / f"{name}.safetensors")


def largest_difference(actual, expected):
    """Largest absolute difference between two runs' weights, in float64."""
    assert actual.keys() == expected.keys()
    return max((actual[name].double() - tensor.double()).abs().max().item() for name, tensor in expected.items())
