"""`evaluate(models, rows, settings)`: the numbers of the command, from Python, of models and rows that are there."""

import copy
import json
import os
import shutil
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sacrebleu.metrics import BLEU, CHRF
from scipy.stats import spearmanr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.conftest import make_model
from trl_irl import SoftQReward, evaluate
from trl_irl.commands import evaluate as command
from trl_irl.commands import score
from trl_irl.evaluation import EvaluationSettings
from trl_irl.evaluation.comparison import AS_GIVEN
from trl_irl.evaluation.equal_diversity import performance
from trl_irl.evaluation.frontier import _area
from trl_irl.evaluation.loaded_models import LoadedModel, weights_of
from trl_irl.evaluation.reward_judges import Sampled, agreement, best_of_n
from trl_irl.evaluation.reward_report import Findings, plot_agreement
from trl_irl.evaluation.sample_cache import said_of
from trl_irl.text.samplers import GREEDY, Sampler


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


def test_a_base_without_a_chat_template_is_asked_with_that_of_what_was_trained_from_it(pair, tmp_path):
    model, tokenizer = pair
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": "so"}],
        }
        for row in ROWS
    ]
    for folder, own in (("base", plain), ("tuned", tokenizer)):
        model.save_pretrained(tmp_path / folder)
        own.save_pretrained(tmp_path / folder)
    settings = EvaluationSettings(**SETTINGS, output_dir=str(tmp_path / "out"))
    paths = {name: str(tmp_path / name) for name in ("base", "tuned")}
    for asked in (paths, {"base": (model, plain), "tuned": (model, tokenizer)}, paths):  # drawn, given, kept
        results = evaluate(asked, rows, settings)
        found = numbers(results)
        for sampler in (GREEDY, Sampler(1.0)):  # one model asked in one way
            assert found["base", sampler] == pytest.approx(found["tuned", sampler])
        assert "base has no chat template, and was asked with tuned's." in results.notes
    assert plain.chat_template is None
    for alone in ({"base": paths["base"]}, {"base": paths["base"], "other": (model, other_tokenizer(tokenizer))}):
        with pytest.raises(ValueError, match="the tokenizer of base has no chat template.*Leave it out"):
            evaluate(alone, rows, EvaluationSettings(**SETTINGS))
    assert evaluate({"base": paths["base"]}, ROWS, EvaluationSettings(**SETTINGS)).notes == []


def other_tokenizer(tokenizer):
    """With a template, and without some of the tokens."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<eos>", chat_template=tokenizer.chat_template)


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


def test_the_stop_token_counts_in_given_lengths_as_in_sampled_ones(pair):
    _, tokenizer = pair
    rows = [{**row, "one": " brown fox"} for row in ROWS]
    settings = EvaluationSettings(**{**SETTINGS, "completion_columns": ["one"]})
    results = evaluate({"a": pair}, rows, settings)
    words = len(tokenizer(" brown fox")["input_ids"])
    assert results.values["given", AS_GIVEN]["length"].value == words + 1
    cut = evaluate({"a": pair}, [{**row, "cut": True} for row in rows], settings)
    assert cut.values["given", AS_GIVEN]["length"].value == words


def test_a_tokenizer_that_is_given_gets_no_padding(pair):
    model, tokenizer = pair
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    evaluate({"a": (model, tokenizer)}, ROWS, EvaluationSettings(**SETTINGS))
    assert tokenizer.pad_token is None


def test_a_token_that_ends_a_completion_is_told_of_a_pair_too(pair, model_folder):
    """By path and as a model that is there; and the tokenizer that was given stays what it was."""
    model, tokenizer = pair
    before, end = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(40)
    settings = EvaluationSettings(**{**SETTINGS, "temperatures": [1.0], "num_samples": 8, "eos_token": end})
    given, by_path = (evaluate({"a": one}, ROWS, settings) for one in (pair, str(model_folder)))
    assert numbers(given) == numbers(by_path) and tokenizer.eos_token == before
    assert 0 < given.values["a", Sampler(1.0)]["ended"].value < 1
    with pytest.raises(ValueError, match="`eos_token: <nothing>` is not among the tokens"):
        evaluate({"a": pair}, ROWS, EvaluationSettings(**{**SETTINGS, "eos_token": "<nothing>"}))


@pytest.mark.parametrize("models", [{"a": 5}, {"a": ("model",)}])
def test_a_model_without_its_tokenizer(models):
    with pytest.raises(ValueError, match="`models` has a .*Give a folder, a Hub id, or a pair"):
        evaluate(models, ROWS, EvaluationSettings(**SETTINGS))


def test_a_function_as_a_task_is_told_what_a_task_is(pair):
    with pytest.raises(ValueError, match="`task` is a function. It is text"):
        evaluate({"a": pair}, ROWS, EvaluationSettings(task=lambda text, row: 1.0))


def own_task(name, text, tmp_path, monkeypatch):
    """A user's module with a function `score`, as `task` names it."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{name}:score"


