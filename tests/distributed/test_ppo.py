"""`trl-irl ppo` on two processes: every launcher with the kinds of reward and policy that it meets there."""

import json
import math
from importlib.metadata import version

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import LORA, QUIET, cpu_twin, finish, launch, needs_deepspeed


pytestmark = pytest.mark.skipif(version("trl") >= "1.13", reason="PPOTrainer is in TRL 1.12 only")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    for seed, name in enumerate(("policy", "other")):
        make_model("llama", seed=seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "other", num_labels=1)
    scorer.save_pretrained(folder / "scorer")
    make_tokenizer().save_pretrained(folder / "scorer")
    texts = ["What is the colour of the sky?", "One", "The quick brown fox", "One two three"]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts * 4))
    return folder


def words(prediction, row):
    return {"words": float(len(prediction.split()))}


REWARDS = {
    "model": {"reward_model_path": "scorer", "save_value_model": True},
    "soft-Q": {"soft_q_model": "other"},
    "function": {"task": "tests.distributed.test_ppo:words", "reward_metric": "words"},
}


@pytest.mark.parametrize(
    "launcher, reward, lora",
    [
        ("ddp", "model", False),
        ("ddp", "function", True),
        pytest.param("zero2", "model", True, marks=needs_deepspeed),
        pytest.param("zero2", "soft-Q", False, marks=needs_deepspeed),
        pytest.param("zero2", "function", False, marks=needs_deepspeed),
    ],
)
def test_two_processes(launcher, reward, lora, inputs, tmp_path):
    keys = {
        k: str(inputs / x) if k.endswith(("path", "_model")) and x is not True else x
        for k, x in REWARDS[reward].items()
    }
    keys |= LORA if lora else {}
    keys |= {
        "model_name_or_path": str(inputs / "policy"),
        "dtype": "float32",
        "dataset_name": str(inputs / "rows.jsonl"),
        "output_dir": str(tmp_path / "run"),
        "response_length": 6,
        "total_episodes": 16,
        "per_device_train_batch_size": 4,
        "num_ppo_epochs": 2,
        "learning_rate": 1e-3,
        **QUIET,
    }
    bf16 = (launcher, reward) == ("zero2", "model")  # as the config is shipped
    keys |= {"bf16": bf16}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    config = cpu_twin(launcher, 2, tmp_path, None if bf16 else "no")
    command = ["trl_irl.cli", "ppo", "--config", tmp_path / "recipe.yaml", "--accelerate_config", config]
    status, stdout, stderr = finish(launch(command))
    assert status == 0, stderr[-4000:]
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    assert [entry["episode"] for entry in history if "episode" in entry] == [8, 16]  # of both ranks together
    assert history[0]["objective/kl"] == pytest.approx(0, abs=0.05 if bf16 else 1e-4)
    assert all(math.isfinite(x) for entry in history for x in entry.values() if isinstance(x, float))
    base = AutoModelForCausalLM.from_pretrained(inputs / "policy")
    policy = AutoModelForCausalLM.from_pretrained(inputs / "policy")
    if lora:
        policy = PeftModel.from_pretrained(policy, tmp_path / "run").merge_and_unload()
    else:
        policy = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    changed = [
        name for name, tensor in base.state_dict().items() if not torch.equal(policy.state_dict()[name], tensor)
    ]
    assert len(changed) == (4 if lora else len(base.state_dict()))
    if keys.get("save_value_model"):
        value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/value_model")
        scorer = AutoModelForSequenceClassification.from_pretrained(inputs / "scorer")
        difference = (value.score.weight - scorer.score.weight).abs().max()
        assert 0 < difference < 0.05  # it was trained, from the reward model's
