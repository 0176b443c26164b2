"""IRLTrainer with what SFTTrainer takes, and what it logs, saves and refuses."""

import copy
import json
import signal

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import GAILConfig, GAILTrainer, IRLConfig, IRLTrainer, OnlineIRLConfig, OnlineIRLTrainer
from trl_irl.rewards.soft_q_settings import saved_settings


LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
METRICS = {
    "nll",
    "td_loss",
    "td_loss_terminal_share",
    "q_mean",
    "q_std",
    "v_mean",
    "log_pi_mean",
    "reward_mean",
    "reward_std",
    "lambda_td",
    "entropy",
    "mean_token_accuracy",
    "num_tokens",
}


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_every_parameter_changes_and_the_loss_falls(make_trainer):
    trainer = make_trainer(max_steps=10, learning_rate=1e-2)
    before = state(trainer.model)
    trainer.train()
    assert all(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_metrics_of_training_and_evaluation(make_trainer):
    trainer = make_trainer(eval_dataset=Dataset.from_list(ROWS[:5]), eval_strategy="steps", eval_steps=1)
    trainer.train()
    first = next(entry for entry in trainer.state.log_history if "nll" in entry)
    assert METRICS <= first.keys()
    evaluated = next(entry for entry in trainer.state.log_history if "eval_nll" in entry)
    assert {f"eval_{name}" for name in METRICS} <= evaluated.keys()
    assert first["log_pi_mean"] == pytest.approx(-first["nll"])
    assert first["lambda_td"] == pytest.approx(0.1)
    # Every token of every row went in; nothing was padded.
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    assert first["num_tokens"] == tokens


def test_an_evaluation_measures_its_own_rows_alone(make_trainer):
    """Whatever failed before it, and whatever a callback looked at."""

    def fails(prediction):
        raise RuntimeError("of the user's")

    trainer = make_trainer(eval_dataset=Dataset.from_list(ROWS[:3]))
    expected = trainer.evaluate()
    trainer.compute_metrics = fails
    with pytest.raises(RuntimeError, match="of the user's"):
        trainer.evaluate(Dataset.from_list(ROWS[3:]))
    trainer.compute_metrics = None
    names = [f"eval_{name}" for name in METRICS]
    again = trainer.evaluate()
    assert [again[name] for name in names] == [expected[name] for name in names]
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
    told = trainer.predict(trainer.eval_dataset).metrics
    assert told["test_nll"] == pytest.approx(expected["eval_nll"])
    trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
    again = trainer.evaluate()
    assert [again[name] for name in names] == [expected[name] for name in names]


def test_metrics_are_means_over_tokens_not_over_batches(make_trainer):
    """Evaluated in batches of 1, 3 and 8 ragged rows, and logged over 1 or 4 training steps: the same numbers."""
    results = []
    for size in (1, 3, 8):
        trainer = make_trainer(eval_dataset=Dataset.from_list(ROWS), per_device_eval_batch_size=size)
        metrics = trainer.evaluate()
        results.append([metrics[f"eval_{name}"] for name in sorted(METRICS)])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)
    np.testing.assert_allclose(results[0], results[2], rtol=1e-5)

    logged = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            per_device_train_batch_size=batch, max_steps=steps, logging_steps=steps, learning_rate=0.0, lambda_td=0.2
        )
        trainer.train()
        entry = next(entry for entry in trainer.state.log_history if "nll" in entry)
        logged.append([entry[name] for name in sorted(METRICS)])
    np.testing.assert_allclose(logged[0], logged[1], rtol=1e-5)


def test_metrics_against_plain_numbers(make_trainer):
    trainer = make_trainer(eval_dataset=Dataset.from_list(ROWS), gamma=0.9)
    metrics = trainer.evaluate()
    q, v, reward, terminal = [], [], [], []
    for row in trainer.eval_dataset:
        ids, labels = row["input_ids"], row["labels"]
        logits = trainer.model(input_ids=torch.tensor([ids])).logits[0].detach().double()
        value = logits.logsumexp(-1)
        for t, action in enumerate(labels[1:]):
            if action != -100:
                q.append(logits[t, action].item())
                v.append(value[t].item())
                terminal.append(action == 1)
                reward.append(q[-1] - (0.0 if action == 1 else 0.9 * value[t + 1].item()))
    q, v, reward, terminal = map(np.array, (q, v, reward, terminal))
    expected = {
        "nll": (v - q).mean(),
        "td_loss": (reward**2).mean(),
        "td_loss_terminal_share": (reward**2 * terminal).sum() / (reward**2).sum(),
        "q_mean": q.mean(),
        "q_std": q.std(),
        "v_mean": v.mean(),
        "reward_mean": reward.mean(),
        "reward_std": reward.std(),
    }
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name


