"""The `ppo` command: text to tokens, where the reward comes from, what is saved, and what is refused at once."""

import json
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import PreferenceReward
from trl_irl.commands import ppo


HAS_PPO = version("trl") < "1.13"
needs_ppo = pytest.mark.skipif(not HAS_PPO, reason="PPOTrainer is in TRL 1.12 only")

PROMPTS = ["What is the colour of the sky?", "One", "The quick brown fox", "One two", "What is the dog?", "1 2 3"]
ROWS = [{"prompt": text, "completion": f" {text.split()[-1]}"} for text in PROMPTS + [f"{p} is" for p in PROMPTS]]
SEEN = []


def vowels(prediction, row):
    """A score of the kind `evaluate` takes; the first test looks at what it was asked."""
    SEEN.append((prediction, row))
    return {"vowels": float(sum(c in "aeiou" for c in prediction))}


def fails_later(prediction, row):
    SEEN.append(prediction)
    if len(SEEN) > 9:  # one look before anything loads, and the first step's eight
        raise KeyError("no such answer")
    return {"vowels": 1.0}


def gives_nan_later(prediction, row):
    SEEN.append(prediction)
    return {"vowels": 1.0 if len(SEEN) < 10 else float("nan")}


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A policy, another model of the same tokens, and a reward model, each with the tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    make_model("llama", seed=1).save_pretrained(folder / "policy")
    make_model("llama", seed=2).save_pretrained(folder / "other")
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder / "other", num_labels=1)
    torch.nn.init.normal_(scorer.score.weight, std=0.5)
    scorer.save_pretrained(folder / "scorer")
    for name in ("policy", "other", "scorer"):
        make_tokenizer().save_pretrained(folder / name)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def recipe(models, tmp_path):
    def write(**keys):
        keys = {
            "model_name_or_path": str(models / "policy"),
            "dtype": "float32",
            "task": "tests.commands.test_ppo:vowels",
            "dataset_name": str(models / "rows.jsonl"),
            "output_dir": str(tmp_path / "run"),
            "response_length": 6,
            "total_episodes": 16,
            "per_device_train_batch_size": 8,
            "local_rollout_forward_batch_size": 4,
            "num_ppo_epochs": 2,
            "learning_rate": 1e-2,
            **QUIET,
            **keys,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return path

    return write


def made(path):
    return ppo.make_trainer(*ppo.make_parser().parse(["--config", str(path)]))


def weights(folder):
    return load_file(folder / "model.safetensors")


@needs_ppo
def test_the_checkers_reward(recipe, models, tmp_path, capsys):
    assert ppo.run(["--config", str(recipe(reward_metric="vowels"))]) == 0
    asked = SEEN[1:]  # the first was the look before anything loaded
    assert len(asked) == 16 and all(row in [{**r, "input_ids": row["input_ids"]} for r in ROWS] for _, row in asked)
    assert not any("<eos>" in text or "<pad>" in text for text, _ in asked)
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    scores = [entry["objective/scores"] for entry in history if "objective/scores" in entry]
    by_hand = [sum(c in "aeiou" for c in text) for text, _ in asked]
    assert scores == pytest.approx([sum(by_hand[:8]) / 8, sum(by_hand[8:]) / 8])
    before, after = weights(models / "policy"), weights(tmp_path / "run")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert "Policy, tokenizer and trainer state saved to" in capsys.readouterr().out


@needs_ppo
def test_ids_are_text(recipe, models, tmp_path):
    """PPO from text equals PPO from the same ids, given as such."""
    tokenizer = make_tokenizer()
    rows = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in ROWS]
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward = {"task": None, "reward_model_path": str(models / "scorer")}
    assert ppo.run(["--config", str(recipe(**reward, output_dir=str(tmp_path / "text")))]) == 0
    ids = {"dataset_name": str(tmp_path / "ids.jsonl"), "output_dir": str(tmp_path / "ids")}
    assert ppo.run(["--config", str(recipe(**reward, **ids))]) == 0
    text, ids = weights(tmp_path / "text"), weights(tmp_path / "ids")
    assert all(torch.equal(text[name], ids[name]) for name in text)


