"""One model object through several trainers, each of which puts something on its forward, and asked in between."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, settings
from trl_irl import IRLConfig, IRLTrainer, SoftQReward, evaluate
from trl_irl.evaluation import EvaluationSettings


PROMPTS, COMPLETIONS = [row["prompt"] for row in ROWS], [row["completion"] for row in ROWS]


def train(kind, model, tokenizer, folder):
    options = settings(folder, max_steps=1)
    if kind == "rloo":
        options = {name: value for name, value in options.items() if name != "max_length"}
        args = RLOOConfig(**options, num_generations=4, max_completion_length=4, beta=0.0)
        prompts = Dataset.from_dict({"prompt": PROMPTS})
        reward = SoftQReward(model, tokenizer)
        trainer = RLOOTrainer(model, reward, args=args, train_dataset=prompts, processing_class=tokenizer)
    else:
        trainer_class, config = {"sft": (SFTTrainer, SFTConfig), "irl": (IRLTrainer, IRLConfig)}[kind]
        data = Dataset.from_list(ROWS)
        trainer = trainer_class(model, config(**options), train_dataset=data, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(
    "kinds", ["irl sft", "irl sft irl", "sft irl sft irl", "irl rloo", "irl rloo irl", "irl sft rloo sft irl"]
)
def test_it_stays_the_model_that_its_weights_are(kinds, tokenizer, tmp_path):
    model = make_model("llama")
    before = copy.deepcopy(model.state_dict())
    for kind in kinds.split():
        train(kind, model, tokenizer, tmp_path)
    assert any((model.state_dict()[name] != value).any() for name, value in before.items())
    plain = make_model("llama")
    plain.load_state_dict(model.state_dict())
    expected = SoftQReward(plain, tokenizer)(PROMPTS, COMPLETIONS)
    assert SoftQReward(model, tokenizer)(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-5)
    ids = tokenizer(COMPLETIONS[1], return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, plain.eval()(input_ids=ids).logits)
    rows = Dataset.from_list(ROWS).to_list()
    sampling = EvaluationSettings(metrics=["nll"], max_new_tokens=2, temperatures=[0.0])
    found = evaluate({"model": (model, tokenizer), "plain": (plain, tokenizer)}, rows, sampling)
    own, its_weights = (one.metrics["nll"].mean for one in found.summaries)
    assert own == pytest.approx(its_weights, rel=1e-5)


@pytest.mark.parametrize("kinds", ["sft", "irl sft", "irl rloo"])
def test_a_reference_is_made_of_its_weights(kinds, tokenizer, tmp_path):
    """The copy that is the reference keeps nothing that computes with the policy's weights."""
    model = make_model("llama")
    for kind in kinds.split():
        train(kind, model, tokenizer, tmp_path)
    plain = make_model("llama")
    plain.load_state_dict(model.state_dict())
    logged = []
    for one in (model, plain):
        args = IRLConfig(**settings(tmp_path, lambda_kl=0.5, max_steps=4, learning_rate=1e-2))
        trainer = IRLTrainer(one, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
        trainer.train()
        logged.append([entry["kl"] for entry in trainer.state.log_history if "kl" in entry])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4, abs=1e-6) and logged[0][-1] > 1e-3


def test_what_torch_compile_made_of_a_model_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Pass the model itself, and set `torch_compile=True`"):
        train("irl", torch.compile(make_model("llama"), backend="eager"), tokenizer, tmp_path)
