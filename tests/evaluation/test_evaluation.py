import copy

import pytest
import torch

from tests.conftest import make_model
from trl_irl.evaluation.rendering import markdown, plot_training
from trl_irl.text.sampling import sample_completions


def test_greedy_samples_do_not_depend_on_batches_or_padding(tokenizer):
    model = make_model("qwen2", seed=3)
    model.generation_config.eos_token_id = 1
    prompts = ["What is blue?", "One", "The quick brown fox jumps over the lazy dog."]
    expected = []
    for prompt in prompts:
        input_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(6):  # greedy decoding, spelt out
            token = model(input_ids=input_ids).logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=1)
            if token.item() == 1:
                break
        new = input_ids[0, tokenizer(prompt, return_tensors="pt")["input_ids"].size(1) :]
        expected.append([tokenizer.decode(new, skip_special_tokens=True)])
    other_side = copy.deepcopy(tokenizer)
    other_side.padding_side = {"left": "right", "right": "left"}[tokenizer.padding_side]
    for batch_size in (1, 2, 64):
        for padded in (tokenizer, other_side):
            assert sample_completions(model, padded, prompts, 6, batch_size=batch_size) == expected


def test_samples_are_seeded(tokenizer):
    model = make_model("qwen2")
    draws = [sample_completions(model, tokenizer, ["One"], 8, 1.0, num_samples=3, seed=s) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 1 and len(draws[0][0]) == 3
    assert sample_completions(model, tokenizer, ["One"], 8, 0.0, num_samples=2)[0].__len__() == 2
    with pytest.raises(ValueError, match="temperature"):
        sample_completions(model, tokenizer, ["One"], 8, -1.0)


def test_messages_are_written_out_by_the_chat_template(tokenizer):
    model = make_model("qwen2")
    messages = [{"role": "user", "content": "One"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    found = sample_completions(model, tokenizer, [messages], 6)
    assert found == sample_completions(model, tokenizer, [text], 6)
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        sample_completions(model, plain, [messages], 6)


def test_pictures_and_tables(tmp_path):
    assert markdown([["model", "metric", "value"], ["a", "b", "1"]]).splitlines()[1:] == [
        "| --- | --- | ---: |",
        "| a | b | 1 |",
    ]
    history = [{"step": 1, "nll": 2.0}, {"step": 2, "nll": 1.0}, {"step": 2, "eval_nll": 1.5}]
    plot_training({"MLE": history}, ["nll", "eval_nll"], tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