def test_lambda_td_schedule(make_trainer):
    trainer = make_trainer(lambda_td=0.4, mle_warmup_steps=2, lambda_td_warmup_steps=4, max_steps=8)
    trainer.train()
    logged = [entry["lambda_td"] for entry in trainer.state.log_history if "lambda_td" in entry]
    assert logged == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize("terminal_value", ["zero", "mask"])
def test_eval_loss_uses_the_final_lambda(make_trainer, terminal_value):
    trainer = make_trainer(
        eval_dataset=Dataset.from_list(ROWS),
        lambda_td=0.4,
        mle_warmup_steps=100,
        terminal_value=terminal_value,
        per_device_eval_batch_size=8,
    )
    metrics = trainer.evaluate()
    terminals, tokens = len(ROWS), sum(label != -100 for row in trainer.eval_dataset for label in row["labels"])
    with_reward = tokens - (terminals if terminal_value == "mask" else 0)
    expected = metrics["eval_nll"] + 0.4 * metrics["eval_td_loss"] * with_reward / tokens
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_lora_trains_only_adapters_and_reloads(make_trainer, tmp_path):
    torch.manual_seed(0)
    model = make_model("llama")
    model.save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    trainer = make_trainer(model, peft_config=LORA, learning_rate=1e-2)
    before = state(trainer.model)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {name for name in before if "lora_" in name}
    trainer.save_model(tmp_path / "adapter")
    input_ids = torch.arange(4, 20).view(1, 16)
    reloaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    expected = trainer.model.eval()(input_ids=input_ids).logits
    torch.testing.assert_close(reloaded(input_ids=input_ids).logits, expected)


def test_adapters_start_alike_whatever_was_drawn_before(make_trainer):
    """Also against a bug: TRL 1.12 draws an adapter's first weights before any seed is set, so runs differed."""
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = make_model("llama")
        torch.manual_seed(seed)
        weights.append(state(make_trainer(model, peft_config=LORA).model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_kl_with_adapters_disabled_equals_kl_with_a_frozen_copy(make_trainer):
    results = []
    for explicit in (False, True):
        torch.manual_seed(0)
        base = make_model("llama")
        frozen = copy.deepcopy(base)
        model = get_peft_model(base, LORA)
        with torch.no_grad():  # away from the base, or the KL is zero
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
        trainer = make_trainer(model, lambda_kl=0.7, ref_model=frozen if explicit else None)
        results.append((*one_step(trainer), trainer.evaluate(Dataset.from_list(ROWS))["eval_kl"]))
    (loss, gradients, kl), (expected_loss, expected_gradients, expected_kl) = results
    assert kl > 0.01
    assert kl == pytest.approx(expected_kl, rel=1e-6)
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected_gradients.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], expected_gradients[name])


@pytest.mark.parametrize("packing", [False, True])
def test_kl_of_trained_token_rows(packing, make_trainer):
    """Of a tied model, against the KL of full logits, with the base as it was or another reference."""
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 90, 91], task_type="CAUSAL_LM")
    for ref_model in (None, make_model("llama", seed=3)):
        base = make_model("llama", tie_word_embeddings=True)
        frozen = copy.deepcopy(base) if ref_model is None else copy.deepcopy(ref_model)
        trainer = make_trainer(base, lambda_kl=0.7, ref_model=ref_model, peft_config=config, packing=packing)
        with torch.no_grad():
            trainer.model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"].normal_(std=0.5)
        batch = next(iter(trainer.get_train_dataloader()))
        labels = batch.pop("labels")
        with torch.no_grad():
            log_pi, log_ref = (
                model(**batch, use_cache=False).logits[:, :-1].double().log_softmax(-1)  # a cache joins documents
                for model in (trainer.model, frozen)
            )
        scored = labels[:, 1:] != -100
        kl = (log_pi.exp() * (log_pi - log_ref)).sum(-1)[scored].mean().item()
        trainer.compute_loss(trainer.model, {**batch, "labels": labels})
        assert kl > 0.01 and trainer._token_metrics["train"].pop(trainer.accelerator)["kl"] == pytest.approx(
            kl, rel=1e-5
        )