@needs_ppo
def test_messages_are_prompts(recipe, models, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = made(
        recipe(task=None, reward_model_path=str(models / "scorer"), dataset_name=str(tmp_path / "chat.jsonl"))
    )
    ids = make_tokenizer().apply_chat_template(rows[0]["prompt"], add_generation_prompt=True, return_dict=True)
    assert trainer.train_dataset[0]["input_ids"] == ids["input_ids"]


@needs_ppo
def test_a_reward_model_reads_messages_where_it_was_trained(recipe, models, tmp_path):
    """At the end of what the chat template writes, which for this one is the newline after the EOS of the turn."""
    from trl_irl.trainer.ppo.calibration import calibrate
    from trl_irl.trainer.ppo.inputs import demonstrations_of

    for name, source in (("policy", "policy"), ("judge", "scorer")):
        shutil.copytree(models / source, tmp_path / name)
        tokenizer = make_tokenizer()
        tokenizer.eos_token = "<|im_end|>"
        tokenizer.save_pretrained(tmp_path / name)
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["completion"].strip()}],
        }
        for row in ROWS
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = made(
        recipe(
            task=None,
            model_name_or_path=str(tmp_path / "policy"),
            reward_model_path=str(tmp_path / "judge"),
            dataset_name=str(tmp_path / "chat.jsonl"),
        )
    )
    ppo.train(trainer)  # it runs
    judge = PreferenceReward(str(tmp_path / "judge"))
    expected = judge([row["prompt"] for row in rows], [row["completion"] for row in rows])
    as_text = [{**row, "completion": row["completion"][0]["content"]} for row in rows]
    demonstrations = demonstrations_of(as_text, trainer.processing_class)
    mean, std = calibrate(trainer.reward_model, demonstrations, trainer.processing_class.pad_token_id)
    assert (mean, std) == pytest.approx((np.mean(expected), np.std(expected)), abs=1e-4)
    at_eos = judge.of_ids([prompt + response for prompt, response in demonstrations])
    assert abs(np.mean(at_eos) - mean) > 1e-3


@needs_ppo
def test_long_prompts_are_dropped_and_counted(recipe, models, capsys):
    tokenizer = make_tokenizer()
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in ROWS]
    limit = max(map(len, prompts)) - 1
    trainer = made(recipe(reward_metric="vowels", max_prompt_length=limit))
    kept = [ids for ids in prompts if len(ids) <= limit]
    assert [row["input_ids"] for row in trainer.train_dataset] == kept and 8 <= len(kept) < len(ROWS)
    assert f"train: {len(ROWS) - len(kept)} of {len(ROWS)} prompts are empty or longer" in capsys.readouterr().out


@needs_ppo
def test_the_value_model_starts_from_the_reward_and_is_saved(recipe, models, tmp_path):
    path = recipe(task=None, reward_model_path=str(models / "scorer"), save_value_model=True)
    trainer = made(path)
    scorer = AutoModelForSequenceClassification.from_pretrained(models / "scorer")
    own = trainer.value_model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in scorer.state_dict().items())
    ppo.train(trainer)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/value_model")
    for name, tensor in trainer.accelerator.unwrap_model(trainer.model).value_model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], tensor)
    assert not torch.equal(saved.score.weight, scorer.score.weight)  # it was trained
    again = made(recipe(reward_metric="vowels", value_model_path=str(tmp_path / "run/value_model")))
    assert torch.equal(again.value_model.score.weight, saved.score.weight)


@needs_ppo
@pytest.mark.parametrize("source", ["reward_model_path", "soft_q_model"])
def test_a_reward_calibrated_on_demonstrations(source, recipe, models):
    """Demonstrations get 0 on average; what IRL learned, which has no scale of its own, a deviation of 1."""
    from trl.experimental.utils import get_reward

    path = str(models / {"reward_model_path": "scorer", "soft_q_model": "other"}[source])
    plain = made(recipe(task=None, **{source: path}))
    trainer = made(recipe(task=None, **{source: path}, normalize_reward=True, reward_clip=1.5))
    tokenizer = make_tokenizer()
    found = {}
    for name, model in (("plain", plain.reward_model), ("calibrated", trainer.reward_model)):
        found[name] = []
        for row in ROWS:
            prompt = tokenizer(row["prompt"])["input_ids"]
            ids = tokenizer(row["prompt"] + row["completion"] + "<eos>")["input_ids"]
            if source == "soft_q_model":
                model.backbone.prompt_width = len(prompt)
            with torch.no_grad():
                found[name].append(get_reward(model.eval(), torch.tensor([ids]), 0, len(prompt))[1].item())
    rewards = torch.tensor(found["plain"], dtype=torch.float64)
    scale = rewards.std(correction=0) if source == "soft_q_model" else 1.0
    expected = ((rewards - rewards.mean()) / scale).clamp(-1.5, 1.5)
    assert found["calibrated"] == pytest.approx(expected.tolist(), abs=1e-4)


