"""The trainer's loss and gradients against the definition, document by document, with full float64 logits."""

import copy

import pytest
import torch
from datasets import Dataset

from tests.conftest import make_model
from tests.trainer.conftest import ROWS, one_step


LAMBDA_TD, GAMMA = 0.3, 0.9


def plain_loss(model, documents, stop, lambda_td=LAMBDA_TD, gamma=GAMMA, terminal_value="zero"):
    """
    `documents` are (input_ids, labels), each run through the model alone and unpadded; then the loss of DESIGN 2,
    written with a loop over tokens. Returns a float64 scalar with gradients.
    """
    total, count = 0.0, 0
    for input_ids, labels in documents:
        logits = model(input_ids=torch.tensor([input_ids])).logits[0]
        for t in range(len(labels) - 1):
            action = labels[t + 1]
            if action == -100:
                continue
            q, v = logits[t, action], torch.logsumexp(logits[t], 0)
            total, count = total + v - q, count + 1
            if action in stop:
                if terminal_value == "zero":
                    total = total + lambda_td * q**2
            elif t + 2 < len(labels) and labels[t + 2] != -100:
                total = total + lambda_td * (q - gamma * torch.logsumexp(logits[t + 1], 0)) ** 2
    return total / count


def prompt_completion(tokenizer, rows, max_length=None):
    documents = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        full = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"][:max_length]
        documents.append((full, [-100] * len(prompt) + full[len(prompt) :]))
    return documents


def assert_step_equals(trainer, documents, stop, **kwargs):
    reference = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    reference.__dict__.pop("forward", None)  # the class's own forward, bound to the copy
    reference = reference.double().eval()
    loss, gradients = one_step(trainer)
    expected = plain_loss(reference, documents, stop, **kwargs)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in reference.named_parameters():
        error = (gradients[name].double() - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-6)
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt_neox", "gemma2", "gpt2"])
@pytest.mark.parametrize("terminal_value", ["zero", "mask"])
def test_padded_batch(architecture, terminal_value, make_trainer, tokenizer):
    trainer = make_trainer(
        make_model(architecture), lambda_td=LAMBDA_TD, gamma=GAMMA, terminal_value=terminal_value, logit_buffer_mb=0.01
    )
    assert_step_equals(trainer, prompt_completion(tokenizer, ROWS), {1}, terminal_value=terminal_value)


@pytest.mark.parametrize(
    "layout",
    [
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3},
        {"packing": True, "per_device_train_batch_size": 100},
        {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 100},
        {"padding_free": True, "max_length": None},
        {"gradient_checkpointing": True},
        {"pad_to_multiple_of": 32},
    ],
    ids=lambda layout: "-".join(layout),
)
def test_every_layout_of_the_batch_gives_the_same_step(layout, make_trainer, tokenizer):
    trainer = make_trainer(lambda_td=LAMBDA_TD, gamma=GAMMA, **layout)
    assert_step_equals(trainer, prompt_completion(tokenizer, ROWS), {1})


def test_eos_as_pad_token(make_trainer, tokenizer):
    eos_padded = copy.deepcopy(tokenizer)
    eos_padded.pad_token = eos_padded.eos_token
    trainer = make_trainer(lambda_td=LAMBDA_TD, gamma=GAMMA, processing_class=eos_padded)
    assert_step_equals(trainer, prompt_completion(tokenizer, ROWS), {1})


def test_completion_cut_by_max_length(make_trainer, tokenizer):
    trainer = make_trainer(lambda_td=LAMBDA_TD, gamma=GAMMA, max_length=20)
    documents = prompt_completion(tokenizer, ROWS, max_length=20)
    assert any(labels[-1] != tokenizer.eos_token_id for _, labels in documents)  # some really are cut
    assert_step_equals(trainer, documents, {1})


def test_language_modelling_rows(make_trainer, tokenizer):
    texts = [row["prompt"] + row["completion"] for row in ROWS]
    trainer = make_trainer(
        train_dataset=Dataset.from_dict({"text": texts}),
        lambda_td=LAMBDA_TD,
        gamma=GAMMA,
        packing=True,
        per_device_train_batch_size=100,
    )
    ids = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts]
    assert_step_equals(trainer, [(x, x) for x in ids], {1})


def test_wrapped_packing_ends_documents_at_their_eos(make_trainer, tokenizer):
    """Rows of a stream cut every 32 tokens, with documents scored across: only the stop token separates them."""
    texts = [row["prompt"] + row["completion"] for row in ROWS]
    trainer = make_trainer(
        train_dataset=Dataset.from_dict({"text": texts}),
        lambda_td=LAMBDA_TD,
        gamma=GAMMA,
        packing=True,
        packing_strategy="wrapped",
        max_length=32,
        per_device_train_batch_size=100,
    )
    stream = [token for text in texts for token in tokenizer(text + tokenizer.eos_token)["input_ids"]]
    rows = [stream[i : i + 32] for i in range(0, len(stream), 32)]
    assert_step_equals(trainer, [(row, row) for row in rows], {1})


CHAT = [
    {"role": "user", "content": "What is blue?"},
    {"role": "assistant", "content": "The sky"},
    {"role": "user", "content": "Count"},
    {"role": "assistant", "content": "one two three"},
]


def test_two_assistant_turns_and_the_newline_after_each(make_trainer, tokenizer):
    """Stop token <|im_end|> (generation_config), a masked user turn between; the newline is not in the mask."""
    model = make_model("qwen2")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    trainer = make_trainer(
        model,
        Dataset.from_list([{"messages": CHAT}]),
        lambda_td=LAMBDA_TD,
        gamma=GAMMA,
        assistant_only_loss=True,
        max_length=200,
    )
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    labels = [token if scored else -100 for token, scored in zip(ids, mask, strict=True)]
    assert labels.count(end) == 2
    assert_step_equals(trainer, [(ids, labels)], {end, tokenizer.eos_token_id})


def test_scored_newline_after_the_end_of_turn(make_trainer, tokenizer):
    """The template puts a newline after <|im_end|>, and prompt-completion scores it; it is no next state."""
    model = make_model("qwen2")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    trainer = make_trainer(
        model,
        Dataset.from_list([{"prompt": CHAT[:1], "completion": CHAT[1:2]}]),
        lambda_td=LAMBDA_TD,
        gamma=GAMMA,
        max_length=200,
    )
    prompt = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    full = tokenizer.apply_chat_template(CHAT[:2], return_dict=True)["input_ids"]
    assert full[-2] == end and tokenizer.decode(full[-1:]) == "\n"
    assert_step_equals(trainer, [(full, [-100] * len(prompt) + full[len(prompt) :])], {end, tokenizer.eos_token_id})
