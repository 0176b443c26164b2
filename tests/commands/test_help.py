"""`--help` in a screen or three: our keys in groups, examples on top; `--help-all` has every key."""

import importlib
import re
import runpy
import sys
from dataclasses import fields

import pytest

from trl_irl import GAILConfig, IRLConfig, OnlineIRLConfig
from trl_irl.cli import COMMANDS, module_of
from trl_irl.commands import chat, evaluate, gail, irl, online_irl, prepare, recipes, reward_data, score
from trl_irl.commands.evaluate import EvaluateArguments
from trl_irl.commands.score import ScoreArguments
from trl_irl.demos import demo, rlhf_demo


TRAINING = {"irl": (irl, IRLConfig), "online-irl": (online_irl, OnlineIRLConfig), "gail": (gail, GAILConfig)}


def shown(module, capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        module.run([*words])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def keys(text):
    return re.findall(r"^  --(\w+)", text, re.MULTILINE)


@pytest.mark.parametrize("command", TRAINING)
def test_ours_first(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    module, config = TRAINING[command]
    text = shown(module, capsys, "--help")
    lines = text.splitlines()
    examples = [line for line in lines if line.startswith(("  trl-irl ", "  accelerate "))]
    assert len(lines) < 230 and all(len(line) <= 100 or line in examples for line in lines)
    assert f"trl-irl {command} --config recipes/" in "\n".join(lines[:12])  # an example
    groups = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert groups == ["objective", "model", "data", "training", "generation", "output", "everywhere"]
    own = set(config.__annotations__) - {field.name for base in config.__bases__ for field in fields(base)}
    assert own <= set(keys(text))  # every key that this package adds
    assert {"model_name_or_path", "learning_rate", "output_dir", "config", "accelerate_config"} <= set(keys(text))
    assert "adam_beta2" not in text and len(keys(text)) == len(set(keys(text)))
    everything = shown(module, capsys, "--help-all")
    assert all(f"--{action.dest}" in everything for action in module.make_parser()._actions)
    every = {action.dest for action in module.make_parser()._actions} - {"help"}
    assert f"The {len(every - set(keys(text)))} further keys" in " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_a_command_helps_as_its_module_does(command, capsys, monkeypatch):
    """`trl-irl irl` runs the module as `__main__`, where the types of its own classes are then looked up."""
    if command == "ppo":
        pytest.importorskip("trl.experimental.ppo", reason="TRL >= 1.13 has no PPOTrainer")
    monkeypatch.setenv("COLUMNS", "100")
    name = module_of(command)
    monkeypatch.setattr(sys, "argv", [f"trl-irl {command}", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(name, run_name="__main__")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert keys(text) == keys(shown(importlib.import_module(name), capsys, "--help")) != []
    if command in (*TRAINING, "ppo"):
        assert {"model_name_or_path", "learning_rate", "dataset_name"} <= set(keys(text))
    if command in TRAINING:
        assert {"task", "source_column", "num_train_rows", "task_seed"} <= set(keys(text))


@pytest.mark.parametrize("module, kind", [(evaluate, EvaluateArguments), (score, ScoreArguments)])
def test_commands_of_ours_show_all(module, kind, capsys):
    text = shown(module, capsys, "-h")
    assert {field.name for field in fields(kind)} <= set(keys(text)) and "trl-irl" in text.split("keys:")[0]


@pytest.mark.parametrize("module", [chat, demo, rlhf_demo, prepare, recipes, reward_data])
def test_every_command_has_one(module, capsys):
    assert shown(module, capsys, "--help").startswith("usage: trl-irl ")