@needs_ppo
def test_lora_trains_adapters_against_the_policy_without_them(recipe, models, tmp_path):
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"]}
    trainer = made(recipe(soft_q_model=str(models / "other"), task=None, **lora))
    assert trainer.ref_model is None
    ppo.train(trainer)
    first = trainer.state.log_history[0]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4)  # the adapter starts as nothing
    saved = sorted(path.name for path in (tmp_path / "run").glob("*.safetensors"))
    assert saved == ["adapter_model.safetensors"]


@needs_ppo
@pytest.mark.parametrize(
    "function, fragment",
    [("fails_later", "The reward function failed: KeyError: 'no such answer'"), ("gives_nan_later", "gave nan for a")],
)
def test_a_reward_that_fails_under_way(function, fragment, recipe, tmp_path, capsys):
    keys = {"task": f"tests.commands.test_ppo:{function}", "reward_metric": "vowels"}
    keys |= {"save_strategy": "steps", "save_steps": 1, "total_episodes": 64}
    assert ppo.run(["--config", str(recipe(**keys))]) == 1
    error = capsys.readouterr().err
    assert error.count("trl-irl ppo: error: ") == 1 and fragment in error
    AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint-1")  # what was saved stays


@needs_ppo
def test_generations_at_evaluations(recipe, models, tmp_path):
    keys = {"eval_strategy": "steps", "eval_steps": 1, "eval_generations": 3, "eval_max_new_tokens": 4}
    assert ppo.run(["--config", str(recipe(reward_metric="vowels", **keys))]) == 0
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    assert sum("eval_vowels" in entry for entry in history) == 2
    assert sorted(path.name for path in (tmp_path / "run/generations").iterdir()) == ["step-1.csv", "step-2.csv"]


@needs_ppo
def test_generations_without_an_evaluation_are_refused(recipe, tmp_path, capsys):
    assert ppo.run(["--config", str(recipe(reward_metric="vowels", eval_generations=3))]) == 2
    error = capsys.readouterr().err
    assert "`eval_generations: 3`" in error and "Set `eval_strategy: steps` and `eval_steps`." in error
    assert not (tmp_path / "run").exists()


def letters(prediction, row):
    return np.float32(len(prediction))


async def letters_later(prediction, row):
    return {"letters": torch.tensor(float(len(prediction)))}


