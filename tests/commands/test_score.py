"""The `score` command: what it writes is SoftQReward's, it goes on where it was, and the page shows it."""

import html
import json
import re

import pytest
from datasets import load_dataset

from tests.commands.test_irl import run as run_module
from trl_irl import SoftQReward
from trl_irl.commands import score
from trl_irl.evaluation import scored_completions
from trl_irl.rewards.heatmap import colour


ROWS = [
    {"prompt": "What is <blue>?", "completion": " The sky & the sea"},
    {"prompt": "One", "completion": " two three"},
    {"prompt": "The quick brown fox", "completion": " jumps over the lazy dog. 1 2 3"},
]


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scored_completions, "_CHUNK", 2)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def _run(*words):
        fixed = ["--model", str(model_folder), "--dataset_name", str(data), "--output", str(tmp_path / "out.parquet")]
        try:
            return score.run([*fixed, *words])
        except SystemExit as error:
            return error.code

    return _run


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_what_it_writes(suffix, run, model_folder, tmp_path, capsys):
    assert run("--output", str(tmp_path / f"out.{suffix}"), "--gamma", "0.9") == 0
    builder = {"parquet": "parquet", "jsonl": "json"}[suffix]
    found = load_dataset(builder, data_files=str(tmp_path / f"out.{suffix}"), split="train")
    reward = SoftQReward(str(model_folder), gamma=0.9)
    expected = reward.score([row["prompt"] for row in ROWS], [row["completion"] for row in ROWS])
    for row, given, one in zip(found, ROWS, expected, strict=True):
        assert row["prompt"] == given["prompt"] and row["completion"] == given["completion"]
        assert "".join(row["tokens"]) == given["completion"] + "<eos>"
        assert row["rewards"] == pytest.approx(one.rewards.tolist(), rel=1e-4)
        for name in ("sum", "discounted", "mean", "log_likelihood", "initial_value"):
            assert row[name] == pytest.approx(getattr(one, name), rel=1e-4)
    assert "3 completions, mean return" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"out.{suffix}", "rows.jsonl"])


def test_interrupted_it_goes_on(run, tmp_path, monkeypatch, capsys):
    scored = []
    whole = SoftQReward.score

    def dies_at_the_second_chunk(self, prompts, *args, **kwargs):
        scored.append(list(prompts))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return whole(self, prompts, *args, **kwargs)

    monkeypatch.setattr(SoftQReward, "score", dies_at_the_second_chunk)
    assert run() == 130
    error = capsys.readouterr().err
    assert (
        f"trl-irl score: interrupted. The same command goes on from what was scored, which is in {tmp_path}" in error
    )
    assert not (tmp_path / "out.parquet").exists() and len(list((tmp_path / "out.parquet.parts").iterdir())) == 1
    assert run() == 0
    assert [len(prompts) for prompts in scored] == [2, 1, 1]  # the first chunk was not asked again
    assert load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")["prompt"][:] == [
        row["prompt"] for row in ROWS
    ]
    assert not (tmp_path / "out.parquet.parts").exists()


def test_the_page(run, tmp_path):
    words = ("--html", str(tmp_path / "page.html"), "--html_rows", "2", "--terminal_value", "zero")
    assert run(*words) == 0
    page = (tmp_path / "page.html").read_text()
    found = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")
    articles = re.findall(r"<article.*?</article>", page, re.S)
    assert len(articles) == 2
    for article, row in zip(articles, found, strict=False):
        assert float(re.search(r'data-return="([^"]+)"', article)[1]) == row["sum"]
        tokens = re.findall(r'<span style="background:#\w{6}" title="r ([^,]+), Q [^"]+">(.*?)</span>', article, re.S)
        assert [html.unescape(token) for _, token in tokens] == row["tokens"]
        assert [float(value) for value, _ in tokens] == pytest.approx(row["rewards"], abs=5e-4)
        assert html.escape(row["prompt"]) in article
    assert "<blue>" not in page and "http" not in page.replace("http-equiv", "")  # nothing from elsewhere


