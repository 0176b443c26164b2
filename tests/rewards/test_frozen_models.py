"""Weights that nobody trained are an error in every model that is loaded by name."""

import copy
import json
import shutil
from importlib.metadata import version

import pytest
import torch
import transformers
from datasets import Dataset
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import GAILConfig, GAILTrainer, IRLConfig, IRLTrainer, PreferenceReward, SoftQReward
from trl_irl.evaluation.loaded_models import LoadedModel
from trl_irl.rewards.frozen_models import load_classifier, load_language_model, load_merged
from trl_irl.rewards.preference_reward import load_scorer
from trl_irl.trainer.gail.discriminator import Discriminator


ROWS = Dataset.from_list([{"prompt": "One", "completion": " two"}] * 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Language and reward models, whole and as adapters, with a head of their own and a tied one; two cut short."""
    folder = tmp_path_factory.mktemp("models")
    for name, architecture in (("plain", "llama"), ("tied", "qwen2")):
        make_model(architecture).save_pretrained(folder / name)
        scorer = AutoModelForSequenceClassification.from_pretrained(folder / name, num_labels=1)
        scorer.save_pretrained(folder / f"{name}-reward")
        for task, model in (("CAUSAL_LM", AutoModelForCausalLM.from_pretrained(folder / name)), ("SEQ_CLS", scorer)):
            lora = LoraConfig(r=2, target_modules=["q_proj"], task_type=task)
            get_peft_model(model, lora).save_pretrained(folder / f"{name}-{task}")
    for name in ("plain", "plain-reward"):
        weights = load_file(folder / name / "model.safetensors")
        del weights["model.layers.1.mlp.up_proj.weight"]
        make_model("llama").save_pretrained(folder / f"{name}-cut")
        (folder / f"{name}-cut/config.json").write_text((folder / name / "config.json").read_text())
        save_file(weights, folder / f"{name}-cut/model.safetensors", {"format": "pt"})
    for path in folder.iterdir():
        make_tokenizer().save_pretrained(path)
    return folder


@pytest.mark.parametrize("name", ["plain", "tied", "plain-CAUSAL_LM", "tied-CAUSAL_LM"])
def test_language_models(name, folders):
    found, expected = (
        load(str(folders / name)) for load in (load_language_model, AutoModelForCausalLM.from_pretrained)
    )
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, expected(ids).logits)


READERS = {
    "score": SoftQReward,
    "evaluate": lambda path: LoadedModel(path).model,
    "log_ratio": lambda path: SoftQReward(make_model("llama"), make_tokenizer(), "log_ratio", path),
    "gail": lambda path: GAILTrainer(path, GAILConfig("unused", **QUIET), train_dataset=ROWS),
    "irl": lambda path: IRLTrainer(path, IRLConfig("unused", **QUIET), train_dataset=ROWS),
}


@pytest.mark.parametrize("name", ["plain-reward", "tied-reward", "plain-SEQ_CLS", "tied-SEQ_CLS"])
@pytest.mark.parametrize("reader", READERS)
def test_a_reward_model_is_no_language_model(name, reader, folders):
    with pytest.raises(ValueError, match=f"{name}` is a reward model"):
        READERS[reader](str(folders / name))


@pytest.mark.parametrize("reader", READERS)
def test_weights_that_are_not_there(reader, folders):
    with pytest.raises(ValueError, match="has no weights for model.layers.1.mlp.up_proj.weight: they would be random"):
        READERS[reader](str(folders / "plain-cut"))


def test_weights_that_are_not_there_are_missed_in_quiet_too(folders, capfd, tmp_path):
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        test_weights_that_are_not_there("irl", folders)
        IRLTrainer(
            str(folders / "plain"), IRLConfig(str(tmp_path), **QUIET), train_dataset=ROWS
        )  # and nothing stays changed
        assert transformers.logging.get_verbosity() == transformers.logging.ERROR
        assert "LOAD REPORT" not in capfd.readouterr().err
    finally:
        transformers.logging.set_verbosity(before)


def test_reward_models(folders):
    assert load_scorer(str(folders / "plain-SEQ_CLS"), "float32").score.out_features == 1
    assert PreferenceReward(str(folders / "tied-reward"))(["One"], [" two"])
    for name in ("plain-reward-cut", "plain"):
        with pytest.raises(ValueError, match="`reward_model_path: .* has no weights for (model.layers.1|score)"):
            load_scorer(str(folders / name), "float32", "reward_model_path")
    with pytest.raises(ValueError, match="an adapter without the head of its reward model"):
        load_scorer(str(folders / "plain-CAUSAL_LM"), "float32")


def test_a_new_head_is_meant_but_nothing_else_is_new(folders):
    assert load_scorer(str(folders / "plain"), "float32", new_head=True).score.out_features == 1
    assert Discriminator.load(str(folders / "tied")).model.score.out_features == 1
    for load in (lambda path: load_classifier(path, new_head=True), Discriminator.load):
        with pytest.raises(ValueError, match="has no weights for model.layers.1.mlp.up_proj.weight"):
            load(str(folders / "plain-cut"))


@pytest.fixture(scope="module")
def cut_adapters(folders, tmp_path_factory):
    """Adapters whose base lacks weights, and such as lack weights themselves; their heads are there."""
    folder = tmp_path_factory.mktemp("adapters")
    for task in ("CAUSAL_LM", "SEQ_CLS"):
        saved = folders / f"plain-{task}"
        on_cut, short = (shutil.copytree(saved, folder / f"{task}-{kind}") for kind in ("on-cut", "short"))
        config = json.loads((saved / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(folders / "plain-cut")
        (on_cut / "adapter_config.json").write_text(json.dumps(config))
        weights = load_file(saved / "adapter_model.safetensors")
        weights = {name: weight for name, weight in weights.items() if "layers.1." not in name}
        save_file(weights, short / "adapter_model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind, missing", [("on-cut", "model.layers.1.mlp.up_proj"), ("short", ".*layers.1.*lora_A")])
def test_adapters(kind, missing, cut_adapters):
    with pytest.raises(ValueError, match=f"`model: .* has no weights for {missing}"):
        load_language_model(str(cut_adapters / f"CAUSAL_LM-{kind}"))
    with pytest.raises(ValueError, match=f"`reward_model_path: .* has no weights for {missing}"):
        load_scorer(str(cut_adapters / f"SEQ_CLS-{kind}"), "float32", "reward_model_path")
    with pytest.raises(ValueError, match=f"has no weights for {missing}"):
        PreferenceReward(str(cut_adapters / f"SEQ_CLS-{kind}"))


@pytest.mark.parametrize(
    "kind",
    [
        LoraConfig(target_modules=["q_proj"], use_dora=True, init_lora_weights=False),
        LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 6], init_lora_weights=False),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False),
        AdaLoraConfig(target_modules=["q_proj"], total_step=10, init_lora_weights=False),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
        VeraConfig(target_modules=["q_proj"], r=4, init_weights=False),
    ],
    ids=["dora", "token indices", "modules to save", "adalora", "ia3", "vera"],
)
@pytest.mark.parametrize("name", ["plain", "tied"])
def test_adapters_that_peft_knows_are_read_as_peft_reads_them(kind, name, folders, tmp_path):
    """Also where transformers' own loader does not know them."""
    if name == "tied" and kind.peft_type == "LORA" and kind.modules_to_save:
        pytest.skip("PEFT itself unties such a head")
    base = AutoModelForCausalLM.from_pretrained(folders / name, dtype=torch.float32)
    trained = get_peft_model(base, copy.deepcopy(kind))
    with torch.no_grad():
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    trained.save_pretrained(tmp_path)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        expected, plain = trained(input_ids=ids).logits, load_language_model(str(folders / name))(input_ids=ids).logits
        found = load_language_model(str(tmp_path), dtype=torch.float32)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - plain).abs().max() > 1e-3
    assert SoftQReward(str(tmp_path), make_tokenizer(), dtype="float32").score([[5, 6]], None, [[7, 8]])[0].sum


