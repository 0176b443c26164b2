"""An encoder-decoder model in the commands that sample, score and compare: numbers against the model's own."""

import json

import pandas
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, ByT5Tokenizer

from tests.encoder_decoders import make_encoder_decoder
from trl_irl import Seq2SeqIRLConfig, Seq2SeqIRLTrainer, evaluate
from trl_irl.commands import chat, prepare, score
from trl_irl.commands import evaluate as evaluate_command
from trl_irl.commands.console.training_table import describe, rows_of
from trl_irl.evaluation import EvaluationSettings
from trl_irl.text.sampling import sample


ROWS = [
    {"prompt": "The quick", "completion": " brown fox"},
    {"prompt": "One two three what is", "completion": " 1 2 3"},
    {"prompt": "What is", "completion": " the sky? It is blue."},
]


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(request, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make_encoder_decoder(request.param).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def own(folder):
    return AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beams_are_the_models_own(folder, beams):
    model, tokenizer = own(folder)
    found = sample(model, tokenizer, [row["prompt"] for row in ROWS], 9, beams=beams)
    for row, (completion,) in zip(ROWS, found, strict=True):
        asked = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        said = model.generate(asked, max_new_tokens=9, num_beams=beams, do_sample=False)[0, 1:].tolist()
        said = said[: said.index(1) + 1] if 1 in said else said
        assert completion.token_ids == said


def test_sampled_tokens_are_drawn_from_the_policy(folder):
    """The first token of 4,000 samples, by frequency."""
    model, tokenizer = own(folder)
    prompt = ROWS[0]["prompt"]
    (drawn,) = sample(model, tokenizer, [prompt], 1, temperature=1.0, num_samples=4000, batch_size=500)
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in drawn]), minlength=300) / 4000
    asked = torch.tensor([tokenizer(prompt)["input_ids"]])
    first = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        expected = model(input_ids=asked, decoder_input_ids=first).logits[0, -1].softmax(-1)
    assert (counts - expected).abs().sum() / 2 < 0.12  # the total variation distance, of rounding by sampling


def test_the_likelihood_of_an_evaluation(folder, tmp_path):
    model, tokenizer = own(folder)
    settings = EvaluationSettings(metrics=["bleu", "rouge", "nll", "td_loss"], temperatures=[0.0, 1.0], num_samples=2)
    settings.max_new_tokens = 5
    results = evaluate({"one": str(folder), "same": (model, tokenizer)}, ROWS, settings)
    losses = tokens = 0.0
    for row in ROWS:
        labels = torch.tensor([[*tokenizer(row["completion"].strip())["input_ids"], 1]])
        asked = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        with torch.no_grad():
            losses += model(input_ids=asked, labels=labels).loss.item() * labels.numel()
        tokens += labels.numel()
    for summary in results.summaries:
        assert summary.metrics["nll"].mean == pytest.approx(losses / tokens, rel=1e-4)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--models", f"one={folder}", "--dataset_name", str(tmp_path / "rows.jsonl"), "--split", "train"]
    words += ["--samplers", "t=0", "t=1", "beams=2", "--num_samples", "2", "--max_new_tokens", "5"]
    words += ["--reward_analysis", "--output_dir", str(tmp_path / "report")]
    assert evaluate_command.run(words) == 0
    report = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert "2 beams" in report and "Spearman" in report


def test_scores_and_a_talk(folder, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    out = tmp_path / "rewards.parquet"
    words = ["--model", str(folder), "--dataset_name", str(tmp_path / "rows.jsonl"), "--split", "train"]
    words += ["--terminal_value", "zero"]
    assert score.run([*words, "--output", str(out), "--html", str(tmp_path / "page.html")]) == 0
    model, tokenizer = own(folder)
    for row, told in zip(ROWS, pandas.read_parquet(out).to_dict("records"), strict=True):
        labels = torch.tensor([[*tokenizer(row["completion"].strip())["input_ids"], 1]])
        asked = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=asked, labels=labels).logits[0]
        # The sum of the rewards telescopes to log pi + V(s_0).
        log_pi = logits.log_softmax(-1).gather(1, labels.T).sum()
        assert told["sum"] == pytest.approx((log_pi + logits[0].logsumexp(-1)).item(), rel=1e-4)
    assert (tmp_path / "page.html").stat().st_size > 1000
    capsys.readouterr()
    assert chat.run([f"a={folder}", "--prompt", "The quick", "--max_new_tokens", "4", "--temperature", "0"]) == 0
    (said,) = sample(model, tokenizer, ["The quick"], 4)[0]
    assert "(4 tokens, cut" in capsys.readouterr().out and said.length == 4


def test_preparing_counts_what_each_side_reads(tmp_path, capsys):
    """ByT5 reads bytes, and its tokenizer puts EOS behind a prompt, too."""
    make_encoder_decoder(vocab_size=384).save_pretrained(tmp_path / "base")
    ByT5Tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--tokenizer", str(tmp_path / "base"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--output_dir", str(tmp_path / "out"), "--validation_fraction", "0"]
    assert prepare.run([*words, "--max_prompt_length", "22", "--max_completion_length", "21"]) == 0
    told = capsys.readouterr().out
    longest = [max(len(row[key].strip()) for row in ROWS) + 1 for key in ("prompt", "completion")]
    assert longest == [22, 21]
    for part, length in zip(("prompt", "completion"), longest, strict=True):
        (line,) = [line for line in told.splitlines() if f" {part} " in line]
        assert f" {length} " in line
    assert prepare.run([*words, "--max_prompt_length", "21"]) == 2


@pytest.mark.parametrize("packing", [False, True])
def test_the_table_counts_documents(packing, folder, tmp_path):
    """Also of packed rows: how long a completion may be is asked of each for itself."""
    if packing and folder.name.startswith("bart"):
        pytest.skip("its positions are absolute")
    model, tokenizer = own(folder)
    keys = {"packing": packing, "max_length": 64, "report_to": "none", "use_cpu": True, "bf16": False}
    args = Seq2SeqIRLConfig(str(tmp_path), **keys)
    trainer = Seq2SeqIRLTrainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
    prompts = [len(tokenizer(row["prompt"]).input_ids) for row in ROWS]
    completions = [len(tokenizer(row["completion"].lstrip()).input_ids) + 1 for row in ROWS]
    rows = rows_of(trainer)
    assert rows.count == (1 if packing else 3)
    assert (rows.longest_prompt, rows.longest_scored) == (max(prompts), max(completions))
    assert rows.tokens * rows.count == pytest.approx(sum(prompts) + sum(completions))
    steps = dict(describe(trainer, rows, max_steps=2))["steps"]
    assert steps == f"2 of {rows.count} rows, {sum(completions)} scored tokens each"