def test_a_page_that_cannot_be_written_costs_no_scores(run, tmp_path, monkeypatch, capsys):
    scored = []
    whole = SoftQReward.score
    monkeypatch.setattr(SoftQReward, "score", lambda self, *args, **kw: scored.append(1) or whole(self, *args, **kw))
    page = tmp_path / "new/folder/page.html"
    with monkeypatch.context() as patch:
        patch.setattr("trl_irl.rewards.heatmap._article", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        assert run("--html", str(page)) == 2 and "no room" in capsys.readouterr().err
    assert (tmp_path / "out.parquet.parts").is_dir() and not page.exists()
    assert run("--html", str(page)) == 0 and page.is_file() and len(scored) == 2  # two chunks, once
    assert not (tmp_path / "out.parquet.parts").exists()
    assert run("--html", str(tmp_path)) == 2 and f"`html: {tmp_path}` is a folder" in capsys.readouterr().err


def test_colours():
    assert colour(0) == "#ffffff" and colour(1) == colour(2) == "#6f9cc9" and colour(-1) == "#cd6975"


@pytest.mark.parametrize(
    "words, fragment",
    [
        ("--model ./nowhere", "`model: ./nowhere` is not there"),
        ("--output rewards.csv", "`output: rewards.csv` is neither of .parquet, .jsonl"),
        ("--kind log_ratio", "compares the model with a reference"),
        ("--kind q", "invalid choice: 'q'"),
        ("--split test", "`split: test` is not among the dataset's, which are train"),
        ("--batch_size 0", "`batch_size: 0` is out of range"),
        ("--terminal_value one", "`terminal_value: one` must be zero or mask"),
        ("--output /proc/nope/x.jsonl", "`output: /proc/nope` cannot be written to"),
    ],
)
def test_one_message(words, fragment, run, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert run(*words.split()) == 2
    stderr = capsys.readouterr().err
    assert stderr.count("trl-irl score: error: ") == 1 and fragment in stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.any_trl
def test_the_command_line(model_folder, tmp_path):
    words = ["--model", model_folder, "--task", "arithmetic", "--num_rows", "2", "--output", tmp_path / "out.jsonl"]
    result = run_module("trl_irl.cli", "score", *words)
    assert "2 completions" in result.stdout


def test_a_page_in_the_place_of_the_numbers_is_refused(run, tmp_path, capsys):
    for same in (tmp_path / "out.parquet", tmp_path / "x" / ".." / "out.parquet"):
        assert run("--html", str(same)) == 2
        assert "is the file of `output` too" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_chosen_and_rejected_of_other_rows_are_no_pairs():
    lines = [
        {"source": side, "row": i, "sum": float(i), "cut": False} for i, side in enumerate(("chosen", "rejected"))
    ]
    told = scored_completions.summary(lines, "sum")
    assert len(told) == 3 and not any("above" in line for line in told)


def test_what_has_no_known_reward_is_in_no_mean_and_no_pair(run, tmp_path, capsys):
    pairs = [("One", " two", ""), ("One", "", " two"), ("One", " three", " two")]
    lines = [json.dumps({"prompt": a, "chosen": b, "rejected": c}) + "\n" for a, b, c in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    words = ["--dataset_name", str(tmp_path / "pairs.jsonl"), "--html", str(tmp_path / "page.html")]
    assert run(*words) == 0
    found = list(load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train"))
    assert [row["sum"] is None for row in found] == [row["completion"] == "" for row in found]
    known = [row["sum"] for row in found if row["sum"] is not None]
    told = capsys.readouterr().out
    assert f"6 completions, mean return {sum(known) / 4:+.3f}" in told
    assert "of 2 no token has a known return" in told and " of 1 pairs" in told
    assert "return not known" in (tmp_path / "page.html").read_text()


def test_columns_of_the_data_that_are_not_what_is_scored_are_kept(run, tmp_path, capsys):
    rows = [{"question": "One", "answer": " two", "prompt": "old prompt", "completion": "old completion"}]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--dataset_name", str(tmp_path / "other.jsonl"), "--task", "summarization", "--source_column", "question"]
    assert run(*words, "--target_column", "answer") == 0
    (found,) = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")
    assert found["completion"] == " two" and "One" in found["prompt"]
    assert found["input_prompt"] == "old prompt" and found["input_completion"] == "old completion"
    assert "the columns prompt, completion of the data have names of this command's" in capsys.readouterr().out
