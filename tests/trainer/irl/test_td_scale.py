"""The temporal-difference term at the defaults: no larger than the likelihood at the start, whatever V's scale."""

import logging
import re

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step
from trl_irl.trainer.irl.first_step import drowning


def wild(seed: int = 0):
    """A model whose V moves by many nats from token to token, as those of pretrained ones do."""
    model = make_model("llama", seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    return model


def plain_td_and_nll(model, rows, stop: int = 1):
    """Mean squared reward (terminal masked) and nll, from full logits in float64."""
    rewards, nll = [], []
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        logits = model(input_ids=torch.tensor([ids])).logits[0].detach().double()
        v = logits.logsumexp(-1)
        for t, action in enumerate(labels[1:]):
            if action != -100:
                nll.append((v[t] - logits[t, action]).item())
                if action != stop:
                    rewards.append((logits[t, action] - v[t + 1]).item())
    return sum(r * r for r in rewards) / len(rewards), sum(nll) / len(nll), len(rewards) / len(nll)


@pytest.mark.parametrize("size, steps", [(8, 1), (2, 4)])
def test_the_scale_is_the_first_steps_mean_squared_reward(make_trainer, size, steps):
    trainer = make_trainer(
        wild(),
        td_scale=None,
        terminal_value="mask",
        per_device_train_batch_size=size,
        gradient_accumulation_steps=steps,
    )
    td, nll, share = plain_td_and_nll(wild(), trainer.train_dataset)
    assert td > 50
    loss, _ = one_step(trainer)
    assert trainer.td_scale == pytest.approx(td, rel=1e-4)
    assert loss.item() == pytest.approx(nll + 0.1 * share, rel=1e-4)


def test_a_reward_of_a_nat_or_less_is_left_as_it_is(make_trainer):
    def small():
        model = make_model("llama")
        with torch.no_grad():
            model.lm_head.weight.mul_(0.02)
        return model

    (loss, gradients), (expected, others) = (
        one_step(make_trainer(small(), td_scale=scale, terminal_value="mask", gamma=0.1)) for scale in (None, 1.0)
    )
    assert torch.equal(loss, expected)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_a_trained_model_is_evaluated_with_the_scale_of_its_training(make_trainer, tmp_path):
    """A new trainer of a folder that IRL has saved; when it trains, its own first step is measured."""
    asked = {"td_scale": None, "terminal_value": "mask", "eval_dataset": Dataset.from_list(ROWS[:4])}
    trainer = make_trainer(wild(), **asked)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    expected = trainer.evaluate()
    again = make_trainer(str(tmp_path / "saved"), **asked)
    assert again.td_scale == trainer.td_scale > 50
    assert again.evaluate()["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    one_step(again)
    measured = make_trainer(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), **asked)
    assert measured.td_scale == 1 and one_step(measured)
    assert again.td_scale == measured.td_scale != trainer.td_scale  # what the folder says is not trained with
    for other in ({"objective": "value_consistency"}, {"terminal_value": "zero"}, {"td_scale": 3.0}):
        now = make_trainer(str(tmp_path / "saved"), **{**asked, **other})
        assert now.td_scale == other.get("td_scale", 1.0)


def test_measuring_draws_nothing_random_and_changes_nothing(make_trainer):
    """With dropout, a run that measures is the run that is told what was measured; evaluation uses the same scale."""
    results = []
    scale = None
    for _ in range(2):
        model = make_model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        with torch.no_grad():
            model.transformer.ln_f.weight.fill_(20.0)
        trainer = make_trainer(
            model, td_scale=scale, eval_dataset=Dataset.from_list(ROWS), per_device_eval_batch_size=8
        )
        trainer.train()
        scale = trainer.td_scale
        metrics = trainer.evaluate()
        results.append(({n: p.detach().clone() for n, p in model.named_parameters()}, metrics["eval_loss"]))
        assert metrics["eval_td_scale"] == scale > 1
        expected = metrics["eval_nll"] + 0.1 / scale * metrics["eval_td_loss"]  # terminal_value is zero: all tokens
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert all(torch.equal(results[0][0][name], results[1][0][name]) for name in results[0][0])
    assert results[0][1] == results[1][1]


def test_a_resumed_run_keeps_its_scale(make_trainer, tmp_path):
    straight = make_trainer(wild(), td_scale=None, max_steps=4, save_strategy="steps", save_steps=2)
    straight.train()
    resumed = make_trainer(wild(seed=1), td_scale=None, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.td_scale == straight.td_scale
    for (name, a), b in zip(straight.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_a_run_resumed_with_other_steps_is_told(make_trainer, tmp_path, caplog):
    """On half as many GPUs a step has half the rows: as many steps on, the run would be elsewhere."""
    keys = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    make_trainer(**keys, save_strategy="steps", save_steps=1).train()
    with caplog.at_level(logging.WARNING, logger="trl_irl"):
        make_trainer(**{**keys, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")
        )
        assert "of the run that is resumed" not in caplog.text
        make_trainer(**{**keys, "gradient_accumulation_steps": 1}).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")
        )
    assert "A step of the run that is resumed had 8 rows, and here it has 4" in caplog.text


@pytest.mark.parametrize(
    "key, value",
    [("value_temperature", 4.0), ("gamma", 0.5), ("terminal_value", "mask"), ("td_weights", [1.0, 0.0, 1.0])],
)
def test_a_run_resumed_with_another_square_measures_it_anew(make_trainer, tmp_path, caplog, key, value):
    fixed = {"td_scale": None, "max_steps": 3, "learning_rate": 0.0}
    make_trainer(wild(), **fixed, save_strategy="steps", save_steps=2).train()
    fresh, resumed = (make_trainer(wild(), **fixed, **{key: value}) for _ in range(2))
    fresh.train()
    with caplog.at_level(logging.WARNING, logger="trl_irl"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert f"The checkpoint has `{key}` " in caplog.text and "(td_scale) is measured anew" in caplog.text
    assert resumed.td_scale == pytest.approx(fresh.td_scale, rel=0.5) != make_trainer(wild()).td_scale


@pytest.mark.parametrize("scale, warned", [(1.0, True), (None, False)])
def test_the_first_log_says_when_the_term_drowns_the_likelihood(make_trainer, caplog, scale, warned):
    with caplog.at_level(logging.WARNING, logger="trl_irl"):
        make_trainer(wild(), td_scale=scale, terminal_value="mask", learning_rate=0.0).train()
    said = [record.getMessage() for record in caplog.records if "training is about the term first" in record.message]
    assert len(said) == warned
    if warned:
        assert "lambda_td 0.1 / td_scale 1" in said[0] and "set `td_scale:" in said[0]


def test_where_the_scale_was_measured_nothing_is_advised_that_is_so_already():
    """A model that imitates the data has a small nll, and a term of a nat is far above it."""
    logged = {"nll": 0.02, "lambda_td": 1.0, "td_loss": 1.2}
    measured, told = (drowning(logged, 1.06, ["td_loss"], is_measured) for is_measured in (True, False))
    assert "`td_scale` is measured already: set `lambda_td: 0.002`" in measured and "Leave" not in measured
    assert "Leave `td_scale` unset to have it measured, or set `td_scale: 1.2`, or `lambda_td: 0.002`." in told


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_that_mean_nothing_are_refused(make_trainer, scale):
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        make_trainer(td_scale=scale)


@pytest.mark.parametrize(
    "mle, ramp, said",
    [
        (100, 0, "The run has 3 optimiser steps.*100.*maximum likelihood to its end"),
        (3, 0, "The run has 3 optimiser steps.*maximum likelihood to its end"),
        (1, 4, "The run has 3 optimiser steps.*`lambda_td` gets to 0.05 of 0.1"),
        (1, 2, None),
        (2, 0, None),
    ],
)
def test_a_schedule_longer_than_the_run_is_said(make_trainer, caplog, mle, ramp, said):
    with caplog.at_level(logging.WARNING, logger="trl_irl"):
        make_trainer(mle_warmup_steps=mle, lambda_td_warmup_steps=ramp).train()
    found = [record.getMessage() for record in caplog.records if "optimiser steps" in record.getMessage()]
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])
