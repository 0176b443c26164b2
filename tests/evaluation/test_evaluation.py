import csv

import pytest
import torch

from tests.conftest import make_model
from trl_irl.evaluation.report import (
    Cell,
    markdown_table,
    plot_accuracy_against_diversity,
    plot_training,
    write_csv,
)
from trl_irl.evaluation.sampling import sample_completions


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
    for batch_size in (1, 2, 64):
        assert sample_completions(model, tokenizer, prompts, 6, batch_size=batch_size) == expected


def test_samples_are_seeded(tokenizer):
    model = make_model("qwen2")
    draws = [sample_completions(model, tokenizer, ["One"], 8, 1.0, num_samples=3, seed=s) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 1 and len(draws[0][0]) == 3
    assert sample_completions(model, tokenizer, ["One"], 8, 0.0, num_samples=2)[0].__len__() == 2
    with pytest.raises(ValueError, match="temperature"):
        sample_completions(model, tokenizer, ["One"], 8, -1.0)


def test_report(tmp_path):
    cells = [Cell("MLE", 0.0, 0.5), Cell("MLE", 1.0, 0.25, 60.0, 0.875)]
    assert markdown_table(cells).splitlines()[2:] == [
        "| MLE | greedy | 50.0 % |  |  |",
        "| MLE | T = 1 | 25.0 % | 60.0 | 0.88 |",
    ]
    write_csv(cells, tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {
        "model": "MLE",
        "temperature": "1.0",
        "accuracy": "0.25",
        "self_bleu": "60.0",
        "distinct": "0.875",
    }
    plot_accuracy_against_diversity(cells, tmp_path / "tradeoff.png")
    history = [{"step": 1, "nll": 2.0}, {"step": 2, "nll": 1.0}, {"step": 2, "eval_nll": 1.5}]
    plot_training({"MLE": history}, ["nll", "eval_nll"], tmp_path / "training.png")
    for name in ("tradeoff.png", "training.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
