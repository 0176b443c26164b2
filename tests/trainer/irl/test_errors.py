"""Bad input gets one clear error, and leaves nothing half-written."""

import copy
import re
from dataclasses import fields
from decimal import Decimal

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, settings
from trl_irl import IRLConfig
from trl_irl.soft_q.objectives import Objective
from trl_irl.trainer.irl.argument_checks import check_parallelism


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"lambda_td": -0.1}, "`lambda_td=-0.1` would reward"),
        ({"lambda_td": float("nan")}, "lambda_td=nan"),
        ({"gamma": 1.01}, "`gamma=1.01` is not a discount"),
        ({"gamma": -0.1}, "`gamma=-0.1` is not a discount"),
        ({"lambda_kl": -1.0}, "`lambda_kl=-1.0` would push"),
        ({"terminal_value": "one"}, "`terminal_value='one'` is unknown"),
        ({"mle_warmup_steps": -1}, "`mle_warmup_steps=-1`"),
        ({"lambda_td_warmup_steps": -1}, "`lambda_td_warmup_steps=-1`"),
        ({"logit_buffer_mb": 0}, "`logit_buffer_mb=0` must be positive"),
        ({"logit_buffer_mb": "inf"}, "`logit_buffer_mb=inf` must be positive, or 'auto'"),
        ({"logit_buffer_mb": None}, "`logit_buffer_mb=None` must be positive, or 'auto'"),
        ({"loss_type": "dft"}, "or `objective='dft'`"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1`"),
    ],
)
def test_config(bad, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        IRLConfig(**settings(tmp_path / "run", **bad))
    assert not (tmp_path / "run").exists()


def test_what_sft_config_says_is_accepted(tmp_path):
    """Its defaults, whatever a version of TRL calls the likelihood; and a run of no epoch, which only evaluates."""
    given = SFTConfig(**settings(tmp_path, max_steps=-1, num_train_epochs=0)).to_dict()
    given = {key: value for key, value in given.items() if key in {field.name for field in fields(IRLConfig)}}
    assert IRLConfig(**given).loss_type == IRLConfig(**settings(tmp_path, loss_type="chunked_nll")).loss_type == "nll"


@pytest.mark.parametrize(("told", "read"), [("auto", "auto"), ("64", 64.0), (0.5, 0.5)])
def test_logit_buffer_is_a_number_or_auto(told, read, tmp_path):
    assert IRLConfig(**settings(tmp_path, logit_buffer_mb=told)).logit_buffer_mb == read


def test_config_keeps_ligers_loss_away_from_the_head(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_liger_kernel_available", lambda: True, raising=False)
    config = IRLConfig(**settings(tmp_path), use_liger_kernel=True, liger_kernel_config={"rope": True})
    assert config.liger_kernel_config == {"rope": True, "fused_linear_cross_entropy": False}


EMPTY = Dataset.from_dict({"prompt": [], "completion": []})


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"train_dataset": EMPTY}, "The train dataset has no rows"),
        ({"eval_dataset": EMPTY}, "The eval dataset has no rows"),
        ({"eval_dataset": {"a": Dataset.from_list(ROWS), "b": EMPTY}}, "The b dataset has no rows"),
        ({"train_dataset": Dataset.from_dict({"question": ["a"], "answer": ["b"]})}, "['question', 'answer']"),
        ({"max_length": 4}, "All 8 rows of the train dataset were dropped: with `max_length=4`"),
        ({"peft_config": LoraConfig(target_modules=["q_proj", "lm_head"])}, "`target_modules` names 'lm_head'"),
        ({"lambda_kl": 0.1, "ref_model": make_model("qwen2", vocab_size=301)}, "300 embeddings and `ref_model` 301"),
        ({"ref_model": make_model("qwen2")}, "`lambda_kl=0`, so it would never be used"),
    ],
)
def test_trainer(bad, message, make_trainer, tmp_path):
    # Every prompt is longer than 4 tokens but one; that one goes.
    rows = Dataset.from_list([{**row, "prompt": "What is the sky? " + row["prompt"]} for row in ROWS])
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(**{"train_dataset": rows, **bad})
    assert not list((tmp_path / "run").glob("*")) if (tmp_path / "run").exists() else True


class Returns(Objective):
    def __init__(self, what):
        self.what = what

    def __call__(self, terms, output, lambda_td):
        return self.what(terms)


@pytest.mark.parametrize(
    "objective, told",
    [
        (Returns, "`objective=<class .*Returns'>` is no objective. Pass an instance"),
        ("z_loss", "'z_loss'` is no objective. .* A name is for the arguments"),
        (lambda terms, output, lambda_td: terms.nll.sum(), "is no objective. Pass an instance of a subclass"),
    ],
)
def test_what_is_no_objective(objective, told, make_trainer):
    with pytest.raises(TypeError, match=told):
        make_trainer(trainer_objective=objective)


@pytest.mark.parametrize(
    "what", [lambda terms: terms.nll, lambda terms: None, lambda terms: 1.0, lambda terms: terms.nll.sum().detach()]
)
def test_what_an_objective_returns(what, make_trainer):
    trainer = make_trainer(trainer_objective=Returns(what))
    with pytest.raises(ValueError, match="The objective Returns returned .* It must be a scalar tensor"):
        trainer.train()


