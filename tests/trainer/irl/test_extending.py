"""What others do with the trainer and its model: copies, a second trainer, a subclass with a term of its own."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import IRLConfig, IRLTrainer
from trl_irl.trainer.irl.token_metrics import TokenMetrics


IDS = torch.arange(10, 20)[None]


def test_a_copy_of_a_trained_model_keeps_its_weights(make_trainer):
    """A moving average, a reference, a rollback: also under autocast, which wraps the forward when training starts."""
    trainer = make_trainer(learning_rate=1e-2, bf16=True)
    kept = copy.deepcopy(trainer.model).eval()
    with torch.no_grad():
        before = kept(input_ids=IDS).logits
    trainer.train()
    later = copy.deepcopy(trainer.model).eval()
    with torch.no_grad():
        assert torch.equal(kept(input_ids=IDS).logits, before)
        after = later(input_ids=IDS).logits
        for parameter in trainer.model.parameters():
            parameter.zero_()
        assert torch.equal(later(input_ids=IDS).logits, after)
    assert not torch.allclose(after, before)


def test_a_second_trainer_of_the_same_model_trains_as_one_of_a_fresh_model(make_trainer):
    trainer = make_trainer(learning_rate=0.0)
    trainer.train()
    again, fresh = make_trainer(trainer.model), make_trainer()
    (loss, gradients), (expected_loss, expected) = one_step(again), one_step(fresh)
    torch.testing.assert_close(loss, expected_loss)
    assert gradients.keys() == expected.keys()
    for name in gradients:
        torch.testing.assert_close(gradients[name], expected[name])


def test_a_term_of_the_logits_has_its_gradient(tokenizer, tmp_path):
    """loss + 3 mean(logits^2) against plain autograd on the model itself, in one forward."""

    class Mine(IRLTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            loss = loss + 3 * outputs.logits.float().square().mean()
            return (loss, outputs) if return_outputs else loss

    arguments = IRLConfig(**settings(tmp_path, lambda_td=0.0))
    rows = Dataset.from_list(ROWS)
    trainer = Mine(make_model(), args=arguments, train_dataset=rows, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, gradients = one_step(trainer)

    plain = make_model()
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:].flatten()
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    expected = nll + 3 * logits.square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)
    with torch.no_grad():
        logits = make_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    trainer.args.per_device_eval_batch_size = len(ROWS)
    evaluated = trainer.evaluate(rows)
    wanted = evaluated["eval_nll"] + 3 * logits.square().mean().item()
    assert evaluated["eval_loss"] == pytest.approx(wanted, rel=1e-5)


def test_embeddings_that_grow_under_a_trainer(make_trainer):
    """What was added is in V, and can be a label."""
    trainer = make_trainer(lambda_td=0.0)
    one_step(trainer)
    trainer.model.resize_token_embeddings(310)
    ids = torch.tensor([[5, 6, 305, 7]])
    own = trainer.model(input_ids=ids, labels=ids).loss
    loss = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids})
    torch.testing.assert_close(loss, own)
    (gradient,) = torch.autograd.grad(loss, trainer.model.get_output_embeddings().weight)
    assert gradient.shape[0] == 310 and (gradient[300:].abs().sum(1) > 0).all()


class Probe(TrainerCallback):
    """The loss of one batch after every step, as scripts look at it."""

    def __init__(self):
        self.losses = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            loss = self.trainer.compute_loss(model, {key: x.clone() for key, x in self.batch.items()})
        self.losses.append(loss.item())


def test_a_callback_may_look_at_a_loss(make_trainer):
    """Without gradient, in training mode: the number that a step would have, and no part of the step's metrics."""
    histories = []
    for probe in (None, Probe()):
        trainer = make_trainer(lambda_td=0.3, max_steps=3, logging_steps=1)
        if probe:
            trainer.add_callback(probe)
            probe.trainer, probe.batch = trainer, next(iter(trainer.get_train_dataloader()))
            with torch.enable_grad():
                expected = trainer.compute_loss(trainer.model, {key: x.clone() for key, x in probe.batch.items()})
            trainer._token_metrics["train"] = TokenMetrics()
        trainer.train()
        names = ("loss", "nll", "num_tokens", "td_loss")
        histories.append([[entry[name] for name in names] for entry in trainer.state.log_history if "loss" in entry])
    assert histories[0] == histories[1]
    assert len(probe.losses) == 3 and probe.losses[2] < expected.item()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("lambda_td", [0.0, 0.3])
def test_the_mean_is_over_scored_tokens_whatever_the_class(make_trainer, architecture, lambda_td):
    """Trainer decides by the class's name whether labels are shifted; full rows score their first token too."""
    rows = Dataset.from_list([{"input_ids": [5 + i, 6, 7 + i, 8, 1][: 3 + i % 3] + [1]} for i in range(8)])
    results = []
    for size, more in ((8, {}), (2, {"gradient_accumulation_steps": 4})):
        model = make_model(architecture)
        trainer = make_trainer(
            model, rows, lambda_td=lambda_td, per_device_train_batch_size=size, shuffle_dataset=False, **more
        )
        results.append((*one_step(trainer), trainer.evaluate(rows)))
    (loss, gradients, evaluated), (other_loss, others, _) = results
    torch.testing.assert_close(loss, other_loss)
    for name in gradients:
        torch.testing.assert_close(gradients[name], others[name])
    expected = evaluated["eval_nll"]
    if lambda_td == 0:
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        total, tokens = 0.0, 0
        plain = make_model(architecture)
        for row in rows["input_ids"]:
            log_pi = plain(input_ids=torch.tensor([row])).logits[0, :-1].detach().double().log_softmax(-1)
            total -= log_pi.gather(1, torch.tensor(row[1:])[:, None]).sum().item()
            tokens += len(row) - 1
        assert loss.item() == pytest.approx(total / tokens, rel=1e-5)
