"""Losses and gradients that are not finite, and SIGTERM, in one process."""

import copy
import dataclasses
import json
import math
import os
import pickle
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.conftest import make_model
from tests.trainer.conftest import ROWS
from trl_irl import IRLConfig, OnlineIRLConfig
from trl_irl.trainer.runtime.checkpoints import newest_checkpoint
from trl_irl.trainer.runtime.step_guard import MAX_SKIPPED_IN_A_ROW, StepGuard


POISONED = {"prompt": "Of one ~", "completion": " blue"}  # the only row with a ~
OPTIONS = {
    "per_device_train_batch_size": 1,
    "train_sampling_strategy": "sequential",
    "lr_scheduler_type": "constant",
    "learning_rate": 1e-2,
}


@pytest.fixture
def poisoned(tokenizer):
    """A model for which one token has an infinite embedding."""
    model = make_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("~")] = math.inf
    return model


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "embed_tokens" not in name}


def test_a_skipped_step_is_as_if_its_batch_were_not_there(make_trainer, poisoned):
    rows = Dataset.from_list([*ROWS[:3], POISONED, *ROWS[3:5]])
    trainer = make_trainer(poisoned, rows, nan_policy="skip", max_steps=6, logging_steps=3, **OPTIONS)
    trainer.train()
    clean = make_trainer(make_model("llama"), Dataset.from_list(ROWS[:5]), max_steps=5, **OPTIONS)
    clean.train()
    for name, expected in weights(clean.model).items():
        torch.testing.assert_close(weights(trainer.model)[name], expected, rtol=0, atol=1e-6)
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert (first["skipped_steps"], second["skipped_steps"]) == (0, 1)
    # The metrics of the window with the skipped step are those of its other two steps.
    tokens = [entry for entry in clean.state.log_history if "nll" in entry]
    assert second["num_tokens"] == tokens[4]["num_tokens"]
    counts = [tokens[i]["num_tokens"] - tokens[i - 1]["num_tokens"] for i in (3, 4)]
    assert min(counts) > 0 and math.isfinite(second["loss"])
    low, high = sorted(entry["nll"] for entry in tokens[3:5])
    assert low < second["nll"] < high


def test_a_bad_micro_batch_takes_its_whole_step_with_it(make_trainer, poisoned):
    rows = Dataset.from_list([ROWS[0], POISONED])
    trainer = make_trainer(poisoned, rows, nan_policy="skip", gradient_accumulation_steps=2, max_steps=1, **OPTIONS)
    before = weights(trainer.model)
    trainer.train()
    for name, expected in before.items():
        assert torch.equal(weights(trainer.model)[name], expected), name


def test_stop_before_the_weights_change(make_trainer, poisoned, tmp_path):
    rows = Dataset.from_list([*ROWS[:3], POISONED, *ROWS[3:5]])
    options = {**OPTIONS, "max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = make_trainer(poisoned, rows, **options)
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("Step 4: the loss is NaN or infinite.")
    assert "This step: nll nan" in message and "learning_rate 0.01" in message and "lambda_td 0.1" in message
    assert "At the last log, step 3: nll" in message and "a smaller `lambda_td`" in message
    assert f"The newest checkpoint is {tmp_path / 'run' / 'checkpoint-3'}" in message
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert all(tensor.isfinite().all() for tensor in weights(trainer.model).values())


def test_hint_about_the_stop_tokens(make_trainer):
    """Q of the stop token far from 0, its value after it 0: a squared reward that overflows."""
    rows = Dataset.from_list([{"prompt": "One", "completion": ""}] * 8)
    with pytest.raises(FloatingPointError, match="terminal_value: mask"):
        make_trainer(make_model("cohere", logit_scale=1e7), rows, lambda_td=1e30).train()


def test_gradients_that_are_not_finite(make_trainer):
    trainer = make_trainer(max_steps=2)
    weight = trainer.model.get_input_embeddings().weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match="Step 1: the loss is finite, but its gradients are not"):
        trainer.train()


def test_skipping_has_an_end(make_trainer, poisoned):
    rows = Dataset.from_list([POISONED] * 20)
    trainer = make_trainer(poisoned, rows, nan_policy="skip", max_steps=20, **OPTIONS)
    with pytest.raises(FloatingPointError, match=f"It is number {MAX_SKIPPED_IN_A_ROW} in a row"):
        trainer.train()
    assert trainer.state.global_step == MAX_SKIPPED_IN_A_ROW - 1