@needs_ppo
@pytest.mark.parametrize("function", ["letters", "letters_later"])
def test_prompts_alone_with_a_function_of_ones_own(function, recipe, tmp_path):
    """Judged and shown at evaluations, without references; a plain number has any name; as long as in training."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS * 2))
    keys = {"task": f"tests.commands.test_ppo:{function}", "reward_metric": "letters"}
    keys |= {"dataset_name": str(tmp_path / "prompts.jsonl"), "eval_strategy": "steps", "eval_steps": 1}
    path = recipe(**keys, eval_generations=2, eval_num_samples=2, response_length=3)
    assert ppo.run(["--config", str(path)]) == 0
    history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    assert sum("eval_letters" in entry for entry in history) == 2
    assert all(entry["eval_length"] <= 3 for entry in history if "eval_length" in entry)
    table = (tmp_path / "run/generations/step-1.csv").read_text()
    assert table.splitlines()[0] == "step,prompt,generation,reference"


@needs_ppo
def test_bad_prompts_are_skipped_and_named(recipe, tmp_path, capsys):
    rows = [{"prompt": text} for text in PROMPTS * 2]
    rows[3]["prompt"] = None
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"dataset_name": str(tmp_path / "prompts.jsonl"), "task": "tests.commands.test_ppo:letters"}
    keys |= {"reward_metric": "letters"}
    assert ppo.run(["--config", str(recipe(**keys))]) == 2
    assert "Row 3 of `train` has nothing (null)" in capsys.readouterr().err
    assert ppo.run(["--config", str(recipe(**keys, on_bad_row="skip"))]) == 0
    assert "1 of 12 rows of `train` are left out (`on_bad_row: skip`): 3." in capsys.readouterr().out


@needs_ppo
def test_eos_as_padding(recipe, models, tmp_path, capsys):
    """A policy whose tokenizer pads with EOS learns to end all the same: it gets a padding token."""
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    for name, vocabulary in (("no-room", 300), ("room", 304)):
        make_model("llama", vocab_size=vocabulary, pad_token_id=1).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    no_room = {"reward_metric": "vowels", "model_name_or_path": str(tmp_path / "no-room")}
    assert ppo.run(["--config", str(recipe(use_peft=True, lora_target_modules=["q_proj"], **no_room))]) == 2
    told = "no padding token beside EOS and what else ends a response, and the model's vocabulary of 300 has no room"
    assert told in capsys.readouterr().err
    trainer = made(recipe(reward_metric="vowels", model_name_or_path=str(tmp_path / "room")))
    assert trainer.processing_class.pad_token_id == 300 and trainer.processing_class.padding_side == "left"
    ppo.train(trainer)
    trainer = made(recipe(**no_room))  # one more row for it, in the policy and in the reference
    ppo.train(trainer)
    assert trainer.state.log_history[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.vocab_size == 301


@pytest.mark.parametrize("adapter", [False, True])
def test_a_reward_models_head_survives(adapter, models, tmp_path):
    """Saved by TRL's RewardTrainer and loaded for PPO, it gives the same rewards, its head's included."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import RewardConfig, RewardTrainer

    from trl_irl.rewards.preference_reward import check_one_label, load_scorer

    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " fox"} for row in ROWS]
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    trainer = RewardTrainer(
        model=str(models / "policy"),
        args=RewardConfig(
            output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, use_cpu=True, bf16=False, report_to="none"
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=make_tokenizer(),
        peft_config=lora if adapter else None,
    )
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    check_one_label(str(tmp_path / "saved"), "reward_model_path")
    batch = make_tokenizer()([row["prompt"] + row["completion"] for row in ROWS], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model.eval()(**batch).logits
        found = load_scorer(str(tmp_path / "saved"), "float32").eval()(**batch).logits
        fresh = AutoModelForSequenceClassification.from_pretrained(models / "policy", num_labels=1)(**batch).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - fresh).abs().max() > 0.1


BAD = {
    "no reward": ({}, "PPO needs one reward, and none is set"),
    "two rewards": ({"reward_metric": "vowels", "soft_q_model": "{other}"}, "soft_q_model and reward_metric is set"),
    "no policy": ({"model_name_or_path": None, "reward_metric": "vowels"}, "No policy"),
    "an adapter of a language model as reward": ({"reward_model_path": "{lora}"}, "an adapter of another kind"),
    "a language model as reward": ({"reward_model_path": "{other}"}, "has num_labels = 2"),
    "nowhere": ({"reward_model_path": "./nowhere"}, "`reward_model_path: ./nowhere` is not there"),
    "another metric": ({"reward_metric": "accuracy"}, "and not `reward_metric: accuracy`"),
    "another tokenizer": ({"soft_q_model": "{foreign}"}, "has another tokenizer than the policy"),
    "resume": ({"reward_metric": "vowels", "resume_from_checkpoint": "true"}, "cannot resume"),
    "mini-batches": ({"reward_metric": "vowels", "num_mini_batches": 3}, "`num_mini_batches: 3` does not divide"),
    "mini-batches that do nothing": (
        {"reward_metric": "vowels", "num_mini_batches": 2, "gradient_accumulation_steps": 2},
        "would make one step of all mini-batches",
    ),
    "whitening": ({"reward_metric": "vowels", "num_mini_batches": 2, "whiten_rewards": True}, "leave 4"),
    "episodes": ({"reward_metric": "vowels", "total_episodes": 7}, "is less than one batch of 8"),
    "two rows of a prompt": (
        {"reward_metric": "vowels", "dataset_name": "{twice}", "dataset_train_split": "train"},
        "8 prompts have several rows that differ, the first 'Row 0' in keyword",
    ),
    "all too long": ({"reward_metric": "vowels", "max_prompt_length": 1}, "Not one of the 12 prompts of `train`"),
    "fewer than a batch": ({"reward_metric": "vowels", "num_train_rows": 7}, "fewer than one batch of 8"),
    "context": ({"reward_metric": "vowels", "response_length": 300}, "the policy's context is 256"),
    "no prompt": (
        {"reward_metric": "vowels", "dataset_name": "{answers}"},
        "There is no prompt: this data has the columns answer",
    ),
    "no demonstrations": (
        {"soft_q_model": "{other}", "normalize_reward": True, "dataset_name": "{bare}"},
        "needs demonstrations",
    ),
    "reference beside LoRA": (
        {"reward_metric": "vowels", "use_peft": True, "ref_model_name_or_path": "{other}"},
        "the policy without its adapter",
    ),
    "sft_model_path": ({"reward_metric": "vowels", "sft_model_path": "x"}, "name the policy in `model_name_or_path`"),
    "missing_eos_penalty": ({"reward_metric": "vowels", "missing_eos_penalty": -1.0}, "must be above 0"),
    "misspelled": ({"reward_metrik": "vowels"}, "did you mean `reward_metric`?"),
}


@needs_ppo
@pytest.mark.parametrize("keys, fragment", BAD.values(), ids=BAD)
def test_refused_before_a_model_loads(keys, fragment, recipe, models, tmp_path, capsys, monkeypatch):
    twice = [{"prompt": f"Row {i}", "keyword": word} for word in ("fox", "dog") for i in range(8)]
    for name, rows in {"answers": [{"answer": "x"}], "bare": [{"prompt": "One"}] * 8, "twice": twice}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model("llama").save_pretrained(tmp_path / "foreign")
    foreign = make_tokenizer()
    foreign.add_tokens(["fox"])
    foreign.save_pretrained(tmp_path / "foreign")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora/adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "CAUSAL_LM"}')
    (tmp_path / "lora/adapter_model.safetensors").write_bytes(b"")
    places = {"other": models / "other", "lora": tmp_path / "lora", "foreign": tmp_path / "foreign"}
    places |= {name: tmp_path / f"{name}.jsonl" for name in ("answers", "bare", "twice")}
    keys = {key: value.format(**places) if isinstance(value, str) else value for key, value in keys.items()}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    try:
        status = ppo.run(["--config", str(recipe(**keys))])
    except SystemExit as error:
        status = error.code
    error = capsys.readouterr().err
    assert status == 2 and error.count("trl-irl ppo: error: ") == 1 and fragment in error
    assert not (tmp_path / "run").exists()


