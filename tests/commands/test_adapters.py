"""Adapters by name as the start of every method and in every class that loads models, in folders and on the Hub."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import (
    GAILConfig,
    GAILTrainer,
    IRLConfig,
    IRLTrainer,
    OnlineIRLConfig,
    OnlineIRLTrainer,
    PreferenceReward,
    SoftQReward,
)
from trl_irl.commands import evaluate, gail, irl, online_irl, score
from trl_irl.evaluation.loaded_models import LoadedModel
from trl_irl.rewards.adapters import is_adapter, tokenizer_of
from trl_irl.rewards.frozen_models import load_merged


ROWS = [{"prompt": "One", "completion": " two three"}, {"prompt": "1", "completion": " 2 3"}] * 2
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def classifier(path):
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)


def adapt(base, folder, load=AutoModelForCausalLM.from_pretrained, **config):
    """An adapter that changes what its base says, saved without a tokenizer."""
    model = get_peft_model(load(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **config))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name or ".score." in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return adapt(base, tmp_path_factory.mktemp("adapter"), task_type="CAUSAL_LM")


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture(scope="module")
def said(base, adapter):
    """What base and adapter say together, by PEFT alone; it is not what the base says."""
    both = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))
    assert (both - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 0.01
    return both


METHODS = {"irl": (IRLConfig, IRLTrainer), "online": (OnlineIRLConfig, OnlineIRLTrainer)}
METHODS |= {"gail": (GAILConfig, GAILTrainer)}


def make(method, adapter, folder, peft_config=None, **keys):
    config, trainer = METHODS[method]
    keys = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, **QUIET, **keys}
    if method != "irl":
        keys["max_completion_length"] = 4
    if method == "gail":
        keys |= {"num_generations": 2, "beta": 0.1}
    return trainer(
        adapter, config(str(folder), **keys), train_dataset=Dataset.from_list(ROWS), peft_config=peft_config
    )


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_with_the_adapter(method, adapter, base, said, tmp_path, recwarn, caplog):
    trainer = make(method, adapter, tmp_path / "run", model_init_kwargs={"dtype": "float32"})
    assert "model_init_kwargs" not in caplog.text + "".join(str(one.message) for one in recwarn.list)
    torch.testing.assert_close(logits(trainer.model), said, rtol=1e-5, atol=1e-5)
    assert trainer.processing_class.eos_token == make_tokenizer().eos_token
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    if method == "gail":  # the reference is the start, and not the base
        assert first["kl"] == pytest.approx(0, abs=1e-6)
    trainer.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run")  # base and adapter
    assert json.loads((tmp_path / "run/adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert (logits(saved) - said).abs().max() > 1e-4
    for name, weight in AutoModelForCausalLM.from_pretrained(base).named_parameters():
        if "q_proj" not in name and "v_proj" not in name:
            assert torch.equal(saved.get_parameter(name), weight)


@pytest.mark.parametrize("method", METHODS)
def test_a_new_adapter_starts_from_the_merged_model(method, adapter, said, tmp_path):
    kl = {} if method == "gail" else {"lambda_kl": 0.1}
    trainer = make(method, adapter, tmp_path / "run", LORA, **kl)
    torch.testing.assert_close(logits(trainer.model), said, rtol=1e-4, atol=1e-5)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "kl" in entry)
    assert first["kl"] == pytest.approx(0, abs=1e-6)


def test_ppo_and_evaluation_load_what_both_say(adapter, base, said):
    torch.testing.assert_close(logits(load_merged(adapter)), said, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in load_merged(adapter).named_parameters())
    torch.testing.assert_close(logits(load_merged(base)), logits(AutoModelForCausalLM.from_pretrained(base)))
    loaded = LoadedModel(adapter)
    torch.testing.assert_close(logits(loaded.model), said, rtol=1e-5, atol=1e-5)
    assert loaded.tokenizer.get_vocab() == make_tokenizer().get_vocab()


@pytest.mark.parametrize("method", ["irl", "online"])
def test_a_reference_that_would_be_another(method, adapter, tmp_path):
    with pytest.raises(ValueError, match="needs the policy as it starts.*Set `use_peft: true`"):
        make(method, adapter, tmp_path / "run", lambda_kl=0.1)
    assert not (tmp_path / "run").exists()


def test_its_own_tokenizer_comes_first(adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "own")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<own>"])
    tokenizer.save_pretrained(tmp_path / "own")
    assert "<own>" in tokenizer_of(str(tmp_path / "own")).get_vocab()
    assert "<own>" not in tokenizer_of(adapter).get_vocab()


@pytest.fixture
def orphan(base, tmp_path, monkeypatch):
    """Adapters of a language model and of a reward model whose base is gone."""
    shutil.copytree(base, tmp_path / "moved/base")
    gone = str(tmp_path / "moved/base")
    adapt(gone, tmp_path / "policy", task_type="CAUSAL_LM")
    adapt(gone, tmp_path / "scorer", classifier, task_type="SEQ_CLS")
    shutil.rmtree(gone)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    return gone


TRAIN = "--model_name_or_path policy --output_dir out --use_cpu true --bf16 false"
COMMANDS = {
    "irl": (irl, TRAIN, "model_name_or_path"),
    "online-irl": (online_irl, TRAIN, "model_name_or_path"),
    "gail": (gail, TRAIN, "model_name_or_path"),
    "ppo": (None, f"{TRAIN} --soft_q_model policy", "model_name_or_path"),
    "evaluate": (evaluate, "--models policy --output_dir out --split train", "models"),
    "evaluate, judge": (evaluate, "--models BASE --reward_model_path scorer --split train", "reward_model_path"),
    "score": (score, "--model policy --output out/r.parquet", "model"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_base_that_is_gone_is_named(command, orphan, base, capsys):
    module, words, key = COMMANDS[command]
    if module is None:
        if version("trl") >= "1.13":
            pytest.skip("PPOTrainer is in TRL 1.12 only")
        from trl_irl.commands import ppo as module
    words = words.replace("BASE", base).split()
    assert module.run([*words, "--dataset_name", "rows.jsonl"]) == 2
    name = "scorer" if "judge" in command else "policy"
    told = capsys.readouterr().err
    assert f"`{key}: {name}` is an adapter of the model {orphan}" in told and "base_model_name_or_path" in told
    assert not list(Path("out").rglob("*.*")) if Path("out").exists() else True


@pytest.mark.parametrize("use", [lambda: SoftQReward("policy"), lambda: PreferenceReward("scorer")])
def test_classes_name_it_too(use, orphan):
    with pytest.raises(FileNotFoundError, match=f"is an adapter of the model {orphan}"):
        use()


def put_on_the_hub(folder, name, cache):
    """A repository in a cache of the Hub, as `huggingface_hub` lays one out."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text("a" * 40)
    shutil.copytree(folder, root / "snapshots" / ("a" * 40))


def test_on_the_hub(adapter, base, said, tmp_path, monkeypatch):
    judge = adapt(base, tmp_path / "judge", classifier, task_type="SEQ_CLS")
    expected = PreferenceReward(judge)(["One"], [" two"])
    rewards = SoftQReward(adapter)(["One"], [" two"])
    for folder, name in ((adapter, "me/policy"), (judge, "me/judge"), (base, "me/base")):
        put_on_the_hub(folder, name, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_adapter("me/policy") and not is_adapter("me/base")
    assert SoftQReward("me/policy")(["One"], [" two"]) == pytest.approx(rewards, rel=1e-5)
    assert PreferenceReward("me/judge")(["One"], [" two"]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(logits(load_merged("me/policy")), said, rtol=1e-4, atol=1e-5)
    trainer = make("irl", "me/policy", tmp_path / "run")
    torch.testing.assert_close(logits(trainer.model), said, rtol=1e-5, atol=1e-5)
