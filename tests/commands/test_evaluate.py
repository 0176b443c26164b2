"""The `evaluate` command on tiny models: what it writes, that it goes on where it was, and what it refuses."""

import csv
import html
import json
import re
from statistics import fmean

import pytest

from tests.commands.test_irl import run as run_module
from tests.conftest import make_model
from trl_irl.commands import evaluate
from trl_irl.tasks.arithmetic import make_arithmetic
from trl_irl.tasks.final_answer import is_correct


OPTIONS = "--task arithmetic --num_prompts 6 --temperatures 0 1 --num_samples 4 --seeds 0 1 --max_new_tokens 12"


@pytest.fixture(scope="module")
def models(model_folder, tokenizer, tmp_path_factory):
    """Two tiny models, the second by another seed."""
    other = tmp_path_factory.mktemp("models") / "other"
    make_model("qwen2", seed=5).save_pretrained(other)
    tokenizer.save_pretrained(other)
    return [f"first={model_folder}", str(other)]


@pytest.fixture(scope="module")
def report(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert evaluate.run(["--models", *models, *OPTIONS.split(), "--output_dir", str(folder)]) == 0
    return folder


def test_what_it_writes(report):
    samples = [json.loads(line) for line in (report / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * (6 + 2 * 6)  # two models; greedy, and two seeds at temperature 1
    assert {line["model"] for line in samples} == {"first", "other"}
    rows = list(make_arithmetic()["test"])[:6]
    assert [line["prompt"] for line in samples[:6]] == [row["prompt"] for row in rows]

    metrics = json.loads((report / "metrics.json").read_text())
    assert [(entry["model"], entry["temperature"]) for entry in metrics] == [
        (model, temperature) for model in ("first", "other") for temperature in (0.0, 1.0)
    ]
    mine = [line for line in samples if line["model"] == "other" and line["temperature"] == 1]
    found = metrics[3]["metrics"]
    lengths = [completion["length"] for line in mine for completion in line["completions"]]
    assert found["length"]["mean"] == pytest.approx(fmean(lengths))
    assert found["length"]["low"] <= found["length"]["mean"] <= found["length"]["high"]
    right = [is_correct(c["text"], {"completion": line["reference"]}) for line in mine for c in line["completions"]]
    assert found["accuracy"]["mean"] == pytest.approx(fmean(right))
    assert {"pass@1", "pass@4", "self_bleu", "distinct", "distinct_2", "ended", "accuracy_math", "answered"} <= set(
        found
    )
    assert found["nll"] == metrics[2]["metrics"]["nll"] != metrics[0]["metrics"]["nll"]  # of the model
    assert found["td_loss"]["mean"] > 0
    assert "self_bleu" not in metrics[2]["metrics"]  # greedy
    with (report / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert float(lines[3]["length"]) == found["length"]["mean"]
    text = (report / "report.md").read_text()
    assert "## Minus first, at the same temperature" in text and "## Minus first, at equal diversity" in text
    for name in ("performance_diversity.png", "pass_at_k.png", "lengths.png"):
        assert f"({name})" in text and (report / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_shows_before_it_tells(report):
    text = (report / "report.md").read_text()
    sections = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert sections == [
        "Numbers",
        "Minus first, at equal diversity",
        "Minus first, at the same temperature",
        "What they said",
    ]
    assert text.rindex("![") < text.index("## Numbers")
    # Explained is what is shown, and nothing else.
    explained = text.partition("## Numbers")[2].partition("\n|")[0]
    assert "`answered`" in explained and "`pass@k`" in explained and "BLEU with" not in explained
    # Five prompts, and of each what every model said, as it is: nothing of it is markup.
    samples = [json.loads(line) for line in (report / "samples.jsonl").read_text().splitlines()]
    said = text.partition("## What they said")[2]
    tables = re.findall(r"\*\*(.*)\*\*\n\n(\|.*)\n.*\n(\|.*)", said)
    assert len(tables) == 5
    for i, (prompt, header, row) in enumerate(tables):
        cells = [html.unescape(cell.strip()).replace("<br>", "\n") for cell in row.strip("|").split(" | ")]
        assert html.unescape(prompt).replace("<br>", "\n") == samples[i]["prompt"].strip()
        assert header == "| reference | first (greedy) | other (greedy) |"
        texts = [samples[i]["reference"], *(samples[j]["completions"][0]["text"] for j in (i, i + 18))]
        assert cells == [text.strip() or "(nothing)" for text in texts]


def test_differences_are_paired_and_kept(report):
    found = json.loads((report / "differences.json").read_text())
    metrics = {(x["model"], x["temperature"]): x["metrics"] for x in json.loads((report / "metrics.json").read_text())}
    assert found["baseline"] == "first"
    for one in found["at_the_same_temperature"]:
        for name, interval in one["metrics"].items():
            ours, of_first = (metrics[model, one["temperature"]][name]["mean"] for model in ("other", "first"))
            assert interval["mean"] == pytest.approx(ours - of_first) and interval["low"] <= interval["high"]
    matched = found["at_equal_diversity"]
    assert {one["minus"] for one in matched} <= {None, "first"}
    assert {(one["model"], one["minus"] is None) for one in matched} <= {("first", True), ("other", False)}


def test_taken_up_again_it_gives_the_same_and_draws_only_what_is_missing(report, models, tmp_path, monkeypatch):
    cells = sorted((report / "cells").iterdir())
    assert len(cells) == 6
    before = (report / "metrics.json").read_text()
    cells[2].unlink()
    (report / "cells" / "cut-off.part").write_text('{"model": ')
    drawn = []
    sample = evaluate_sample()
    monkeypatch.setattr(
        "trl_irl.text.sampling.sample", lambda *a, **k: drawn.append(k["description"]) or sample(*a, **k)
    )
    assert evaluate.run(["--models", *models, *OPTIONS.split(), "--output_dir", str(report)]) == 0
    assert len(drawn) == 1 and (report / "metrics.json").read_text() == before


def evaluate_sample():
    from trl_irl.text.sampling import sample

    return sample


def test_other_weights_under_the_same_name_are_drawn_anew(tokenizer, tmp_path):
    words = [*"--task arithmetic --num_prompts 2 --temperatures 0 --max_new_tokens 4".split()]
    words += ["--models", str(tmp_path / "m"), "--output_dir", str(tmp_path / "report")]
    texts = []
    for seed in (0, 7):
        make_model("qwen2", seed=seed).save_pretrained(tmp_path / "m")
        tokenizer.save_pretrained(tmp_path / "m")
        assert evaluate.run(words) == 0
        texts.append((tmp_path / "report/samples.jsonl").read_text())
    assert texts[0] != texts[1]


@pytest.mark.any_trl
def test_adapters_and_the_command_line(model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model_folder)
    get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "adapter")
    words = ["--models", model_folder, tmp_path / "adapter", "--task", "arithmetic", "--num_prompts", "2"]
    words += ["--temperatures", "0", "--max_new_tokens", "4", "--output_dir", tmp_path / "report"]
    result = run_module("trl_irl.cli", "evaluate", *words)
    assert "arithmetic, 2 prompts" in result.stdout
    samples = [json.loads(line) for line in (tmp_path / "report/samples.jsonl").read_text().splitlines()]
    # A fresh adapter adds nothing.
    assert [line["completions"] for line in samples[:2]] == [line["completions"] for line in samples[2:]]


@pytest.mark.parametrize(
    "words, fragments",
    [
        ("--task gsm9k", ["`task: gsm9k` is unknown", "summarization", "module:function"]),
        ("--metrics rogue", ["invalid choice: 'rogue'", "rouge"]),
        ("--task nowhere:score --dataset_name ROWS", ["`task: nowhere:score` could not be imported"]),
        ("--task json:score --dataset_name ROWS", ["`task: json:score` names no function"]),
        ("--task summarization --dataset_name ROWS", ["`source_column` not set", "`target_column`"]),
        ("--task translation --source_column en --dataset_name ROWS", ["`source_column` alone", "set both"]),
        (
            "--task translation --source_column t.en --target_column t.fr --split train --dataset_name ROWS",
            ["`t.fr` is not among the dataset's columns: at `fr` there are en, de"],
        ),
        ("--task tldr --dataset_name ROWS --split train", ["columns t", "`source_column`"]),
        ("--task arithmetic --dataset_name ROWS", ["`task: arithmetic` is generated"]),
        ("--backend vllm", ["`backend: vllm` needs vLLM", "pip install vllm"]),
        ("--split dev", ["`split: dev`", "test"]),
        ("--num_samples 0", ["`num_samples: 0`", "1 or more"]),
        ("--top_p 2", ["`top_p: 2.0`", "up to 1"]),
        ("--temperatures -1", ["`temperatures: -1`", "0 (greedy) or more"]),
        ("--max_new_tokens 250", ["6 of 6 prompts", "context of 256 tokens", "Lower `max_new_tokens`"]),
        ("--models ./nowhere", ["`models: ./nowhere` is not there"]),
        ("--models EMPTY", ["neither config.json nor", "Hub id"]),
        ("--models NO_WEIGHTS", ["has no weights (*.safetensors)"]),
        ("--models a/b c/b", ["`models` has two called b", "first=path"]),
        ("--task gsm8k --dataset_name ./no.jsonl", ["`dataset_name: ./no.jsonl` is not there"]),
        ("--output_dir /proc/nope", ["`output_dir: /proc/nope` cannot be written to"]),
        ("--metric bleu", ["unknown key `metric`"]),
    ],
)
def test_one_message(words, fragments, model_folder, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_weights").mkdir()
    (tmp_path / "no_weights/config.json").write_text("{}")
    defaults = ["--models", str(model_folder), *OPTIONS.split(), "--output_dir", str(tmp_path / "report")]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"t": {"en": "One", "de": "Eins"}}) + "\n")
    for name, path in (("EMPTY", tmp_path / "empty"), ("NO_WEIGHTS", tmp_path / "no_weights"), ("ROWS", rows)):
        words = words.replace(name, str(path))
    words = words.split()
    try:
        status = evaluate.run([*defaults, *words])
    except SystemExit as error:
        status = error.code
    stderr = capfd.readouterr().err
    assert status == 2 and stderr.count("trl-irl evaluate: error: ") == 1
    for fragment in fragments:
        assert fragment in stderr
    assert not (tmp_path / "report").exists()