def test_pass_at_k_is_of_as_many_completions_as_all_have(pair, tmp_path, monkeypatch):
    """The data gives eight completions, the model says four: no number of eight is made up for it."""
    text = "def score(text, row):\n    return {'accuracy': float('e' in text)}\n"
    judged = own_task("has_an_e", text, tmp_path, monkeypatch)
    columns = [f"given_{i}" for i in range(8)]
    rows = [{**row, **{name: f" one {i}" for i, name in enumerate(columns)}} for row in ROWS]
    settings = {**SETTINGS, "num_samples": 4, "metrics": ["nll"], "completion_columns": columns}
    results = evaluate({"a": pair}, rows, EvaluationSettings(task=judged, **settings))
    assert "pass@8" in results.values["given", AS_GIVEN] and "pass@8" not in results.values["a", Sampler(1.0)]
    assert "pass@4" in results.shown and "pass@8" not in results.shown
    for name in ("pass@8", "pass@4", "pass@1"):
        random, greedy = (performance(results.values["a", Sampler(t)], name) for t in (1.0, 0.0))
        assert (random is None) == (name == "pass@8")
        assert greedy.value == results.values["a", GREEDY]["accuracy"].value  # the same, however often


def test_a_model_that_never_gets_a_number_has_no_area(pair):
    area = _area(np.array([[np.nan] * 4, [0.5, np.nan, 0.3, 0.2], [-1.0, -2.0, np.nan, np.nan]]))
    assert np.isnan(area[0]) and area[1:].tolist() == [pytest.approx(0.5), 0.0]


def test_scores_of_one_model_may_be_right_or_wrong_where_anothers_are_shares(pair, tmp_path):
    """Of all ROUGE scores of the first model 0: its table would have had an AUROC, and the other's none."""
    rewards, names = np.array([[1.0, 2.0, 3.0]] * 2), ("a", "b")
    scores = {"a": np.zeros((2, 3)), "b": np.array([[0.1, 0.2, 0.3], [0.0, 0.5, 1.0]])}
    group = [{"length": i, "text": ""} for i in range(3)]
    for order in (names, names[::-1]):
        sampled = {(name, Sampler(1.0)): Sampled([group] * 2, scores[name], {"r": rewards}) for name in order}
        found = Findings(agreement=agreement(sampled))
        header, *table = found.agreement_table(intervals=True)
        assert "AUROC" not in header and len(table) == 4
        plot_agreement(found.agreement, tmp_path / "rewards.png")
    sampled = {(name, Sampler(1.0)): Sampled([group] * 2, np.eye(3)[:2], {"r": rewards}) for name in names}
    assert "AUROC" in Findings(agreement=agreement(sampled)).agreement_table(intervals=True)[0]