@pytest.mark.parametrize("by_path", [False, True])
def test_full_training_with_kl_copies_the_model_as_it_was(make_trainer, by_path, tmp_path):
    model = make_model("llama")
    if by_path:
        model.save_pretrained(tmp_path / "model")
    trainer = make_trainer(str(tmp_path / "model") if by_path else model, lambda_kl=0.5, learning_rate=1e-2)
    frozen = state(trainer.ref_model)
    trainer.train()
    logged = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert logged[0] == pytest.approx(0, abs=1e-6) and logged[-1] > 1e-4
    assert all(torch.equal(frozen[name], p) for name, p in trainer.ref_model.named_parameters())
    assert not any(p.requires_grad for p in trainer.ref_model.parameters())


@pytest.mark.parametrize("adapted", [False, True])
def test_loss_with_kl_is_the_sum_of_its_terms(make_trainer, adapted):
    ref_model = make_model("qwen2", seed=5)
    if adapted:
        ref_model = get_peft_model(ref_model, LORA)
    trainer = make_trainer(ref_model=ref_model, lambda_kl=0.5, lambda_td=0.2, eval_dataset=Dataset.from_list(ROWS))
    metrics = trainer.evaluate()
    assert metrics["eval_kl"] > 0.1
    trainer.args.per_device_eval_batch_size = 8
    metrics = trainer.evaluate()
    expected = metrics["eval_nll"] + 0.2 * metrics["eval_td_loss"] + 0.5 * metrics["eval_kl"]
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["prompt-completion", "language modelling", "conversational", "pre-tokenised"])
@pytest.mark.parametrize("streaming", [False, True])
def test_dataset_formats(kind, streaming, make_trainer, tokenizer):
    rows = {
        "prompt-completion": ROWS,
        "language modelling": [{"text": row["prompt"] + row["completion"]} for row in ROWS],
        "conversational": [
            {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
            for r in ROWS
        ],
        "pre-tokenised": [{"input_ids": tokenizer(row["prompt"] + row["completion"])["input_ids"]} for row in ROWS],
    }[kind]
    dataset = IterableDataset.from_generator(lambda: iter(rows)) if streaming else Dataset.from_list(rows)
    trainer = make_trainer(train_dataset=dataset, per_device_train_batch_size=2)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3 and np.isfinite(logged).all()


@pytest.mark.parametrize("with_kl", [False, True])
def test_prompt_tuning(with_kl, make_trainer):
    """Virtual tokens lengthen the sequence that the head sees; labels and metrics follow."""
    peft_config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    trainer = make_trainer(make_model("llama"), peft_config=peft_config, lambda_kl=0.1 if with_kl else 0.0)
    before = state(trainer.model)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {name for name in before if "prompt_encoder" in name}


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
@pytest.mark.parametrize("how", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}])
def test_virtual_tokens_do_not_go_with_several_documents_in_a_row(kind, how, make_trainer):
    """PEFT lets go of the positions that keep them apart."""
    peft_config = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ValueError, match="put several documents into one row, and .* does not keep them apart"):
        make_trainer(make_model("llama"), peft_config=peft_config, **how)
    make_trainer(make_model("llama"), peft_config=LORA, **how)


