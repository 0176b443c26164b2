"""Held-out likelihood and temporal-difference error against the trainer's own evaluation."""

import copy

import pytest
from datasets import Dataset

from tests.conftest import make_model
from trl_irl import IRLConfig, IRLTrainer
from trl_irl.rewards.held_out_loss import held_out_sums
from trl_irl.text.encode import encode


TEXT = [
    {"prompt": "What is the colour of the sky?", "completion": " It is blue."},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog. 1 2 3"},
]
CHAT = [
    {"prompt": [{"role": "user", "content": row["prompt"]}], "completion": row["completion"].strip()} for row in TEXT
]


@pytest.mark.parametrize("rows", [TEXT, CHAT], ids=["text", "messages"])
@pytest.mark.parametrize("reward", [(1.0, "zero", 1.0), (0.9, "mask", 1.0), (0.9, "mask", 2.0)])
def test_equals_the_trainers_evaluation(rows, reward, tokenizer, tmp_path):
    reward = dict(zip(("gamma", "terminal_value", "value_temperature"), reward, strict=True))
    as_messages = not isinstance(rows[0]["prompt"], str)
    data = [
        {**row, "completion": [{"role": "assistant", "content": row["completion"]}]} if as_messages else row
        for row in rows
    ]
    args = IRLConfig(
        output_dir=str(tmp_path),
        report_to="none",
        use_cpu=True,
        bf16=False,
        **reward,
        eos_token="<|im_end|>" if as_messages else None,
        gradient_checkpointing=False,
    )
    tokenizer = copy.deepcopy(tokenizer)
    trainer = IRLTrainer(
        model=make_model("qwen2"),
        args=args,
        train_dataset=Dataset.from_list(data),
        eval_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    expected = trainer.evaluate()
    model = make_model("qwen2")
    model.generation_config.eos_token_id = trainer.model.generation_config.eos_token_id
    for batch_size in (1, 2, 8):
        sums = held_out_sums(model, tokenizer, rows, batch_size=batch_size, **reward)
        for name in ("nll", "td_loss"):
            assert sums[name].shape == (3, 2)
            total, tokens = sums[name].sum(axis=0)
            assert total / tokens == pytest.approx(expected[f"eval_{name}"], rel=1e-5)
    assert "soft_q" not in model.forward.__code__.co_varnames  # the model is as it was


def test_ids_are_those_of_training(tokenizer):
    ids, labels = encode(tokenizer, TEXT[1])
    assert tokenizer.decode(ids) == "One two three<eos>" and labels[0] == -100 and labels[-1] == 1
    assert encode(tokenizer, {"prompt": "One", "completion": " two<eos>"})[0].count(1) == 1  # not twice


def test_a_row_that_does_not_fit(tokenizer):
    rows = [TEXT[0], {"prompt": "One", "completion": " 1 2" * 200}]
    with pytest.raises(ValueError, match="Row 1 has 403 tokens.*context is 256"):
        held_out_sums(make_model("qwen2"), tokenizer, rows)