def test_best_of_as_many_as_have_a_score(pair):
    scores = np.array([[1.0, np.nan, 0.0, np.nan], [np.nan, 1.0, 1.0, 0.0]])
    group = [{"text": "#### 1"}] * 4
    sampled = {("a", Sampler(1.0)): Sampled([group] * 2, scores, {"r": np.ones((2, 4))})}
    for one in best_of_n(sampled, ROWS[:2], exact=True):
        assert list(one.scores) == [1, 2, 3]  # of the first prompt two, of the second three
    sampled["b", Sampler(1.0)] = Sampled([group] * 2, np.full((2, 4), np.nan))
    assert {one.model for one in best_of_n(sampled, ROWS[:2], exact=False)} == {"a"}


def test_a_judge_of_another_tokenizer_reads_the_text(pair, tmp_path):
    """In its own tokens, as completions that the data gives; it was an error after all sampling."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    other = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    model = make_model("llama", seed=3, vocab_size=len(other))
    for part in (model, other):
        part.save_pretrained(tmp_path / "judge")
    settings = {**SETTINGS, "temperatures": [1.0], "reward_analysis": True, "reward_models": [str(tmp_path / "judge")]}
    results = evaluate({"a": pair}, ROWS, EvaluationSettings(**settings))
    (line, *_) = results.lines
    reward = SoftQReward(str(tmp_path / "judge"))
    texts, ended = ([c[key] for c in line["completions"]] for key in ("text", "ended"))
    for ids in ([5, 6, 7], None):
        assert not reward.reads(texts, [ids] * len(texts), ended)
    expected = [one.sum for one in reward.score([ROWS[0]["prompt"]] * len(texts), texts, ended=ended)]
    assert any("soft_q sum" in one.reward for one in results.findings.agreement) and np.isfinite(expected).all()


def test_kept_samples_have_the_references_of_today(model_folder, tmp_path):
    settings = EvaluationSettings(**{**SETTINGS, "output_dir": str(tmp_path)})
    evaluate({"a": str(model_folder)}, ROWS, settings)
    renewed = [{**row, "completion": f" new{row['completion']}"} for row in ROWS]
    results = evaluate({"a": str(model_folder)}, renewed, settings)
    assert {line["reference"] for line in results.lines} == {row["completion"] for row in renewed}
    assert len(list((tmp_path / "cells").iterdir())) == 2  # and nothing was sampled twice


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_samples_are_drawn_anew_where_what_decides_them_has_changed(name, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    before = weights_of(str(folder))
    assert weights_of(str(folder)) == before
    (folder / "README.md").write_text("changed")
    assert weights_of(str(folder)) == before
    text = (folder / name).read_text() if (folder / name).is_file() else ""
    (folder / name).write_text(text + "\n")
    assert weights_of(str(folder)) != before


def test_the_base_of_an_adapter_decides_its_samples_too(model_folder, tmp_path):
    base = shutil.copytree(model_folder, tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    before = weights_of(str(tmp_path / "adapter"))
    os.utime(base / "model.safetensors", (1, 1))
    assert weights_of(str(tmp_path / "adapter")) != before


def test_another_commit_of_a_model_on_the_hub_is_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    folder, found = tmp_path / "models--me--irl", []
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text(commit)
        found.append(weights_of("me/irl"))
    assert found == [["a" * 40], ["b" * 40]] and weights_of("") == []


def test_tools_that_are_functions_can_be_written():
    def look_up(word: str) -> str:
        """
        Look a word up.

        Args:
            word: Which.
        """
        return word

    found = said_of({"prompt": [], "completion": "x", "tools": [look_up, {"type": "function"}]})
    assert json.loads(json.dumps(found))["tools"][0]["function"]["name"] == "look_up"
    assert found["reference"] == "x" and found["tools"][1] == {"type": "function"}


def test_samples_say_with_what_they_were_asked(pair, tmp_path):
    model, tokenizer = pair
    dated = copy.deepcopy(tokenizer)
    dated.chat_template = "{{ date_string }}" + tokenizer.chat_template
    prompt, own = [{"role": "user", "content": "The quick"}], {"chat_template_kwargs": {"date_string": "One two"}}
    rows = [{"prompt": prompt, "completion": [{"role": "assistant", "content": "x"}], **own}]
    settings = {**SETTINGS, "output_dir": str(tmp_path), "temperatures": [1.0]}
    for part in (model, dated):
        part.save_pretrained(tmp_path / "model")
    for _ in range(2):  # drawn, then kept
        evaluate({"one": str(tmp_path / "model")}, rows, EvaluationSettings(**settings)).write(tmp_path)
        (line,) = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
        assert line["chat_template_kwargs"] == own["chat_template_kwargs"] and "tools" not in line
    out, folder = tmp_path / "scores.jsonl", str(tmp_path / "model")
    words = ["--model", folder, "--dataset_name", str(tmp_path / "samples.jsonl"), "--output", str(out)]
    assert score.run(words) == 0
    found = json.loads(out.read_text().splitlines()[0])["log_likelihood"]
    said, reward = line["completions"][0], SoftQReward(folder)
    asked, bare = (
        reward.score([one], [said["text"]], ended=[said["ended"]])[0].log_likelihood
        for one in ({"prompt": prompt, **own}, {"prompt": prompt})
    )
    assert found == pytest.approx(asked, rel=1e-4) and found != pytest.approx(bare, rel=1e-3)


def test_a_note_that_quotes_a_model_is_no_markup(pair, tmp_path, monkeypatch):
    text = """