@needs_ppo
def test_zero3_is_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert ppo.run(["--config", str(recipe(reward_metric="vowels"))]) == 2
    assert "does not run under DeepSpeed ZeRO-3 yet" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.skipif(HAS_PPO, reason="this TRL has PPOTrainer")
def test_a_trl_without_ppo(capsys):
    assert ppo.run(["--config", "recipe.yaml"]) == 2
    error = capsys.readouterr().err
    assert 'pip install ".[ppo]"' in error and "rloo.yaml" in error and "removed in 1.13" in error


@needs_ppo
def test_trl_steps_as_often_as_is_said(recipe, models, tmp_path, monkeypatch):
    """The bug that `num_mini_batches` with `gradient_accumulation_steps` is refused for is there, and can be lifted
    when it is gone: one optimiser step per epoch instead of two."""
    from trl_irl.trainer.ppo.config import PPOConfig

    monkeypatch.setattr(PPOConfig, "_check_batches", lambda self: None)
    (tmp_path / "many.jsonl").write_text((models / "rows.jsonl").read_text() * 3)  # TRL does step at a last batch
    steps = []
    for keys in ({"num_mini_batches": 2}, {"num_mini_batches": 2, "gradient_accumulation_steps": 2}):
        batch = 8 // keys.get("gradient_accumulation_steps", 1)
        keys |= {"dataset_name": str(tmp_path / "many.jsonl"), "per_device_train_batch_size": batch}
        trainer = made(recipe(reward_metric="vowels", total_episodes=8, **keys))
        optimizer, count = trainer.optimizer.optimizer, []
        optimizer.register_step_post_hook(lambda *_, count=count: count.append(1))
        trainer.train()
        steps.append(len(count))
    assert steps == [4, 2]  # two epochs
