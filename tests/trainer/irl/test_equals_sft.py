"""At lambda_td = 0 the loss and every gradient are those of TRL's own SFTTrainer, on whichever TRL is installed."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from tests.conftest import ARCHITECTURES, make_model
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import IRLConfig, IRLTrainer


def both(tmp_path, tokenizer, make, **kwargs):
    """The same step by SFTTrainer and by IRLTrainer at lambda_td = 0."""
    results = []
    for trainer_class, config_class, extra in (
        # TRL 1.12's default, "chunked_nll", ignores Granite's logit scaling; "nll" is the model's own loss there.
        (SFTTrainer, SFTConfig, {"loss_type": "nll"}),
        (IRLTrainer, IRLConfig, {"lambda_td": 0.0}),
    ):
        peft_config = kwargs.get("peft_config")
        overrides = {name: value for name, value in kwargs.items() if name != "peft_config"}
        model, args = make(), config_class(**settings(tmp_path, **extra, **overrides))
        set_seed(args.seed)  # of the adapter's first weights: TRL 1.12's SFTTrainer does not
        trainer = trainer_class(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        results.append(one_step(trainer))
    return results


def assert_same(sft, irl):
    torch.testing.assert_close(irl[0], sft[0], rtol=1e-5, atol=1e-6)
    assert irl[1].keys() == sft[1].keys()
    for name, expected in sft[1].items():
        torch.testing.assert_close(irl[1][name], expected, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients(architecture, tokenizer, tmp_path):
    assert_same(*both(tmp_path, tokenizer, lambda: make_model(architecture)))


@pytest.mark.parametrize("peft", [None, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])])
def test_accumulated_ragged_batches(peft, tokenizer, tmp_path):
    assert_same(
        *both(
            tmp_path,
            tokenizer,
            lambda: make_model("llama"),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            peft_config=peft,
        )
    )


def test_packed(tokenizer, tmp_path):
    assert_same(*both(tmp_path, tokenizer, lambda: make_model("qwen2"), packing=True, max_length=48))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("where", [[5, 6, 77], {"embed_tokens": [5, 6, 77]}, {"lm_head": [5, 6, 77]}])
def test_trainable_token_indices(tied, where, make_trainer):
    """Against the model's own full logits: the fused head of TRL >= 1.13's SFTTrainer does not take such heads."""
    if tied and isinstance(where, dict) and "lm_head" in where:
        pytest.skip("PEFT ties the head to the embeddings by the embeddings' name")
    peft = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=where, task_type="CAUSAL_LM")
    model = make_model("llama", tie_word_embeddings=tied)
    trainer = make_trainer(model, lambda_td=0.0, peft_config=peft, per_device_train_batch_size=len(ROWS))
    irl = one_step(trainer)
    assert any("trainable_tokens_delta" in name for name in irl[1])
    trainer.model.zero_grad()
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch.pop("labels")
    logits = trainer.model(**batch).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:])
    loss.backward()
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert_same((loss.detach(), gradients), irl)