@pytest.mark.parametrize("lambda_kl", [0.0, 0.1])
def test_qlora(lambda_kl, make_trainer, tmp_path):
    """Also against a bug: a forward in evaluation mode before training left 4-bit CPU layers without gradients."""
    pytest.importorskip("bitsandbytes", reason="a machine of benchmarks/gpu has none")
    make_model("llama", hidden_size=64, intermediate_size=64).save_pretrained(tmp_path / "base")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    trainer = make_trainer(
        str(tmp_path / "base"),
        peft_config=LORA,
        quantization_config=quantization,
        learning_rate=1e-2,
        max_steps=5,
        lambda_kl=lambda_kl,
    )
    assert trainer.model.is_loaded_in_4bit
    before = state(trainer.model)
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {name for name in before if "lora_" in name}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_mixture_of_experts_logs_its_auxiliary_loss(make_trainer):
    trainer = make_trainer(make_model("qwen3_moe"), router_aux_loss_coef=0.5, lambda_td=0.0, logging_steps=1)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "aux_loss" in entry)
    assert entry["aux_loss"] > 0
    assert entry["loss"] == pytest.approx(entry["nll"] + 0.5 * entry["aux_loss"], rel=1e-4)


def test_moe_auxiliary_loss_is_a_mean_over_accumulation_steps(make_trainer):
    rows = Dataset.from_list(ROWS[:1] * 4)
    losses = []
    for batch, steps in ((1, 1), (1, 4)):
        trainer = make_trainer(
            make_model("qwen3_moe"),
            rows,
            router_aux_loss_coef=0.5,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
        )
        losses.append(one_step(trainer)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # four times the same row


@pytest.mark.parametrize("accumulation", [1, 2])
def test_moe_auxiliary_loss_of_an_evaluation_is_whole(accumulation, make_trainer):
    """Before any training, and after it, whatever the accumulation was."""
    rows = Dataset.from_list(ROWS[:4])
    keys = {"router_aux_loss_coef": 0.5, "per_device_eval_batch_size": 4, "eval_dataset": rows}
    trainer = make_trainer(
        make_model("qwen3_moe"), gradient_accumulation_steps=accumulation, lambda_td=0.0, learning_rate=0.0, **keys
    )
    before = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(before["eval_nll"] + 0.5 * before["eval_aux_loss"], rel=1e-4)
    trainer.predict(trainer.eval_dataset)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-4)


def test_a_reference_leaves_the_policy_to_be_prepared(make_trainer):
    """In bfloat16 an evaluation before training computes as one within it: with autocast, and no KL to itself."""
    keys = {"lambda_kl": 0.1, "bf16": True, "eval_dataset": Dataset.from_list(ROWS[:4])}
    trainer = make_trainer(make_model("llama"), ref_model=make_model("llama"), learning_rate=0.0, **keys)
    assert trainer.evaluate()["eval_kl"] == 0
    trainer.train()
    assert trainer.evaluate()["eval_kl"] == 0


