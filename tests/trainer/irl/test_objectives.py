"""
Every objective that `IRLConfig.objective` can name: its step, loss and all gradients, against its formula on the
model's own full logits in float64, token by token; and against TRL's own loss where TRL has it.
"""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step, settings
from trl_irl import IRLConfig, IRLTrainer, OnlineIRLConfig
from trl_irl.soft_q.objectives import OBJECTIVES


GAMMA, STOP = 0.9, 1
KEYS = {
    "soft_q": {"lambda_td": 0.3, "td_scale": 2.0},
    "value_consistency": {"lambda_td": 0.3, "td_scale": 2.0},
    "squared_nll": {"lambda_td": 0.3, "td_scale": 2.0},
    "nll": {},
    "dft": {},
    "focal": {"focal_gamma": 1.5},
    "z_loss": {"z_loss_weight": 0.05},
}


def formula(name, q, v, next_v):
    """The loss of one token, from Q(s, a), V(s) and V(s') (or `None` where it is not known), float64."""
    nll = v - q
    if name in ("soft_q", "value_consistency", "squared_nll"):
        if next_v is None:
            return nll
        x = {"soft_q": q - GAMMA * next_v, "value_consistency": v - GAMMA * next_v, "squared_nll": -nll}[name]
        return nll + 0.3 / 2.0 * x**2
    pi = (-nll).exp()
    return {
        "nll": nll,
        "dft": pi.detach() * nll,
        "focal": (1 - pi) ** 1.5 * nll,
        "z_loss": nll + 0.05 * v**2,
    }[name]


def reference(model, documents, name, terminal_value):
    """Loss of the documents and its gradients, by plain autograd, one document and one token at a time."""
    total, count = 0.0, 0
    for ids, labels in documents:
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
        v = logits.logsumexp(-1)
        for t in range(len(ids) - 1):
            if labels[t + 1] == -100:
                continue
            ends, follows = labels[t + 1] == STOP, t + 2 < len(ids) and labels[t + 2] != -100
            if ends:
                next_v = torch.zeros(()) if terminal_value == "zero" else None
            else:
                next_v = v[t + 1] if follows else None
            total = total + formula(name, logits[t, labels[t + 1]], v[t], next_v)
            count += 1
    loss = total / count
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def documents_of(tokenizer):
    found = []
    for row in ROWS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        found.append((ids, [-100] * len(prompt) + ids[len(prompt) :]))
    return found


def assert_same(step, expected):
    torch.testing.assert_close(torch.as_tensor(step[0]).double(), expected[0].double(), rtol=1e-5, atol=1e-6)
    for name, gradient in step[1].items():
        torch.testing.assert_close(
            gradient, expected[1][name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_every_objective_is_tested():
    assert set(KEYS) == set(OBJECTIVES)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"packing": True, "per_device_train_batch_size": 100},
    ],
    ids=["padded", "accumulated", "packed"],
)
@pytest.mark.parametrize("terminal_value", ["mask", "zero"])
@pytest.mark.parametrize("name", KEYS)
def test_against_its_formula(name, terminal_value, layout, make_trainer, tokenizer):
    keys = {"terminal_value": terminal_value, "gamma": GAMMA, "td_scale": None, **KEYS[name], **layout}
    trainer = make_trainer(make_model("llama"), objective=name, logit_buffer_mb=0.01, **keys)
    assert_same(one_step(trainer), reference(make_model("llama"), documents_of(tokenizer), name, terminal_value))


@pytest.mark.parametrize("name", KEYS)
def test_with_an_adapter(name, make_trainer, tokenizer):
    peft = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    keys = {"terminal_value": "mask", "gamma": GAMMA, "td_scale": None, **KEYS[name]}
    trainer = make_trainer(make_model("llama"), objective=name, peft_config=peft, **keys)
    step = one_step(trainer)
    plain = trainer.model  # without the head's switch its forward is the original one
    plain.zero_grad()
    assert len(step[1]) > 1 and all("lora" in key for key in step[1])
    assert_same(step, reference(plain, documents_of(tokenizer), name, "mask"))


@pytest.mark.parametrize("name, loss_type", [("nll", "nll"), ("dft", "dft")])
def test_as_trl_has_it(name, loss_type, tokenizer, tmp_path):
    steps = []
    for trainer_class, args in (
        (SFTTrainer, SFTConfig(**settings(tmp_path, loss_type=loss_type))),
        (IRLTrainer, IRLConfig(**settings(tmp_path, objective=name))),
    ):
        rows = Dataset.from_list(ROWS)
        steps.append(
            one_step(trainer_class(make_model("llama"), args=args, train_dataset=rows, processing_class=tokenizer))
        )
    (loss, gradients), ours = steps
    assert_same(ours, (torch.as_tensor(loss), gradients))


def test_what_scale_is_measured_is_that_of_what_is_squared(make_trainer):
    """Values that move by tens of nats: (V - gamma V')^2 and r^2 then differ, and each is divided by its own mean."""
    scales = {}
    for name in ("soft_q", "value_consistency", "squared_nll"):
        model = make_model("llama")
        with torch.no_grad():
            model.lm_head.weight.mul_(60)
        trainer = make_trainer(model, objective=name, td_scale=None, gamma=0.5, max_steps=1)
        trainer.train()
        scales[name] = trainer.td_scale
    assert all(scale > 1 for scale in scales.values()) and len(set(scales.values())) == 3


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"objective": "mle"}, "`objective='mle'` is unknown; there are soft_q, "),
        ({"objective": "nll", "lambda_td": 0.3}, "`lambda_td=0.3` means nothing to `objective='nll'`.*: soft_q, "),
        ({"objective": "dft", "td_scale": 1.0}, "`td_scale=1.0` means nothing to"),
        ({"objective": "focal", "mle_warmup_steps": 3}, "`mle_warmup_steps=3` means nothing to"),
        ({"focal_gamma": 1.0}, "`focal_gamma=1.0` means nothing to `objective='soft_q'`.*one that has it: focal"),
        ({"objective": "z_loss", "z_loss_weight": -1.0}, "`z_loss_weight=-1.0` is out of range"),
        ({"objective": "focal", "focal_gamma": float("nan")}, "`focal_gamma=nan` is out of range"),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        IRLConfig(**settings(tmp_path, **keys))


def test_without_a_temporal_difference_term_none_is_told(make_trainer, tmp_path):
    assert IRLConfig(**settings(tmp_path, objective="nll", lambda_td=0.0)).lambda_td == 0.0
    trainer = make_trainer(objective="z_loss", td_scale=None, z_loss_weight=0.1)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "nll" in entry)
    assert logged["lambda_td"] == 0 and logged["loss"] > logged["nll"]


def test_online_has_one_objective(tmp_path):
    with pytest.raises(ValueError, match="`objective='dft'` has no online form"):
        OnlineIRLConfig(**settings(tmp_path, objective="dft"))
