"""`evaluate(models, rows, settings)`: the numbers of the command, from Python, of models and rows that are there."""

import json

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_irl import evaluate
from trl_irl.commands import evaluate as command
from trl_irl.evaluation import EvaluationSettings
from trl_irl.evaluation.loaded_models import LoadedModel
from trl_irl.text.samplers import Sampler


ROWS = [
    {"prompt": "The quick", "completion": " brown fox"},
    {"prompt": "One two", "completion": " three"},
    {"prompt": "What is", "completion": " the sky?"},
]
SETTINGS = {"temperatures": [0.0, 1.0], "num_samples": 2, "max_new_tokens": 6, "metrics": ["rouge", "nll"]}


@pytest.fixture
def pair(model_folder):
    return AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)


def numbers(results):
    return {key: {name: x.value for name, x in of_key.items()} for key, of_key in results.values.items()}


def test_a_model_itself_and_its_path_give_the_commands_numbers(pair, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {"given": pair, "named": str(model_folder)}
    results = evaluate(models, ROWS, EvaluationSettings(**SETTINGS))
    assert not any(tmp_path.iterdir())  # nothing is written that is not asked for
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--models", f"named={model_folder}", "--dataset_name", "rows.jsonl", "--split", "train"]
    words += ["--temperatures", "0", "1", "--num_samples", "2", "--max_new_tokens", "6", "--metrics", "rouge", "nll"]
    assert command.run([*words, "--output_dir", "report"]) == 0
    written = json.loads((tmp_path / "report/metrics.json").read_text())
    for one in written:
        for model in models:
            found = numbers(results)[model, Sampler(one["temperature"])]
            assert found == pytest.approx({name: x["mean"] for name, x in one["metrics"].items()})
    assert {(one["model"], one["temperature"]) for one in written} == {("named", 0.0), ("named", 1.0)}


def test_what_the_results_give(pair, tmp_path):
    results = evaluate({"first": pair, "other": pair}, iter(ROWS), EvaluationSettings(num_prompts=2, **SETTINGS))
    assert results.prompts == 2 and results.models == ["first", "other"]
    header, *rows = results.table()
    assert header[:2] == ["model", "decoding"] and [row[0] for row in rows] == ["first"] * 2 + ["other"] * 2
    assert all(0.0 == interval.mean for one in results.differences for interval in one.metrics.values())
    told = results.to_markdown()
    assert told.startswith("# first, other on rows") and "## Minus first, at the same temperature" in told
    assert results.plots(tmp_path) == ["performance_diversity.png", "lengths.png"]
    report = results.write(tmp_path / "report")
    assert report.read_text(encoding="utf-8").startswith("# first, other on rows")
    there = {path.name for path in report.parent.iterdir()}
    assert there == {"report.md", "samples.jsonl", "metrics.json", "metrics.csv", "differences.json"} | {
        "performance_diversity.png",
        "lengths.png",
    }
    assert results.seconds["models"] > 0 and "token_ids" not in results.lines[0]["completions"][0]


def test_samples_are_kept_where_they_are_asked_for(model_folder, tmp_path, monkeypatch):
    settings = EvaluationSettings(**SETTINGS, output_dir=str(tmp_path / "kept"))
    first = evaluate([f"one={model_folder}"], ROWS, settings)
    monkeypatch.setattr(LoadedModel, "sample", lambda *_, **__: pytest.fail("something was sampled"))
    assert numbers(evaluate([f"one={model_folder}"], ROWS, settings)) == numbers(first)


def test_only_one_model_is_held_at_a_time(model_folder, monkeypatch):
    held, load = [], LoadedModel.model.func

    def counted(self):
        held.append(self)
        return load(self)

    monkeypatch.setattr(LoadedModel.model, "func", counted)
    evaluate({"a": str(model_folder), "b": str(model_folder)}, ROWS, EvaluationSettings(**SETTINGS))
    assert [sum("model" in vars(one) for one in set(held))] == [0] and len(held) == 2


@pytest.mark.parametrize(
    "models, settings, message",
    [
        ({}, {}, "No model"),
        ("gpt2", {}, "`models` is the text 'gpt2'"),
        (["a=x", "a=y"], {}, "two called a"),
        ({"a": "gone/model/here"}, {}, "`models: gone/model/here` is not there"),
        ({"a": (None, None)}, {"backend": "vllm"}, "loads a model by its name"),
        ({"a": "x"}, {"rerank": True, "temperatures": [0.0]}, "compare completions of one prompt"),
    ],
)
def test_what_is_wrong_is_said_before_anything_loads(models, settings, message):
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(models, ROWS, EvaluationSettings(**{**SETTINGS, **settings}))


def test_no_rows(pair):
    with pytest.raises(ValueError, match="`rows` is empty"):
        evaluate({"a": pair}, [], EvaluationSettings(**SETTINGS))


def test_a_report_of_given_rows_names_no_dataset(pair):
    told = evaluate({"a": pair}, ROWS, EvaluationSettings(task="gsm8k", **SETTINGS)).to_markdown()
    assert "Data: rows that were given, task `gsm8k`" in told and "3 prompts, 2 samples" in told
    assert "openai/gsm8k" not in told and "split" not in told


def test_best_of_n_where_given_completions_are_fewer(pair, tmp_path):
    rows = [{**row, "one": " brown fox", "two": " cat"} for row in ROWS]
    settings = {**SETTINGS, "temperatures": [1.0], "num_samples": 4, "completion_columns": ["one", "two"]}
    results = evaluate({"a": pair}, rows, EvaluationSettings(rerank=True, **settings))
    header, *table = results.findings.best_of_n_table(intervals=False)
    assert header[:2] == ["completions of", "best of 4 by"]
    cells = {row[0]: [cell for cell in row[2:] if cell] for row in table}
    assert all(cell.endswith(" (of 2)") for cell in cells["given"]) and cells["given"]
    assert not any("(of" in cell for cell in cells["a"]) and cells["a"]
    assert "(of 2)" in results.write(tmp_path / "report").read_text(encoding="utf-8")
    assert (tmp_path / "report/best_of_n.png").is_file()


@pytest.mark.parametrize("metrics, kind", [(["bleu"], BLEU(effective_order=True)), (["chrf", "nll"], CHRF())])
def test_rewards_against_what_a_sentence_has_of_a_corpus_score(metrics, kind, pair):
    rows = [{**row, "references": [row["completion"].strip(), "a fox"]} for row in ROWS]
    settings = {**SETTINGS, "temperatures": [1.0], "num_samples": 6, "metrics": metrics, "reward_analysis": True}
    results = evaluate({"one": pair}, rows, EvaluationSettings(**settings))
    lengths, scores = [], []
    for line, row in zip(results.lines, rows, strict=True):
        for one in line["completions"]:
            lengths.append(one["length"])
            scores.append(kind.sentence_score(one["text"], row["references"]).score)
    (of_length,) = [one for one in results.findings.agreement if one.reward == "length"]
    expected = spearmanr(lengths, scores).statistic
    if np.isnan(expected):  # all of one length
        assert of_length.metrics["Spearman"] is None
    else:
        assert of_length.metrics["Spearman"].mean == pytest.approx(expected)
    assert len(set(scores)) > 1
    names = {one.reward for one in results.findings.agreement}
    assert {"length", "one soft_q sum", "one likelihood mean"} <= names


def test_prompts_that_stand_there_twice_are_told(pair):
    settings = EvaluationSettings(**{**SETTINGS, "metrics": ["rouge"]})
    assert not evaluate({"given": pair}, ROWS, settings).notes
    again = {"prompt": ROWS[0]["prompt"], "completion": " red fox"}
    (note,) = evaluate({"given": pair}, [*ROWS, again], settings).notes
    assert note.startswith("1 of 4 rows ask what another one asks") and "`references`" in note