@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_an_adapter_with_tokens_of_its_own(modules_to_save, tmp_path):
    """`chat_template_path` gives a base without a chat template the tokens of another's."""
    more = make_tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    more.save_pretrained(tmp_path / "template")
    for part in (make_model("llama", tie_word_embeddings=False), make_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    keys = {**QUIET, "max_steps": 1, "chat_template_path": str(tmp_path / "template"), "eos_token": "<|im_end|>"}
    rows = [{"messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "blue"}]}] * 4
    trainer = IRLTrainer(
        str(tmp_path / "base"),
        IRLConfig(str(tmp_path / "adapter"), per_device_train_batch_size=2, **keys),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=modules_to_save),
    )
    trainer.train()
    trainer.save_model()
    ids = torch.arange(290, 302)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        for load in (load_language_model, load_merged):
            found = load(str(tmp_path / "adapter"), dtype=torch.float32).eval()(input_ids=ids).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_of_virtual_tokens_is_refused_by_name(folders, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folders / "plain")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(base, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`models: .*` is an adapter of virtual tokens .PROMPT_TUNING"):
        load_language_model(str(tmp_path), "models")
    with pytest.raises(ValueError, match="^.* is an adapter of virtual tokens .PROMPT_TUNING"):
        load_merged(str(tmp_path))
    base = AutoModelForSequenceClassification.from_pretrained(folders / "plain-reward")
    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    get_peft_model(base, config).save_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="`model: .*` is an adapter of virtual tokens .PROMPT_TUNING"):
        PreferenceReward(str(tmp_path / "reward"), tokenizer=make_tokenizer())


@pytest.mark.parametrize("key", ["models", "reward_models", "reward_ref_model", "reward_model_path"])
def test_evaluate_names_the_key_before_it_loads(key, folders, tmp_path, capsys):
    from trl_irl.commands import evaluate

    keys = {"models": "plain", key: "plain" if key == "reward_model_path" else "plain-reward"}
    words = [word for name, model in keys.items() for word in (f"--{name}", str(folders / model))]
    words += ["--reward_analysis", "true", "--dataset_name", "unread.jsonl", "--output_dir", str(tmp_path / "e")]
    assert evaluate.run(words) == 2
    assert f"error: `{key}: {folders / keys[key]}` " in capsys.readouterr().err


@pytest.mark.skipif(version("trl") >= "1.13", reason="PPOTrainer is in TRL 1.12 only")
def test_ppo_names_the_key_before_it_loads(folders, tmp_path, monkeypatch):
    from trl_irl.commands import ppo
    from trl_irl.rewards import frozen_models

    monkeypatch.setattr(frozen_models, "load_language_model", None)
    ROWS.to_json(tmp_path / "rows.jsonl")
    keys = {"model_name_or_path": folders / "plain", "soft_q_model": folders / "plain-reward"}
    keys |= {"dataset_name": tmp_path / "rows.jsonl", "output_dir": tmp_path / "run", "total_episodes": 8, **QUIET}
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    with pytest.raises(ValueError, match="`soft_q_model: .*plain-reward` is a reward model"):
        ppo.make_trainer(*ppo.make_parser().parse(words))
