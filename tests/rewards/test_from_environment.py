"""SoftQReward and PreferenceReward named in a recipe of `trl rloo` or `trl grpo`, and in the environment."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from tests.conftest import make_model
from trl_irl import PreferenceReward, SoftQReward
from trl_irl.rewards import from_environment


@pytest.fixture(autouse=True)
def not_set(monkeypatch):
    for name in ("TRL_IRL_REWARD", "TRL_IRL_PREFERENCE_REWARD"):
        monkeypatch.delenv(name, raising=False)


def looked_up():
    """As TRL's script does it."""
    return importlib.import_module("trl_irl.rewards.from_environment").soft_q_reward


@pytest.mark.parametrize(
    "told", ["{}", "{{model: {}, aggregate: mean, clip: 5.0}}", '{{"model": "{}", "gamma": 0.5}}']
)
def test_arguments_of_the_environment(told, model_folder, monkeypatch):
    monkeypatch.setenv("TRL_IRL_REWARD", told.format(model_folder))
    reward = looked_up()
    assert isinstance(reward, SoftQReward) and looked_up() is reward
    assert reward.aggregate == ("mean" if "mean" in told else "sum")
    assert reward.clip == (5.0 if "clip" in told else None) and reward.gamma == (0.5 if "gamma" in told else 1.0)


@pytest.mark.parametrize(
    "told, fragment",
    [
        (None, "The environment has no `TRL_IRL_REWARD`"),
        ("{kind: soft_q}", "names no `model`"),
        ("[1]", "names no `model`"),
        ("{model: x, agregate: mean}", "unknown key `agregate`"),
        ("{model: ./nowhere}", "`TRL_IRL_REWARD`: `model: ./nowhere` is not there"),
        ("outputs/not/there", "`TRL_IRL_REWARD`: `model: outputs/not/there` is not there"),
        ("{model: x", "`TRL_IRL_REWARD={model: x` cannot be read as YAML"),
        ("{model: null}", "names no `model`"),
        ("", "names no `model`"),
        ("{[]: 1}", "TRL_IRL_REWARD"),
        ("{model: x, gamma: 1e-5}", "`gamma: 1e-5` is out of range"),
        ("{model: x, batch_size: '8'}", "`batch_size: 8` must be 1 or more"),
    ],
)
def test_refused(told, fragment, monkeypatch):
    if told is not None:
        monkeypatch.setenv("TRL_IRL_REWARD", told)
    with pytest.raises((ValueError, OSError), match=fragment):
        looked_up()


@pytest.mark.parametrize("name", ["2024", "1e5", "model"])
def test_a_folder_named_as_a_number(name, model_folder, tmp_path, monkeypatch):
    (tmp_path / name).symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRL_IRL_REWARD", name)
    assert isinstance(looked_up(), SoftQReward)
    monkeypatch.setenv("TRL_IRL_REWARD", f"{{model: './{name}', dtype: floaty}}")
    with pytest.raises(ValueError, match="a value of another kind than its key takes.*floaty"):
        looked_up()


def test_a_reward_model(tmp_path, tokenizer, monkeypatch):
    config = make_model("llama").config
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setenv("TRL_IRL_PREFERENCE_REWARD", f"{{model: {tmp_path}, batch_size: 2}}")
    reward = from_environment.preference_reward
    assert isinstance(reward, PreferenceReward) and reward.batch_size == 2
    monkeypatch.setenv("TRL_IRL_PREFERENCE_REWARD", "{model: x, aggregate: mean}")
    with pytest.raises(ValueError, match="unknown key `aggregate`. There are model, batch_size, dtype"):
        from_environment.preference_reward  # noqa: B018


def test_no_other_name():
    with pytest.raises(AttributeError, match="no attribute 'hard_q_reward'"):
        from_environment.hard_q_reward  # noqa: B018


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_a_recipe_of_trl(method, tokenizer, tmp_path):
    """Told of a mapping under `env`, TRL's parser puts the text that Python prints of it into the environment."""
    for seed, name in enumerate(("policy", "reward")):
        make_model("llama", seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": text} for text in ("What is the colour of the sky?", "One", "The quick brown fox")] * 4
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model_name_or_path": str(tmp_path / "policy"),
        "dtype": "float32",
        "dataset_name": str(data),
        "reward_funcs": ["trl_irl.rewards.from_environment.soft_q_reward"],
        "env": {"TRL_IRL_REWARD": {"model": str(tmp_path / "reward"), "aggregate": "mean", "clip": 50.0}},
        "output_dir": str(tmp_path / "run"),
        "max_steps": 2,
        "num_generations": 2,
        "per_device_train_batch_size": 4,
        "max_completion_length": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [Path(sys.executable).with_name("trl"), method, "--config", tmp_path / "recipe.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "rewards/soft_q_mean/mean" in result.stdout


@pytest.mark.parametrize("clip, told", [(None, None), (1e-5, None), ("much", "`clip=much` must be above 0")])
def test_values_as_trl_writes_them(clip, told, model_folder, monkeypatch):
    monkeypatch.setenv("TRL_IRL_REWARD", str({"model": str(model_folder), "clip": clip}))
    if told is None:
        assert from_environment.soft_q_reward.clip == clip
    else:
        with pytest.raises(ValueError, match=told):
            _ = from_environment.soft_q_reward