def score(text, row):
    if row["prompt"] == "One two":
        raise ValueError("cannot read '<img src=x onerror=alert(1)>'")
    return {"x": 1.0}
"""
    judged = own_task("quotes_markup", text, tmp_path, monkeypatch)
    results = evaluate({"a": pair}, ROWS, EvaluationSettings(task=judged, **{**SETTINGS, "metrics": ["nll"]}))
    assert any("<img" in note for note in results.notes)
    told = results.to_markdown()
    assert "<img" not in told and "&lt;img src=x" in told


def test_a_judge_is_asked_once_about_a_completion(pair, tmp_path, monkeypatch):
    """It may cost; the analysis of rewards asks for the scores that the metrics have. One that failed stays so."""
    text = """
asked = []
def score(text, row):
    asked.append((text, row["prompt"]))
    if asked.count((text, row["prompt"])) > 1 or len(text) % 3 == 0:
        raise ValueError(f"cannot read {text!r}")
    return {"x": float(len(text))}
"""
    judged = own_task("costs", text, tmp_path, monkeypatch)
    keys = {**SETTINGS, "temperatures": [0.0, 1.0, 1.5], "num_samples": 6, "metrics": ["nll"], "reward_analysis": True}
    results = evaluate({"a": pair}, ROWS, EvaluationSettings(task=judged, **keys))
    said = {(c["text"], line["prompt"]) for line in results.lines for c in line["completions"]}
    references = {(row["completion"], row["prompt"]) for row in ROWS[:1]}  # asked before, whether the score works
    assert sorted(sys.modules["costs"].asked) == sorted(said | references)
    assert {len(text) % 3 == 0 for text, _ in said} == {True, False}
    (of_reward,) = [one for one in results.findings.agreement if one.reward == "a soft_q sum"]
    assert results.findings.score == "x" and of_reward.metrics["Spearman"] is not None


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


def test_how_alike_the_references_of_a_prompt_are(pair, tmp_path):
    several = [["brown fox jumps", "brown fox runs", "a cow"], ["three four", "three", "three and four"], ["the sky"]]
    rows = [{**row, "references": of} for row, of in zip(ROWS, several, strict=True)]
    results = evaluate({"base": pair}, rows, EvaluationSettings(**SETTINGS))
    bleu = BLEU(effective_order=True)
    expected = np.mean([bleu.sentence_score(a, [b]).score for x, y, *_ in several[:2] for a, b in ((x, y), (y, x))])
    interval, prompts = results.of_references
    assert prompts == 2 and interval.mean == pytest.approx(expected)
    results.write(tmp_path)
    report = (tmp_path / "report.md").read_text()
    (told,) = (line for line in report.splitlines() if "more diversity than the data" in line)
    assert told.startswith(f"Of 2 prompts with so many, 2 references have a `self_bleu` of {expected:.1f} [")
    for others, settings in ((ROWS, {}), (rows, {"num_samples": 1}), (rows, {"num_samples": 4})):
        results = evaluate({"base": pair}, others, EvaluationSettings(**{**SETTINGS, **settings}))
        assert results.of_references is None
    for others, settings in ((ROWS, {}), (rows, {"temperatures": [0.0]})):  # greedily nothing is said of diversity
        results = evaluate({"base": pair}, others, EvaluationSettings(**{**SETTINGS, **settings}))
        assert "more diversity than" not in results.to_markdown()


def test_prompts_that_stand_there_twice_are_told(pair):
    settings = EvaluationSettings(**{**SETTINGS, "metrics": ["rouge"]})
    assert not evaluate({"given": pair}, ROWS, settings).notes
    again = {"prompt": ROWS[0]["prompt"], "completion": " red fox"}
    (note,) = evaluate({"given": pair}, [*ROWS, again], settings).notes
    assert note.startswith("1 of 4 rows have the same prompt as another row") and "`references`" in note


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("metrics", ["blue"], "`metrics: blue` is unknown; there are accuracy"),
        ("metrics", "blue", "`metrics: blue` is unknown"),
        ("backend", "tgi", "`backend: tgi` is unknown; there are transformers, vllm"),
        ("dtype", "fp8", "`dtype: fp8` is unknown"),
        ("terminal_value", "one", "`terminal_value: one` is unknown"),
        ("on_bad_row", "keep", "`on_bad_row: keep` is unknown"),
        ("num_samples", "2", "`num_samples='2'`: it is of the type str. Set it to a whole number"),
        ("num_samples", 2.5, "`num_samples=2.5`: it is of the type float. Set it to a whole number"),
        ("num_samples", None, "`num_samples=None`: it is of the type NoneType. Set it to a whole number"),
        ("gamma", "1", "`gamma='1'`: it is of the type str"),
        ("temperatures", ["0.5"], r"`temperatures=\['0.5'\]`: '0.5' in it is of the type str. Set it to a number"),
        ("seeds", "3", r"`seeds=\['3'\]`: '3' in it is of the type str"),
        ("seeds", [0.5], r"`seeds=\[0.5\]`: 0.5 in it is of the type float. Set it to a whole number"),
        ("rerank", "false", "`rerank='false'`: it is of the type str. Set it to True or False"),
    ],
)
def test_settings_from_python_are_looked_at_as_those_of_the_command_line(key, value, told):
    with pytest.raises(ValueError, match=told):
        EvaluationSettings(**{**SETTINGS, key: value})


def test_what_is_like_a_list_or_a_name():
    settings = EvaluationSettings(metrics={"rouge": 1}.keys(), temperatures=np.linspace(0, 1, 3), dtype=torch.bfloat16)
    assert settings.metrics == ["rouge"] and settings.temperatures == [0, 0.5, 1] and settings.dtype == "bfloat16"
    assert EvaluationSettings(num_samples=2.0, temperatures=np.array(1.0), dtype=None, backend=None).num_samples == 2
    assert EvaluationSettings(metrics=frozenset({"rouge"}), samplers=(x for x in ["t=0"])).samplers == ["t=0"]


def test_a_subclass_of_settings_whose_annotations_nobody_can_resolve():
    @dataclass
    class Mine(EvaluationSettings):
        note: "Nowhere | None" = None  # noqa: F821

    assert Mine(**SETTINGS).note is None
    with pytest.raises(ValueError, match="`metrics: blue` is unknown"):
        Mine(metrics="blue")


def test_one_value_for_a_list_is_a_list_of_one():
    settings = EvaluationSettings(metrics="rouge", temperatures=1.0, samplers="t=1,top_k=5", seeds=3)
    assert settings.metrics == ["rouge"] and settings.temperatures == [1.0] and settings.seeds == [3]
    assert [str(sampler) for sampler in settings.plan] == ["t=1", "t=1,top_k=5"]


def test_rows_and_settings_of_another_kind(pair):
    with pytest.raises(ValueError, match=r"`rows\[1\]` is 'hello'. A row is a mapping"):
        evaluate({"given": pair}, [ROWS[0], "hello"], EvaluationSettings(**SETTINGS))
    with pytest.raises(TypeError, match="`settings` is a dict. Give an `EvaluationSettings"):
        evaluate({"given": pair}, ROWS, SETTINGS)


def test_a_column_that_no_row_has_is_not_to_be_skipped(pair):
    with pytest.raises(ValueError) as told:
        evaluate({"given": pair}, [{"text": "The quick"}] * 2, EvaluationSettings(**SETTINGS))
    assert "this data has the columns text" in str(told.value) and "on_bad_row" not in str(told.value)
    columns = {"source_column": "nope", "target_column": "text"}
    with pytest.raises(ValueError, match="`nope` is not among the dataset's columns") as told:
        evaluate({"given": pair}, [{"text": "The quick"}] * 2, EvaluationSettings(**SETTINGS, **columns))
    assert "on_bad_row" not in str(told.value)
    with pytest.raises(ValueError, match="Or leave such rows out: `on_bad_row: skip`"):
        evaluate({"given": pair}, [*ROWS, {"text": "The quick"}], EvaluationSettings(**SETTINGS))
    with pytest.raises(ValueError, match="Or leave such rows out: `on_bad_row: skip`"):
        evaluate({"given": pair}, [ROWS[0], {"prompt": "One", "completion": None}], EvaluationSettings(**SETTINGS))
    skipping = EvaluationSettings(**SETTINGS, on_bad_row="skip")
    assert evaluate({"given": pair}, [*ROWS, {"text": "The quick"}], skipping).prompts == len(ROWS)


@pytest.mark.parametrize("seeds", [[], [0, 0], [-1], [1, 2**32]])
def test_seeds_that_draw_nothing_or_the_same_again(seeds):
    with pytest.raises(ValueError, match=r"`seeds: \[.*\]` must be one or more numbers from 0 on, each once"):
        EvaluationSettings(seeds=seeds, **SETTINGS)


def test_one_sample_has_no_diversity_and_the_report_says_so(model_folder, tmp_path):
    settings = EvaluationSettings(**{**SETTINGS, "num_samples": 1})
    evaluate({"a": str(model_folder), "b": str(model_folder)}, ROWS, settings).write(tmp_path / "report")
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert "set `num_samples` to two or more" in text and "add temperatures" not in text


def test_numbers_that_are_none_are_null(model_folder, tmp_path):
    """Of an empty reference all that is scored is its EOS, which has no reward to square."""
    rows = [{"prompt": "One", "completion": ""}, {"prompt": "Two", "completion": ""}]
    settings = EvaluationSettings(temperatures=[1.0], num_samples=2, max_new_tokens=4, metrics=["nll", "td_loss"])
    evaluate({"a": str(model_folder)}, rows, settings).write(tmp_path / "report")
    text = (tmp_path / "report/metrics.json").read_text(encoding="utf-8")
    (found,) = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert found["metrics"]["td_loss"]["mean"] is None and found["metrics"]["nll"]["mean"] > 0