@pytest.mark.parametrize("loss, sound", [(1.0, True), (math.nan, False)])
def test_an_overflow_of_fp16_gradients_is_the_scalers_business(loss, sound):
    accelerator = SimpleNamespace(
        distributed_type="NO", mixed_precision="fp16", device=torch.device("cpu"), gather=lambda flags: flags
    )
    guard = StepGuard(SimpleNamespace(nan_policy="stop"), accelerator)
    guard.watch(torch.tensor(loss))
    assert guard.is_sound(math.inf) is sound


class SignalAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_training_goes_on_from_there(make_trainer, tmp_path):
    options = {"save_on_signal": True, "max_steps": 6, "per_device_train_batch_size": 2} | {
        "gradient_accumulation_steps": 2
    }
    handler = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(**options)
    trainer.add_callback(SignalAt(3))
    trainer.train()
    assert trainer.stopped_by_signal and trainer.state.global_step == 3
    assert json.loads((tmp_path / "run/checkpoint-3/trainer_state.json").read_text())["global_step"] == 3
    assert signal.getsignal(signal.SIGTERM) is handler

    resumed = make_trainer(**options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"))
    assert not resumed.stopped_by_signal
    whole = make_trainer(**options)
    whole.train()
    for name, expected in weights(whole.model).items():
        assert torch.equal(weights(resumed.model)[name], expected), name


def test_after_a_signal_nothing_is_evaluated_or_saved_again(make_trainer, tmp_path):
    """The Trainer takes the end of the run for that of an epoch."""
    done = []

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            done.append(("save", state.global_step))

        def on_evaluate(self, args, state, control, **kwargs):
            done.append(("evaluate", state.global_step))

    keys = {"save_strategy": "epoch", "eval_strategy": "epoch", "eval_dataset": Dataset.from_list(ROWS[:2])}
    trainer = make_trainer(
        save_on_signal=True,
        max_steps=20,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        **keys,
    )
    trainer.add_callback(Watch())
    trainer.add_callback(SignalAt(1))
    trainer.train()
    assert trainer.stopped_by_signal and done == [("save", 1)]


def test_a_checkpoint_that_is_written_over_is_not_whole_meanwhile(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    assert newest_checkpoint(tmp_path / "run") == str(tmp_path / "run/checkpoint-1")
    seen = []

    def killed(*args, **kwargs):
        with pytest.warns(UserWarning, match="checkpoint-1 was not written to its end"):
            seen.append(newest_checkpoint(tmp_path / "run"))
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer._save_checkpoint(trainer.model, None)
    assert seen == [None]


def test_the_signal_is_given_back_where_training_fails(make_trainer):
    class Fails(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("on purpose")

    handler = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(save_on_signal=True)
    trainer.add_callback(Fails())
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_signals_need_the_main_thread(make_trainer):
    trainer = make_trainer(save_on_signal=True)
    errors = []

    def train():
        try:
            trainer.train()
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert "`save_on_signal=True` needs training to run in the main thread" in errors[0]


def test_a_hub_token_is_not_saved_with_the_arguments(make_trainer, tmp_path):
    trainer = make_trainer(hub_token="hf_secret")
    trainer.save_model()
    assert b"hf_secret" not in (tmp_path / "run/training_args.bin").read_bytes()
    assert trainer.args.hub_token == "hf_secret"  # pushing still works
    assert "hf_secret" not in str(trainer.args.to_dict())
    assert pickle.loads(pickle.dumps(trainer.args)).lambda_td == 0.1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, dataclasses.replace])
@pytest.mark.parametrize("config", [IRLConfig, OnlineIRLConfig])
def test_copies_of_the_arguments_are_whole(config, copied, tmp_path):
    args = config(str(tmp_path), hub_token="hf_secret", use_cpu=True, bf16=False, lr_scheduler_kwargs={"min_lr": 1e-6})
    new = copied(args)
    assert type(new) is config and new.hub_token == "hf_secret"
    assert new.to_dict() == args.to_dict()
    new.lr_scheduler_kwargs["min_lr"] = 0.0
    assert args.lr_scheduler_kwargs["min_lr"] == (1e-6 if copied is copy.deepcopy else 0.0)
