"""The `irl` command, launched as a user launches it, on a tiny model and local files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from trl_irl.cli import main as cli
from trl_irl.commands import irl
from trl_irl.commands.console.failures import leave


ROOT = Path(__file__).parents[2]


def write_recipe(folder, model_folder, **overrides):
    keys = {
        "model_name_or_path": str(model_folder),
        "task": "arithmetic",
        "num_train_rows": 40,
        "dataset_test_split": "validation",
        "output_dir": str(folder / "run"),
        "max_length": 256,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 64,
        "learning_rate": 1.0e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "save_strategy": "steps",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        **overrides,
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items() if value is not None))
    return path


def run(*words, check=True):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert not check or result.returncode == 0, result.stderr[-4000:]
    return result


def test_both_launchers_train_evaluate_save_and_resume(model_folder, tmp_path):
    recipe = write_recipe(tmp_path, model_folder, eval_strategy="steps", eval_steps=2, do_eval=True)
    run("trl_irl.cli", "irl", "--config", recipe, "--accelerate_config", "cpu")
    output = tmp_path / "run"
    assert (output / "model.safetensors").is_file() and (output / "tokenizer.json").is_file()
    assert not list(output.glob("pytorch_model*.bin"))
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "td_loss" in entry] == [1, 2, 3, 4]
    assert any("eval_td_loss" in entry for entry in history)
    assert "2409.01369" in (output / "README.md").read_text()
    assert "eval_nll" in json.loads((output / "eval_results.json").read_text())
    AutoTokenizer.from_pretrained(output)
    trained = AutoModelForCausalLM.from_pretrained(output).state_dict()
    before = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in before)

    # The other launcher, two steps, then resumed to four: the same weights as the uninterrupted run.
    config = ROOT / "accelerate_configs/cpu.yaml"
    launch = ["accelerate.commands.launch", "--config_file", config, "-m", "trl_irl.commands.irl", "--config", recipe]
    again = ["--output_dir", tmp_path / "again", "--eval_strategy", "no", "--do_eval", "false"]
    # A constant rate: the two-step run would otherwise decay over two steps.
    run(*launch, *again, "--max_steps", "2", "--lr_scheduler_type", "constant")
    resumed = run(*launch, *again, "--resume_from_checkpoint", "true", "--lr_scheduler_type", "constant")
    assert "starting at step 0" not in resumed.stdout
    whole = ["--output_dir", tmp_path / "whole", "--eval_strategy", "no", "--do_eval", "false"]
    fresh = run(*launch, *whole, "--resume_from_checkpoint", "true", "--lr_scheduler_type", "constant")
    assert "starting at step 0" in fresh.stdout
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("again", "whole")]
    for name, expected in weights[1].items():
        torch.testing.assert_close(weights[0][name], expected, rtol=0, atol=1e-6)


def test_a_model_is_saved_before_an_evaluation_that_fails(model_folder, tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path, model_folder, eval_strategy="no", do_eval=True, save_strategy="no")

    def fails(*args, **kwargs):
        raise ValueError("no room")

    monkeypatch.setattr("trl_irl.IRLTrainer.evaluate", fails)
    with pytest.raises(ValueError, match="no room"):
        irl.run(["--config", str(recipe)])
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert (tmp_path / "run/trainer_state.json").is_file()


@pytest.mark.parametrize("world, run_there", [("2", True), ("2", False), ("1", True)])
def test_a_tracker_of_a_rank_is_closed(world, run_there, monkeypatch):
    """A rank ends without Python's shutdown, at which Weights & Biases would write the end of its log."""
    finished, left = [], []
    tracker = SimpleNamespace(run=object() if run_there else None, finish=lambda exit_code: finished.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(SystemExit):  # after an exit that does nothing here
        leave(0)
    assert (finished, left) == (([0] if run_there else []), [0]) if world == "2" else finished == left == []


@pytest.mark.any_trl
def test_a_misspelled_key_is_one_clear_error(model_folder, tmp_path):
    recipe = write_recipe(tmp_path, model_folder, lerning_rate=1.0)
    result = run("trl_irl.cli", "irl", "--config", recipe, "--accelerate_config", "cpu", check=False)
    assert result.returncode != 0
    assert "unknown key `lerning_rate`; did you mean `learning_rate`?" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"task": None, "dataset_name": "./nowhere.jsonl"}, "nowhere.jsonl` is not there"),
        ({"task": None}, "No data"),
        ({"dataset_test_split": "dev", "eval_strategy": "steps"}, "`dataset_test_split: dev` is not among"),
        ({"model_name_or_path": "./no/such/model"}, "is not there"),
        ({"model_name_or_path": None}, "No model"),
        ({"resume_from_checkpoint": "./no/such/checkpoint"}, "is not a folder"),
    ],
)
def test_errors_before_the_model_loads(overrides, message, model_folder, tmp_path, monkeypatch):
    from trl_irl.commands import irl

    monkeypatch.setattr("trl_irl.trainer.IRLTrainer.__init__", lambda *a, **k: pytest.fail("the model was loaded"))
    recipe = write_recipe(tmp_path, model_folder, **overrides)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        irl.main(*irl.make_parser().parse(["--config", str(recipe)]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("told", ["auto", "64", 64])
def test_logit_buffer_of_a_recipe_and_of_the_command_line(told, model_folder, tmp_path):
    from trl_irl.commands import irl

    read = "auto" if told == "auto" else 64.0
    recipe = write_recipe(tmp_path, model_folder, logit_buffer_mb=told)
    assert irl.make_parser().parse(["--config", str(recipe)])[1].logit_buffer_mb == read
    words = ["--config", str(write_recipe(tmp_path, model_folder)), "--logit_buffer_mb", str(told)]
    assert irl.make_parser().parse(words)[1].logit_buffer_mb == read


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "folder"])
def test_any_local_dataset(suffix, model_folder, tmp_path):
    from datasets import Dataset

    from trl_irl.commands import irl

    rows = Dataset.from_list([{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(8)])
    if suffix == "folder":
        path = tmp_path / "data"
        path.mkdir()
        rows.to_json(path / "train.jsonl")
        rows.to_json(path / "test.jsonl")
    else:
        path = tmp_path / f"rows.{suffix}"
        getattr(rows, {"jsonl": "to_json", "parquet": "to_parquet"}[suffix])(path)
    recipe = write_recipe(
        tmp_path, model_folder, task=None, dataset_name=str(path), num_train_rows=6, max_steps=1, save_strategy="no"
    )
    irl.main(*irl.make_parser().parse(["--config", str(recipe)]))
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_help_and_unknown_commands(capsys):
    assert cli(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert "zero3" in help_text and "  evaluate     sample" in help_text
    assert cli(["irll"]) == 2
    assert "unknown command `irll`" in capsys.readouterr().err
    assert cli(["irl", "--accelerate_config", "zero4"]) == 2
    assert "neither a file nor" in capsys.readouterr().err
    assert cli(["--version"]) == 0


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("num_train_rows", 3, "`num_train_rows: 3` is of `dataset_name`"),
        ("chat_format", True, "`chat_format: True` is of"),
        ("dataset_config", "main", "`dataset_config: main` is of"),
        ("dataset_streaming", True, "Write `streaming: true` beside `datasets`"),
        ("streaming", True, "`test_split_size: 0.5` divides rows that are there"),
        (None, None, "a file. Write `path: json` and `data_files: "),
    ],
)
def test_what_a_mixture_of_datasets_does_not_take(key, value, message, model_folder, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": " b"}) + "\n")
    parts = [{"path": str(rows)}] if key is None else [{"path": "json", "data_files": str(rows)}] * 2
    more = {"task": None, "num_train_rows": None, "datasets": parts} | ({} if key is None else {key: value})
    more |= {"test_split_size": 0.5} if key == "streaming" else {}
    recipe = write_recipe(tmp_path, model_folder, **more)
    assert irl.run(["--config", str(recipe)]) == 2 and message in capsys.readouterr().err


def test_a_mixture_is_divided_alike_every_time(tmp_path):
    """TRL draws its test split without a seed: each process and each resumed run would hold out other rows."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}", "completion": " b"}) + "\n" for i in range(40)))
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig("json", data_files=str(rows))], test_split_size=0.25)
    held_out = [
        irl.load_splits(irl.IRLScriptArguments(task_seed=seed), mixture)["test"]["prompt"] for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1] != held_out[2] and len(held_out[0]) == 10
