"""`evaluate --reward_analysis --rerank`: what it reports is computed here again from samples.jsonl and SoftQReward."""

import json

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, set_seed

from tests.conftest import make_model
from trl_irl import PreferenceReward, SoftQReward
from trl_irl.commands import evaluate
from trl_irl.evaluation.reward_analysis import auroc, spearman


ROWS = [
    {"prompt": "What is the colour of the sky?", "completion": " It is blue."},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog. 1 2 3"},
]


def vowels(prediction, row):
    """A score that completions of a random model differ in."""
    return {"vowels": float(sum(c in "aeiou" for c in prediction) > 1)}


@pytest.fixture
def run(model_folder, tokenizer, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    make_model("qwen2", seed=3).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")

    def _run(*words):
        fixed = ["--models", f"a={model_folder}", f"b={tmp_path / 'other'}"]
        fixed += [
            "--task",
            "tests.commands.test_evaluate_rewards:vowels",
            "--dataset_name",
            str(tmp_path / "rows.jsonl"),
        ]
        fixed += ["--split", "train", "--max_new_tokens", "8", "--num_samples", "4"]
        fixed += ["--output_dir", str(tmp_path / "out")]
        try:
            return evaluate.run([*fixed, *words])
        except SystemExit as error:
            return error.code

    return _run


def found(values, **keys):
    (one,) = [x for x in values if all(x[name] == value for name, value in keys.items())]
    return one


def completions_of(folder, model, temperatures):
    """For each prompt the completions of the cells on disk, temperature by temperature and seed by seed."""
    lines = [
        json.loads(line) for path in sorted((folder / "cells").iterdir()) for line in path.read_text().splitlines()
    ]
    lines = [line for line in lines if line["model"] == model]
    lines.sort(key=lambda line: (line["temperature"], line["seed"]))
    return [
        [
            completion
            for line in lines
            if line["prompt"] == row["prompt"] and line["temperature"] in temperatures
            for completion in line["completions"]
        ]
        for row in ROWS
    ]


def scores_of(groups):
    return np.array([[vowels(completion["text"], None)["vowels"] for completion in group] for group in groups])


def test_against_samples_scored_anew(run, model_folder, tmp_path, capsys):
    words = ["--temperatures", "0", "0.7", "1", "--seeds", "0", "1", "--reward_analysis", "--rerank"]
    assert run(*words, "--reward_ref_model", str(tmp_path / "other")) == 0
    told = json.loads((tmp_path / "out/rewards.json").read_text())
    reward = SoftQReward(str(model_folder))
    ratio = SoftQReward(str(model_folder), kind="log_ratio", ref_model=str(tmp_path / "other"))
    for model in "ab":
        groups = completions_of(tmp_path / "out", model, (0.7, 1.0))
        scores = scores_of(groups)
        assert scores.shape == (3, 16)  # two temperatures, two seeds, four samples
        prompts = [row["prompt"] for row in ROWS for _ in range(16)]
        ids = [completion["token_ids"] for group in groups for completion in group]
        scored = reward.score(prompts, completion_ids=ids)
        by_hand = {
            "a soft_q mean": [one.mean for one in scored],
            "a likelihood sum": [one.log_likelihood for one in scored],
            "a log_ratio sum": [one.sum for one in ratio.score(prompts, completion_ids=ids)],
            "length": [float(len(one)) for one in ids],
        }
        for name, values in by_hand.items():
            one = found(told["agreement"], model=model, reward=name)
            values = np.array(values).reshape(scores.shape)
            assert one["AUROC"]["mean"] == pytest.approx(auroc(values, scores), abs=1e-6)
            expected = spearman(values.ravel(), scores.ravel())
            if np.isnan(expected):  # all lengths are equal
                assert one["Spearman"] is None
            else:
                assert one["Spearman"]["mean"] == pytest.approx(expected, abs=1e-3)
        for temperature in (0.7, 1.0):
            at = scores_of(completions_of(tmp_path / "out", model, (temperature,)))
            for way, expected in (("random", at.mean()), ("oracle", at.max(axis=1).mean())):
                one = found(told["best_of_n"], model=model, temperature=temperature, way=way)
                assert one["scores"]["8"]["mean"] == pytest.approx(expected)
    kinds = {one["reward"] for one in told["corruption"]}
    assert kinds == {f"{judge} {kind}" for judge in "ab" for kind in ("soft_q", "likelihood", "log_ratio")}
    report = (tmp_path / "out/report.md").read_text()
    assert "telescopes to its log-likelihood plus V of the prompt" in report
    assert "a: gamma 1, terminal value mask" in report
    for name in ("rewards.png", "best_of_n.png"):
        assert f"({name})" in report and (tmp_path / "out" / name).stat().st_size > 5000
    assert "token_ids" not in (tmp_path / "out/samples.jsonl").read_text()
    assert "Best of n, score (%)" in capsys.readouterr().out


@pytest.mark.any_trl
def test_taken_up_again_it_says_the_same(run, tmp_path):
    words = ["--temperatures", "1", "--reward_analysis", "--rerank"]
    assert run(*words) == 0
    before = (tmp_path / "out/rewards.json").read_bytes()
    (tmp_path / "out/rewards.json").unlink()
    assert run(*words) == 0 and (tmp_path / "out/rewards.json").read_bytes() == before


def test_win_rate_of_a_reward_model(run, tokenizer, tmp_path):
    """Against each sample's reward, one by one, and its reference's."""
    config = make_model("llama").config
    config.num_labels = 1
    set_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    judge = ["--reward_model_path", str(tmp_path / "judge")]
    assert run("--temperatures", "0", "1.5", "--batch_size", "5", "--metrics", "nll", *judge) == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    reward = PreferenceReward(str(tmp_path / "judge"), batch_size=1)
    of_references = [reward([row["prompt"]], [row["completion"]])[0] for row in ROWS]
    seen = []
    for model in ("a", "b"):
        for temperature in (0.0, 1.5):
            groups = [
                [reward([row["prompt"]], [c["text"]], [c["token_ids"]])[0] for c in group]  # no EOS where it was cut
                for row, group in zip(ROWS, completions_of(tmp_path / "out", model, [temperature]), strict=True)
            ]
            told = found(results, model=model, temperature=temperature)["metrics"]
            wins = [np.mean([x > ref for x in group]) for group, ref in zip(groups, of_references, strict=True)]
            assert told["reward"]["mean"] == pytest.approx(np.mean([np.mean(group) for group in groups]), abs=1e-5)
            assert told["win_rate"]["mean"] == pytest.approx(np.mean(wins))
            seen.append(told["win_rate"]["mean"])
    assert len(set(seen)) > 1
    assert "`win_rate` is how often" in (tmp_path / "out" / "report.md").read_text()


def words_of(prediction, row):
    return {"words": float(len(prediction.split()))}


def test_scores_that_are_no_shares(run, tmp_path, capsys):
    """ROUGE and counts are shown as they are; accuracy in percent."""
    task = ["--task", "tests.commands.test_evaluate_rewards:words_of"]
    assert run("--temperatures", "1", "--rerank", *task) == 0
    assert "Best of n, score (%)" not in capsys.readouterr().out
    told = json.loads((tmp_path / "out/rewards.json").read_text())
    oracle = found(told["best_of_n"], model="a", way="oracle")["scores"]["4"]["mean"]
    report = (tmp_path / "out/report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| a | oracle |"))
    assert oracle > 1 and f"| {oracle:.1f} [" in row


@pytest.mark.parametrize(
    "words, fragment",
    [
        ("--temperatures 0 --rerank", "compare completions of one prompt"),
        ("--num_samples 1 --reward_analysis", "compare completions of one prompt"),
        ("--reward_ref_model x", "`reward_ref_model` is for `reward_analysis` and `rerank`"),
        ("--rerank --reward_models ./nowhere", "`reward_models: ./nowhere` is not there"),
        ("--rerank --reward_models x=./a x=./b", "`reward_models` has two called x"),
        ("--rerank --reward_ref_model ./nowhere", "`reward_ref_model: ./nowhere` is not there"),
    ],
)
def test_one_message(words, fragment, run, tmp_path, capsys):
    assert run(*words.split()) == 2
    assert fragment in capsys.readouterr().err and not (tmp_path / "out").exists()
