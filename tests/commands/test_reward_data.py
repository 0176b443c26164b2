"""The `reward-data` command: pairs by the checker, that TRL's RewardTrainer takes as they are."""

import json

import pytest
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from tests.commands.test_irl import run as run_module
from tests.conftest import make_model_that_says
from trl_irl.commands import reward_data
from trl_irl.commands.reward_data import values_by_score
from trl_irl.evaluation.scoring import Scorer
from trl_irl.tasks.arithmetic import make_arithmetic
from trl_irl.tasks.final_answer import is_correct


def words_of(prediction, row):
    return {"words": float(len(prediction.split()))}


@pytest.fixture
def run(tmp_path):
    def _run(*words):
        try:
            return reward_data.run(["--output_dir", str(tmp_path / "pairs"), *words])
        except SystemExit as error:
            return error.code

    return _run


def test_references_against_slips(run, tmp_path, capsys, model_folder):
    assert run("--task", "arithmetic", "--num_train_rows", "60") == 0
    assert "train: 60 pairs of 60 of 60 prompts." in capsys.readouterr().out
    pairs = load_dataset(str(tmp_path / "pairs"))
    assert set(pairs) == {"train", "validation", "test"}
    rows = {row["prompt"]: row for row in make_arithmetic(num_train=60)["train"]}
    for pair in pairs["train"]:
        row = rows[pair["prompt"]]
        assert is_correct(pair["chosen"], row) and not is_correct(pair["rejected"], row)

    args = RewardConfig(
        output_dir=str(tmp_path / "run"), max_steps=2, use_cpu=True, bf16=False, report_to="none", max_length=None
    )
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    trainer = RewardTrainer(model, args, train_dataset=pairs["train"], processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.fixture(scope="module")
def ending_model(tokenizer, tmp_path_factory):
    """A model that says EOS with probability 0.15, whatever came before, and else any token."""
    folder = tmp_path_factory.mktemp("ending")
    model = make_model_that_says(tokenizer.eos_token_id, 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_samples_that_were_cut_make_no_pairs(run, tmp_path, ending_model, tokenizer, capsys, monkeypatch):
    """`trl reward` would teach that they ended there. Those that ended are pairs; the others are counted."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "One", "completion": " x"}) + "\n")
    sampled = []
    sample = reward_data.LoadedModel.sample

    def watched(self, *args, **kwargs):
        sampled.extend(sample(self, *args, **kwargs))
        return sampled

    monkeypatch.setattr(reward_data.LoadedModel, "sample", watched)
    words = ["--task", "tests.commands.test_reward_data:words_of", "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--model", str(ending_model), "--max_new_tokens", "6", "--num_samples", "40", "--pairs_per_prompt", "20"]
    assert run(*words) == 0
    (group,) = sampled
    ended = {completion.text for completion in group if completion.ended}
    cut = [completion for completion in group if not completion.ended]
    assert 5 < len(cut) < 35
    pairs = load_dataset(str(tmp_path / "pairs"), split="train")
    assert {text for pair in pairs for text in (pair["chosen"], pair["rejected"])} <= ended
    assert f"{len(cut)} of 40 samples were cut at `max_new_tokens: 6`" in capsys.readouterr().out


def test_samples_of_a_model(run, tmp_path, ending_model, capsys):
    rows = [{"prompt": text, "completion": " x"} for text in ("One", "The quick brown fox", "What is the sky?")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task", "tests.commands.test_reward_data:words_of", "--dataset_name", str(tmp_path / "rows.jsonl")]
    words += ["--model", str(ending_model), "--max_new_tokens", "60", "--pairs_per_prompt", "2"]
    assert run(*words) == 0
    pairs = load_dataset(str(tmp_path / "pairs"), split="train")
    assert f"train: {len(pairs)} pairs of" in capsys.readouterr().out and len(pairs) > 1
    assert all(len(pair["chosen"].split()) > len(pair["rejected"].split()) for pair in pairs)


@pytest.mark.parametrize(
    "words, fragment",
    [
        ("--task tldr", "`task: tldr` has no final answer"),
        ("--task arithmetic --pairs_per_prompt 0", "`pairs_per_prompt: 0` is out of range"),
        ("--task arithmetic --model ./nowhere", "`model: ./nowhere` is not there"),
        ("--task arithmetic --model x/y --temperature 0", "`temperature` above 0"),
        ("--task translation --source_column a --target_column b --model x/y", "is judged over a whole corpus"),
        ("--task arithmetic --output_dir /proc/nope/x", "cannot be written to"),
    ],
)
def test_one_message(words, fragment, run, tmp_path, capsys):
    assert run(*words.split()) == 2
    assert fragment in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_model_that_is_never_right(run, tmp_path, model_folder, capsys):
    words = ["--task", "arithmetic", "--num_train_rows", "3", "--model", str(model_folder), "--max_new_tokens", "4"]
    assert run(*words) == 2
    assert "Not one pair" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.any_trl
def test_the_command_line(tmp_path):
    words = ["--task", "arithmetic", "--num_train_rows", "5", "--output_dir", tmp_path / "pairs"]
    assert "train: 5 pairs" in run_module("trl_irl.cli", "reward-data", *words).stdout


def raises_on_some(prediction, row):
    return {"words": float(len(prediction.split())) / row["some"]}


def test_samples_that_could_not_be_scored_are_told(run, tmp_path, ending_model, capsys):
    words = ["--task", "tests.commands.test_reward_data:raises_on_some", "--model", str(ending_model)]
    words += ["--dataset_name", str(tmp_path / "rows.jsonl"), "--max_new_tokens", "60", "--num_samples", "6"]
    for some, status in (([1, 0], 0), ([0, 0], 2)):
        rows = [{"prompt": f"One {i}", "completion": " x", "some": x} for i, x in enumerate(some)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert run(*words) == status
        told = capsys.readouterr()
        assert "could not be scored" in told.out + told.err and "division by zero" in told.out + told.err
    assert "Not one pair" in told.err and "Raise `max_new_tokens`" not in told.err


def test_no_split_of_an_earlier_run_is_left(run, tmp_path, capsys):
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(4)]
    (tmp_path / "data").mkdir()
    for name, kept in (("train", rows), ("test", rows)):
        (tmp_path / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    words = ["--task", "gsm8k", "--dataset_name", str(tmp_path / "data")]
    assert run(*words) == 0 and set(load_dataset(str(tmp_path / "pairs"))) == {"train", "validation", "test"}
    without = [{"question": "?", "answer": "none"}]
    (tmp_path / "data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in without))
    assert run(*words, "--on_bad_row", "skip") == 0
    assert set(load_dataset(str(tmp_path / "pairs"))) == {"train", "validation"}
    assert run("--task", "arithmetic", "--num_train_rows", "5") == 0
    capsys.readouterr()
    (tmp_path / "data/test.jsonl").unlink()
    assert run(*words) == 2 and "which is none of the splits to write (train" in capsys.readouterr().err


def test_completions_are_ranked_by_one_number():
    """A function need not give every number of every completion."""
    given = {"a": {"quality": 0.9, "words": 3.0}, "b": {"words": 5.0}, "c": {"quality": 0.1}, "d": {}}
    values = values_by_score(Scorer(lambda text, row: given[text]))
    assert values(["d"], {}) == [None]
    assert values(["d", "a", "b", "c"], {}) == [None, 0.9, None, 0.1]
    assert values(["b", "c"], {}) == [None, 0.1]
