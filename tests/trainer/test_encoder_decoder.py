"""T5 and its kin where only decoders are taken: one message before anything trains, samples or scores."""

import json
from importlib.metadata import version

import pytest
from datasets import Dataset
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import make_model
from tests.distributed.launchers import QUIET
from trl_irl import GAILConfig, GAILTrainer, IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer, SoftQReward
from trl_irl.commands import gail, ppo, reward_data
from trl_irl.trainer.gail.discriminator import Discriminator


ROWS = [{"prompt": "One", "completion": " two"}, {"prompt": "1", "completion": " 2"}]
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
LAYERS |= {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
KINDS = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "bart": lambda: BartForConditionalGeneration(BartConfig(vocab_size=300, **LAYERS)),
    "pegasus": lambda: PegasusForConditionalGeneration(PegasusConfig(vocab_size=300, **LAYERS)),
}


@pytest.fixture(params=KINDS)
def model(request):
    return KINDS[request.param]()


def train(model, config, trainer, folder, tokenizer, **keys):
    more = {"per_device_train_batch_size": 2, "max_steps": 1, **QUIET, **keys}
    if config is not GAILConfig:
        more["lambda_kl"] = 0.1
    else:
        more["num_generations"] = 2
    kwargs = {"ref_model": KINDS["bart"]()} if model is None else {}
    model = make_model("llama") if model is None else model
    args = config(str(folder / "run"), **more)
    trainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer, **kwargs).train()


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda model, *told: train(model, IRLConfig, IRLTrainer, *told),
        lambda model, *told: train(model, OnlineIRLConfig, OnlineIRLTrainer, *told),
        lambda model, *told: train(model, GAILConfig, GAILTrainer, *told),
        lambda model, folder, tokenizer: Discriminator.load(str(folder / "model")),
    ],
    ids=["irl", "online irl", "gail", "discriminator"],
)
def test_classes(use, by_path, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is an encoder-decoder model .*Take a decoder-only language model"):
        use(str(tmp_path / "model") if by_path else model, tmp_path, tokenizer)
    assert not (tmp_path / "run").exists()


def test_as_the_reference(tokenizer, tmp_path):
    for model, ref_model in ((make_model("llama"), KINDS["bart"]()), (KINDS["bart"](), make_model("llama"))):
        with pytest.raises(ValueError, match="one of them is an encoder-decoder model"):
            SoftQReward(model, tokenizer, kind="log_ratio", ref_model=ref_model)
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder model"):
        train(None, IRLConfig, IRLTrainer, tmp_path, tokenizer)
    with pytest.raises(TypeError, match="`ref_model` is the text 'some/model'"):
        IRLTrainer(make_model("llama"), IRLConfig(str(tmp_path), lambda_kl=0.1, **QUIET), ref_model="some/model")


TRAIN = ["--model_name_or_path", "MODEL", "--output_dir", "OUT", "--use_cpu", "true", "--bf16", "false"]
COMMANDS = {
    "gail": (gail, TRAIN),
    "ppo": (ppo, [*TRAIN, "--soft_q_model", "MODEL"]),
    "reward-data": (reward_data, ["--model", "MODEL", "--output_dir", "OUT"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, tokenizer, tmp_path, capsys):
    if command == "ppo" and version("trl") >= "1.13":
        pytest.skip("PPOTrainer is in TRL 1.12 only")
    KINDS["t5"]().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    module, words = COMMANDS[command]
    places = {"MODEL": str(tmp_path / "model"), "OUT": str(tmp_path / "out")}
    words = [word.replace("MODEL", places["MODEL"]).replace("OUT", places["OUT"]) for word in words]
    assert module.run([*words, "--dataset_name", str(tmp_path / "rows.jsonl")]) == 2
    assert "is an encoder-decoder model (t5)" in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_decoder_taken_out_of_one_is_none(tokenizer, tmp_path):
    model = BartForCausalLM(BartConfig(vocab_size=300, **LAYERS))
    trainer = IRLTrainer(
        model,
        IRLConfig(str(tmp_path), max_steps=1, **QUIET),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )
    assert trainer.train().training_loss > 0