@pytest.mark.parametrize("name", ["lambda_td", "gamma", "lambda_kl", "td_scale", "gem_beta", "mle_warmup_steps"])
def test_numbers_that_are_none(name, tmp_path):
    for value in ("0.1", [1.0], True):
        with pytest.raises(ValueError, match=f"`{name}=.* is of the type {type(value).__name__}. Set it to a number"):
            IRLConfig(**settings(tmp_path, **{name: value}))
    if name != "td_scale":
        with pytest.raises(ValueError, match=f"`{name}=None`"):
            IRLConfig(**settings(tmp_path, **{name: None}))
    for half in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), Decimal("0.5")):
        config = IRLConfig(**settings(tmp_path, lambda_td=half))
        assert (
            config.lambda_td == 0.5
            and type(config.lambda_td) is float
            and '"lambda_td": 0.5' in config.to_json_string()
        )
    with pytest.raises(ValueError, match="is of the type ndarray. Set it to a number"):
        IRLConfig(**settings(tmp_path, lambda_td=np.array([0.5, 1.0])))
    with pytest.raises(ValueError, match="`td_target_grad='false'`: it is of the type str. Set it to True or Fa"):
        IRLConfig(**settings(tmp_path, td_target_grad="false"))


def test_rows_that_a_transform_or_a_collator_prepares(make_trainer, tokenizer):
    def encode(batch):
        ids = [tokenizer(text)["input_ids"] + [1] for text in batch["text"]]
        return {"input_ids": ids, "labels": ids}

    class Collator(DataCollatorForLanguageModeling):
        def torch_call(self, rows):
            return super().torch_call(
                [{key: x[0] for key, x in encode({"text": [row["text"]]}).items()} for row in rows]
            )

    rows = Dataset.from_list([{"text": "The quick fox"}] * 2)
    keys = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "max_steps": 1}
    make_trainer(train_dataset=rows.with_transform(encode), **keys).train()
    make_trainer(train_dataset=rows, data_collator=Collator(pad_token_id=0), **keys).train()


def test_rows_that_nothing_has_prepared(make_trainer):
    with pytest.raises(ValueError, match=r"leaves rows as they are, .* \['prompt', 'completion'\]"):
        make_trainer(dataset_kwargs={"skip_prepare_dataset": True})


def test_some_rows_dropped_is_a_warning(make_trainer, caplog):
    rows = [*ROWS, {"prompt": "The quick brown fox " * 20, "completion": "no"}]
    trainer = make_trainer(train_dataset=Dataset.from_list(rows))
    assert len(trainer.train_dataset) == len(ROWS)
    assert "1 of 9 rows of the train dataset were dropped" in caplog.text


def test_conversations_that_end_with_another_token_than_eos_are_a_warning(make_trainer, tokenizer, caplog):
    """As with Qwen's base models: the template ends a turn with <|im_end|>, EOS is another token."""
    chat = [{"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}]}] * 4
    make_trainer(train_dataset=Dataset.from_list(chat))
    assert "None of the first 4 training rows has a stop token (<eos>)" in caplog.text
    caplog.clear()
    own = copy.deepcopy(tokenizer)  # the trainer sets its EOS
    trainer = make_trainer(train_dataset=Dataset.from_list(chat), eos_token="<|im_end|>", processing_class=own)
    assert "stop token" not in caplog.text and 3 in trainer.stop_token_ids


def test_adapter_on_the_head_however_it_got_there(make_trainer):
    with pytest.raises(ValueError, match="lm_head"):
        make_trainer(make_model("llama"), peft_config=LoraConfig(target_modules=".*(q_proj|lm_head)"))


def test_all_linear_leaves_the_head_out(make_trainer):
    make_trainer(make_model("llama"), peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))


def test_no_eos(make_trainer, tokenizer):
    model = make_model("qwen2")
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="has no EOS token"):
        make_trainer(model, processing_class=endless)


def test_model_as_its_own_reference(make_trainer):
    model = make_model()
    with pytest.raises(ValueError, match="is the model itself"):
        make_trainer(model, ref_model=model, lambda_kl=0.1)


def test_kl_without_a_way_to_a_reference(make_trainer, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.irl.argument_checks.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="cannot be copied"):
        make_trainer(lambda_kl=0.1)


def test_own_loss_function(tokenizer, tmp_path):
    from trl_irl import IRLTrainer

    with pytest.raises(ValueError, match="compute_loss_func"):
        IRLTrainer(
            make_model(),
            args=IRLConfig(**settings(tmp_path)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
            compute_loss_func=lambda *_: None,
        )


def test_processes_that_would_each_train_alone(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_parallelism(trainer.accelerator, trainer.args)  # a cluster's variable, and no launcher's
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="started 2 processes, and each of them would train alone"):
        check_parallelism(trainer.accelerator, trainer.args)


def test_a_batch_size_that_each_process_would_find_for_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(UserWarning, match="`auto_find_batch_size=True` on several processes: .*the others wait for it"):
        IRLConfig(**settings(tmp_path, auto_find_batch_size=True, use_cpu=False))
