"""Rewards by name in `trl rloo` on two processes: whole on every rank, also where ZeRO-3 shards the policy."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET, cpu_twin, finish, launch, needs_deepspeed
from trl_irl import PreferenceReward, SoftQReward


@pytest.mark.parametrize("launcher", [pytest.param("zero3", marks=needs_deepspeed)])
def test_two_processes(launcher, tmp_path):
    for seed, name in enumerate(("policy", "other")):
        make_model("llama", seed=seed).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "other", num_labels=1)
    torch.nn.init.normal_(scorer.score.weight)
    scorer.save_pretrained(tmp_path / "scorer")
    make_tokenizer().save_pretrained(tmp_path / "scorer")
    texts = ["What is the colour of the sky?", "One", "The quick brown fox", "One two three"]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts * 4))
    recipe = {
        "model_name_or_path": str(tmp_path / "policy"),
        "dtype": "float32",
        "dataset_name": str(tmp_path / "rows"),
        "output_dir": str(tmp_path / "run"),
        "reward_funcs": ["tests.distributed.observed_reward.observed"],
        "env": {
            "TRL_IRL_REWARD": {"model": str(tmp_path / "other"), "aggregate": "mean"},
            "TRL_IRL_PREFERENCE_REWARD": {"model": str(tmp_path / "scorer")},
            "OBSERVED": str(tmp_path / "seen"),
        },
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 6,
        "max_steps": 2,
        "beta": 0.0,
        **QUIET,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = cpu_twin(launcher, 2, tmp_path)
    words = ["accelerate.commands.launch", "--config_file", config, "-m", "trl.scripts.rloo"]
    for _ in range(2):
        for seen in tmp_path.glob("seen-*.jsonl"):
            seen.unlink()
        status, stdout, stderr = finish(launch([*words, "--config", tmp_path / "recipe.yaml"]))
        # TRL's own script ends as Python does: now and then torch's threads abort it then, after all was saved.
        if "terminate called without an active exception" not in stderr:
            break
    assert status == 0, stderr[-4000:]
    rows = [json.loads(line) for path in tmp_path.glob("seen-*.jsonl") for line in path.read_text().splitlines()]
    assert len(rows) == 8  # two steps of two completions on two ranks
    prompts, ids, rewards, preferences = map(list, zip(*rows, strict=True))
    assert rewards == pytest.approx(
        SoftQReward(str(tmp_path / "other"), aggregate="mean")(prompts, None, ids), abs=1e-5
    )
    judge = PreferenceReward(str(tmp_path / "scorer"))
    texts = [judge.tokenizer.decode(one, skip_special_tokens=True) for one in ids]
    assert preferences == pytest.approx(judge(prompts, texts, ids), abs=1e-5)
