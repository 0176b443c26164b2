"""`evaluate` on tasks other than sums: summaries, translations, chats, and a function of the user's own."""

import json
import re
import signal
import subprocess
import sys
import time
from statistics import fmean
from types import ModuleType, SimpleNamespace

import pytest
from sacrebleu.metrics import BLEU

from trl_irl.commands import evaluate
from trl_irl.demos.demo import build_base_model
from trl_irl.tasks.rouge import rouge
from trl_irl.text.sampling import sample


ARTICLES = [
    {"document": "The quick brown fox jumps over the lazy dog.", "summary": "fox jumps", "id": 1},
    {"document": "What is the colour of the sky?", "summary": "blue", "id": 2},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run(model_folder, tmp_path):
    """Run `evaluate` on rows: `(status, metrics of each cell, folder)`."""

    def _run(rows, *words):
        folder = tmp_path / "report"
        data = ["--dataset_name", str(write(tmp_path / "rows.jsonl", rows)), "--split", "train"]
        options = "--temperatures 0 1 --num_samples 2 --max_new_tokens 8".split()
        words = [*data, *options, *words, "--models", str(model_folder), "--output_dir", str(folder)]
        status = evaluate.run(words)
        found = json.loads((folder / "metrics.json").read_text()) if status == 0 else []
        return status, [entry["metrics"] for entry in found], folder

    return _run


def test_summaries_of_given_columns(run):
    words = ["--task", "summarization", "--source_column", "document", "--target_column", "summary"]
    _, (greedy, sampled), folder = run(ARTICLES, *words)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert lines[0]["prompt"] == "The quick brown fox jumps over the lazy dog.\n\nTL;DR:"
    assert lines[0]["reference"] == " fox jumps"
    expected = fmean(rouge(line["completions"][0]["text"], line["reference"])["rougeL"] for line in lines[:2])
    assert greedy["rougeL"]["mean"] == pytest.approx(expected)
    assert {"rouge1", "rouge2", "self_bleu", "nll"} <= set(sampled) and "accuracy" not in sampled
    assert "rougeL" in (folder / "report.md").read_text()


def test_translations_of_a_nested_column(run):
    rows = [{"translation": {"en": "One two three", "de": "The lazy dog"}}, {"translation": {"en": "1", "de": "2 3"}}]
    words = "--task translation --source_column translation.en --target_column translation.de".split()
    _, (greedy, sampled), folder = run(rows, *words, "--prompt_template", "English: {source} German:")
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert lines[0]["prompt"] == "English: One two three German:"
    for cell, found in ((lines[:2], greedy), (lines[2:], sampled)):
        pairs = [(c["text"], line["reference"]) for line in cell for c in line["completions"]]
        expected = BLEU().corpus_score([text for text, _ in pairs], [[reference for _, reference in pairs]]).score
        assert found["bleu"]["mean"] == pytest.approx(expected)
    assert {"chrf", "td_loss"} <= set(greedy)


def test_tldr_from_local_files(run):
    rows = [{"prompt": f"POST: {row['document']}\n\nTL;DR:", "completion": f" {row['summary']}"} for row in ARTICLES]
    _, (greedy, _), folder = run(rows, "--task", "tldr")
    assert "rougeL" in greedy and "accuracy" not in greedy


def test_messages(run):
    rows = [{"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}]}] * 2
    _, (greedy, _), folder = run(rows, "--metrics", "rouge")
    line = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert line["prompt"] == rows[0]["messages"][:1] and line["reference"] == "two"
    assert "rouge1" in greedy and "nll" not in greedy


def test_a_function_of_ones_own(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_task.py").write_text(
        "def score(prediction, row):\n"
        "    if row['id'] == 2:\n"
        "        raise KeyError('no such id')\n"
        "    return {'words': len(prediction.split()), 'id': row['id']}\n"
    )
    monkeypatch.chdir(tmp_path)
    columns = ["--source_column", "document", "--target_column", "summary"]
    status, (greedy, sampled), folder = run(ARTICLES, "--task", "my_task:score", *columns)
    assert status == 0 and greedy["id"]["mean"] == sampled["id"]["mean"] == 1  # of the row that could be scored
    note = "3 of 6 completions could not be scored and are left out of the task's means. The first: KeyError"
    assert note in capsys.readouterr().out and note in (folder / "report.md").read_text()
    (tmp_path / "my_task.py").write_text("def score(prediction, row):\n    raise KeyError('never')\n")
    monkeypatch.delitem(sys.modules, "my_task")
    status, _, _ = run(ARTICLES, "--task", "my_task:score", *columns)
    assert status == 2 and "completions could be scored; the first: KeyError" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["", "--metrics rouge --reward_analysis true"])
def test_references_longer_than_the_context_are_found_before_sampling(words, run, monkeypatch, capsys):
    monkeypatch.setattr("trl_irl.text.sampling.sample", lambda *_, **__: pytest.fail("something was sampled"))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    rows = [{"prompt": "One", "completion": " two"}, {"prompt": "One", "completion": " fox" * 400}]
    status, _, folder = run(rows, *words.split())
    error = capsys.readouterr().err
    assert status == 2 and "1 of 2 references (the first is number 1, of" in error and "context of" in error
    assert not folder.exists()


@pytest.mark.parametrize(
    "given, fragment",
    [({"accuracy": 50}, "`accuracy` the value 50"), ({"length": 3}, "`length`, a name that is taken")],
)
def test_metrics_that_cannot_be_are_refused_before_sampling(given, fragment, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wrong_task", SimpleNamespace(score=lambda prediction, row: given))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    status, _, _ = run([{"prompt": "One", "completion": " two"}], "--task", "wrong_task:score")
    assert status == 2 and fragment in capsys.readouterr().err


def test_generations_that_say_nothing_are_counted(run, monkeypatch):
    from trl_irl.text.sampling import Completion

    def silent(model, tokenizer, prompts, num_samples, **options):
        return [[Completion("", 1, True, [1])] * num_samples for _ in prompts]

    monkeypatch.setattr("trl_irl.text.sampling.sample", silent)
    words = ["--task", "summarization", "--source_column", "document", "--target_column", "summary"]
    _, (greedy, sampled), folder = run(ARTICLES, *words)
    assert greedy["empty"]["mean"] == 1 and greedy["rouge1"]["mean"] == 0 and sampled["self_bleu"]["mean"] == 100
    assert "| empty |" in (folder / "report.md").read_text()


def test_vllm_is_asked_for_the_same(run, model_folder, monkeypatch):
    """A stand-in with vLLM's names, which generates with transformers; tests/text/test_vllm.py has vLLM itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked, stopped = [], []

    class LLM:
        def __init__(self, model, dtype):
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: stopped.append(len(asked))))
            self.model, self.tokenizer = (c.from_pretrained(model) for c in (AutoModelForCausalLM, AutoTokenizer))

        def get_tokenizer(self):
            return self.tokenizer

        def generate(self, prompts, options, lora_request):
            asked.append(options)
            results = []
            for prompt, own in zip(prompts, options, strict=True):
                text = self.tokenizer.decode(prompt["prompt_token_ids"])
                settings = {"temperature": own.temperature, "num_samples": own.n, "seed": own.seed}
                (group,) = sample(self.model, self.tokenizer, [text], own.max_tokens, **settings)
                outputs = [
                    SimpleNamespace(
                        token_ids=self.tokenizer(c.text)["input_ids"], finish_reason="stop" if c.ended else "length"
                    )
                    for c in group
                ]
                results.append(SimpleNamespace(outputs=outputs))
            return results

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, lambda **options: SimpleNamespace(**options)
    monkeypatch.setitem(sys.modules, "vllm", module)
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    words = ["--task", "summarization", "--source_column", "document", "--target_column", "summary"]
    _, (plain, _), _ = run(ARTICLES, *words)
    _, (greedy, sampled), _ = run(ARTICLES, *words, "--backend", "vllm")
    assert greedy["rougeL"] == plain["rougeL"] and greedy["nll"] == plain["nll"]
    assert [{(one.n, one.temperature) for one in options} for options in asked] == [{(1, 0.0)}, {(2, 1.0)}]
    for options in asked:
        assert len({one.seed for one in options}) == len(options)  # each prompt draws its own
    assert stopped == [2]  # after the samples, before the model is loaded for the likelihood


@pytest.mark.any_trl
def test_killed_in_the_middle_it_goes_on_to_the_same_metrics(model_folder, tmp_path):
    data = write(tmp_path / "rows.jsonl", [{"prompt": f"One two {i}", "completion": f" {i}"} for i in range(8)])
    words = [sys.executable, "-m", "trl_irl.cli", "evaluate", "--models", str(model_folder), "--split", "train"]
    words += ["--dataset_name", str(data), *"--temperatures 0 0.5 1 1.5 --max_new_tokens 60 --batch_size 2".split()]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*words, "--output_dir", str(whole)], check=True, capture_output=True)
    process = subprocess.Popen(
        [*words, "--output_dir", str(cut)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 120
    while len(list(cut.glob("cells/*.jsonl"))) < 2 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(cut.glob("cells/*.jsonl")))
    assert 2 <= done < 4 and not (cut / "metrics.json").exists()
    subprocess.run([*words, "--output_dir", str(cut)], check=True, capture_output=True)
    assert (cut / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


@pytest.mark.any_trl
def test_generation_takes_the_time_not_the_metrics(tmp_path):
    """1,000 completions over 4 temperatures of the demo's model, which has a million weights."""
    build_base_model(tmp_path / "model")
    words = ["--models", str(tmp_path / "model"), "--task", "arithmetic", "--num_prompts", "77", "--num_samples", "4"]
    words += "--temperatures 0 0.3 0.6 1 --max_new_tokens 80 --batch_size 100".split()
    result = subprocess.run(
        [sys.executable, "-m", "trl_irl.cli", "evaluate", *words, "--output_dir", str(tmp_path / "report")],
        capture_output=True,
        text=True,
        check=True,
    )
    in_models, in_metrics = map(float, re.search(r"([\d.]+) s in the models, ([\d.]+) s", result.stdout).groups())
    assert in_metrics < in_models / 2, result.stdout[-200:]  # a sixth on an idle machine, a fifth on a busy one