def test_what_an_attempt_measured_that_was_cut_off_is_not_in_the_next_log(make_trainer):
    """As `auto_find_batch_size` does where a batch does not fit; a signal is not lost on the way."""

    class DoesNotFit(TrainerCallback):
        attempts = 0

        def on_substep_end(self, args, state, control, **kwargs):
            self.attempts += 1
            if self.attempts == 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate")

    handler = signal.getsignal(signal.SIGTERM)
    keys = {"gradient_accumulation_steps": 2, "max_steps": 1, "logging_steps": 1, "learning_rate": 0.0}
    trainer = make_trainer(per_device_train_batch_size=4, auto_find_batch_size=True, save_on_signal=True, **keys)
    trainer.add_callback(DoesNotFit())
    trainer.train()
    plain = make_trainer(per_device_train_batch_size=trainer._train_batch_size, **keys)
    plain.train()
    (expected,), (found,) = ([e for e in t.state.log_history if "nll" in e] for t in (plain, trainer))
    for name in ("num_tokens", "nll", "td_loss", "v_mean"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    assert signal.getsignal(signal.SIGTERM) is handler


def test_how_it_was_trained_lies_in_checkpoints_that_are_saved_in_shards_too(make_trainer, tmp_path):
    """FSDP with SHARDED_STATE_DICT never calls `_save` for a checkpoint."""
    trainer = make_trainer(td_scale=None)
    trainer.train()
    trainer._save = lambda *args, **kwargs: None
    (tmp_path / "shards").mkdir()
    trainer._save_optimizer_and_scheduler(str(tmp_path / "shards"))
    assert saved_settings(str(tmp_path / "shards"))["td_scale"] == trainer.td_scale


def test_labels_outside_the_vocabulary_are_refused(make_trainer):
    row = {"input_ids": [5, 6, 7, 1], "labels": [-100, -100, 7, 1]}
    make_trainer(train_dataset=Dataset.from_list([row]))
    for labels, said in (
        ([-1, -1, 7, 1], "Row 1 of the train dataset has the label -1. A token that is not to be learned has"),
        ([-100, -100, 305, 1], "Row 1 of the train dataset has the token id 305 among its `labels`"),
    ):
        with pytest.raises(ValueError, match=said):
            make_trainer(train_dataset=Dataset.from_list([row, {**row, "labels": labels}]))


def test_compute_metrics_and_predict_get_the_logits(make_trainer):
    seen = {}

    def compute_metrics(prediction):
        seen["shape"] = prediction.predictions.shape
        labels = prediction.label_ids[:, 1:]
        right = (prediction.predictions[:, :-1].argmax(-1) == labels) & (labels != -100)
        return {"accuracy": right.sum() / (labels != -100).sum()}

    rows = Dataset.from_list(ROWS)
    trainer = make_trainer(eval_dataset=rows, compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    assert seen["shape"][0] == len(ROWS) and seen["shape"][2] == 300
    assert metrics["eval_accuracy"] == pytest.approx(metrics["eval_mean_token_accuracy"])
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions.shape == seen["shape"]
    assert output.metrics["test_nll"] == pytest.approx(metrics["eval_nll"], rel=1e-6)
    # Predicting leaves nothing behind for the next evaluation.
    assert trainer.evaluate()["eval_nll"] == pytest.approx(metrics["eval_nll"], rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="TRL's activation offloading needs an accelerator")
def test_activation_offloading_changes_nothing(make_trainer):
    expected = one_step(make_trainer(use_cpu=False))
    loss, gradients = one_step(make_trainer(use_cpu=False, activation_offloading=True))
    torch.testing.assert_close(loss, expected[0])
    for name, gradient in expected[1].items():
        torch.testing.assert_close(gradients[name], gradient)


def test_bf16_autocast_is_close_to_float32(make_trainer):
    expected, _ = one_step(make_trainer())
    loss, gradients = one_step(make_trainer(bf16=True))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_model_card_checkpoint_and_tags(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "2409.01369" in card and "Imitating Language via Scalable Inverse Reinforcement Learning" in card
    assert "wulfmeier2024imitating" in card and "IRL (inverse soft-Q learning)" in card
    tags = card.split("---")[1]
    assert "- irl" in tags and "- sft" not in tags
    assert (tmp_path / "run/checkpoint-2/model.safetensors").is_file()
    saved = json.loads((tmp_path / "run/checkpoint-2/trainer_state.json").read_text())
    assert "td_loss" in saved["log_history"][0]


@pytest.mark.parametrize(
    "trainer_class, config_class, name",
    [
        (IRLTrainer, IRLConfig, "IRL"),
        (OnlineIRLTrainer, OnlineIRLConfig, "online-IRL"),
        (GAILTrainer, GAILConfig, "GAIL"),
    ],
)
def test_default_arguments(trainer_class, config_class, name, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_model("llama").save_pretrained("someone/tiny")
    tokenizer.save_pretrained("someone/tiny")
    original = config_class.__init__

    def on_cpu(self, *args, **kwargs):
        small = {"max_completion_length": 8} if name != "IRL" else {}
        original(self, *args, **{"use_cpu": True, "bf16": False, **small, **kwargs})

    monkeypatch.setattr(config_class, "__init__", on_cpu)
    trainer = trainer_class("someone/tiny", train_dataset=Dataset.from_list(ROWS))
    assert type(trainer.args) is config_class and trainer.args.output_dir == f"tiny-{name}"


def test_loss_of_a_batch_without_labels_is_zero_with_gradients(make_trainer):
    trainer = make_trainer()
    trainer.create_optimizer_and_scheduler(1)
    batch = next(iter(trainer.get_train_dataloader()))
    batch["labels"].fill_(-100)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.training_step(trainer.model, batch, torch.tensor(0))
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.model.parameters())


def test_a_plain_sft_config_is_refused(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="Build an `IRLConfig`"):
        IRLTrainer(
            make_model(),
            args=SFTConfig(**settings(tmp_path)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )
