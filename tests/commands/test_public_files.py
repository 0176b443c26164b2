"""Files as the public has them: several completions per row, nested, cut, pairs, without references, with bad rows."""

import gzip
import json
import re
from statistics import fmean

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForSequenceClassification

from tests.conftest import make_model_that_says
from trl_irl import PreferenceReward, SoftQReward
from trl_irl.commands import evaluate, reward_data, score
from trl_irl.tasks.rows import given_completions


QUESTIONS = [("What is 1 + 1?", "1 + 1 = <<1+1=2>>2\n#### 2"), ("What is 2 + 3?", "2 + 3 = 5\n#### 5")]
# As OpenAI's grade-school-math has its example solutions: nested by solver, judged, with an end of their own.
JUDGED = [
    {
        "question": question,
        "ground_truth": truth,
        "small": {"solution": f"It is one.\nA: {wrong}", "is_correct": False},
        "large": {"solution": f"It is two.\nA: {right}", "is_correct": True},
        "tags": ["easy", "sum"],
    }
    for (question, truth), wrong, right in zip(QUESTIONS, ("3", "9"), ("2", "5"), strict=True)
]
SAMPLED = "--split train --temperatures 1 --num_samples 4 --max_new_tokens 5 --output_dir ev"
COLUMNS = "--source_column question --target_column ground_truth --completion_columns small.solution large.solution"


@pytest.fixture
def run(model_folder, tmp_path, monkeypatch, capsys):
    """`run(module, rows, words)`: exit status, and what was printed and complained of."""
    monkeypatch.chdir(tmp_path)

    def _run(module, rows, words, name="rows.jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        words = words.replace("MODEL", str(model_folder)).split()
        try:
            status = module.run([*words, "--dataset_name", name])
        except SystemExit as stopped:  # by the parser
            status = stopped.code
        return status, capsys.readouterr()

    return _run


def read(name):
    return load_dataset("parquet" if name.endswith("parquet") else "json", data_files=name, split="train")


@pytest.fixture(scope="module")
def scorer(model_folder, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_score_takes_nested_solutions_and_keeps_the_other_columns(suffix, run, model_folder):
    status, told = run(score, JUDGED, f"--model MODEL {COLUMNS} --output out.{suffix}")
    assert status == 0, told.err
    found = read(f"out.{suffix}")
    assert [(row["row"], row["source"], row["cut"]) for row in found] == [
        (i, f"{who}.solution", False) for i in (0, 1) for who in ("small", "large")
    ]
    assert [row["large"]["is_correct"] for row in found] == [True] * 4 and found[0]["tags"] == ["easy", "sum"]
    assert [row["completion"] for row in found] == [
        row[who]["solution"] for row in JUDGED for who in ("small", "large")
    ]
    expected = SoftQReward(str(model_folder))([row["question"] for row in found], list(found["completion"]))
    assert list(found["sum"]) == pytest.approx(expected, rel=1e-4)
    assert "4 completions, mean return" in told.out and "large.solution: 2, mean" in told.out


def test_score_of_lists_of_texts_messages_and_samples(run):
    rows = [
        {"prompt": "One", "completions": [" two", " three"], "id": 7},
        {"prompt": "1", "completions": [" 2 3"], "id": 8},
    ]
    status, _ = run(score, rows, "--model MODEL --output out.parquet")
    found = read("out.parquet")
    assert status == 0 and list(found["completion"]) == [" two", " three", " 2 3"]
    assert list(found["number"]) == [0, 1, 0] and list(found["id"]) == [7, 7, 8]
    turns = [[{"role": "assistant", "content": text}] for text in ("Blue.", "Red.")]
    rows = [{"prompt": [{"role": "user", "content": "Sky?"}], "completions": turns}]
    assert run(score, rows, "--model MODEL --output out.parquet")[0] == 0
    assert list(read("out.parquet")["completion"]) == ["Blue.", "Red."]


def test_what_evaluate_sampled_is_scored_as_it_ended(run, model_folder):
    rows = [{"prompt": "One", "completion": " two"}, {"prompt": "1", "completion": " 2 3"}]
    words = "--models A=MODEL --split train --temperatures 1 --num_samples 3 --max_new_tokens 6 --output_dir ev"
    assert run(evaluate, rows, words)[0] == 0
    samples = [json.loads(line) for line in open("ev/samples.jsonl", encoding="utf-8")]
    assert run(score, samples, "--model MODEL --output out.parquet", "samples.jsonl")[0] == 0
    found = read("out.parquet")
    given = [completion for line in samples for completion in line["completions"]]
    assert list(found["completion"]) == [one["text"] for one in given]
    assert list(found["cut"]) == [not one["ended"] for one in given]
    assert set(found["model"]) == {"A"} and set(found["temperature"]) == {1.0}
    reward = SoftQReward(str(model_folder))
    for row, one in zip(found, given, strict=True):
        (whole,) = reward.score([row["prompt"]], [one["text"]], ended=[one["ended"]])
        assert row["sum"] == pytest.approx(whole.sum, rel=1e-4, abs=1e-5)
        assert len(row["token_ids"]) == len(whole.token_ids)
        assert (row["token_ids"][-1:] == [reward.tokenizer.eos_token_id]) == one["ended"]


@pytest.mark.parametrize(
    "told, words",
    [
        ({"cut": True}, ""),
        ({"cut": "true"}, ""),
        ({"ended": False}, ""),
        ({"finish_reason": "length"}, ""),
        ({}, "--cut true"),
    ],
)
@pytest.mark.parametrize("chat", [False, True])
def test_cut_completions_have_no_end(told, words, chat, run, tokenizer):
    prompt = [{"role": "user", "content": "Sky?"}] if chat else "Sky?"
    rows = [{"prompt": prompt, "completion": " It is blue", **told}]
    assert run(score, rows, f"--model MODEL --output out.parquet {words}")[0] == 0
    (row,) = read("out.parquet")
    assert row["cut"] and tokenizer.decode(row["token_ids"]).strip() == "It is blue"
    assert not row["has_reward"][-1]
    assert run(score, [{"prompt": prompt, "completion": " It is blue"}], "--model MODEL --output out.parquet")[0] == 0
    (whole,) = read("out.parquet")
    assert not whole["cut"] and whole["token_ids"][: len(row["token_ids"])] == row["token_ids"]
    assert len(whole["token_ids"]) > len(row["token_ids"])


def test_of_several_each_says_for_itself():
    row = {"prompt": "x", "completions": ["a", "b", {"text": "c", "ended": False}], "cut": [True, False, False]}
    assert [one.cut for one in given_completions(row)] == [True, False, True]
    with pytest.raises(ValueError, match="3 completions and 1 values as its `cut`"):
        given_completions({**row, "cut": [True]})
    with pytest.raises(ValueError, match="'beef' as its `cut`.*must be true or false"):
        given_completions({**row, "cut": "beef"})


PAIRS = [
    {"prompt": "One", "chosen": " two three", "rejected": " 3", "margin": 1.5},
    {"prompt": "1", "chosen": " 2 3", "rejected": " lazy dog", "margin": 0.5},
]


@pytest.mark.parametrize("implicit", [False, True])
def test_both_sides_of_pairs(implicit, run):
    rows = PAIRS
    if implicit:
        rows = [
            {k: row["prompt"] + row[k] if k != "margin" else row[k] for k in row if k != "prompt"} for row in PAIRS
        ]
    status, told = run(score, rows, "--model MODEL --output out.parquet")
    assert status == 0, told.err
    found = list(read("out.parquet"))
    assert [(row["source"], row["completion"]) for row in found] == [
        (side, row[side]) for row in PAIRS for side in ("chosen", "rejected")
    ]
    assert [row["margin"] for row in found] == [1.5, 1.5, 0.5, 0.5]
    right = fmean(a["sum"] > b["sum"] for a, b in (found[:2], found[2:]))
    assert f"chosen above rejected in {right:.1%} of 2 pairs" in told.out


def test_a_reward_model_scores_a_file_and_pairs(run, scorer):
    status, told = run(score, PAIRS, f"--kind preference --model {scorer} --output out.jsonl")
    assert status == 0, told.err
    found = list(read("out.jsonl"))
    judge = PreferenceReward(scorer)
    sides = [row[side] for row in PAIRS for side in ("chosen", "rejected")]
    assert [row["reward"] for row in found] == pytest.approx(judge(["One", "One", "1", "1"], sides), rel=1e-4)
    assert f"chosen above rejected in {judge.pair_accuracy(PAIRS):.1%} of 2 pairs" in told.out
    status, told = run(score, PAIRS, "--kind preference --model MODEL --output out.jsonl")
    assert status == 2 and "num_labels = 2" in told.err


def test_a_reward_model_in_evaluate(run, scorer):
    words = (
        f"--models A=MODEL --reward_model_path {scorer} --split train --temperatures 1 --num_samples 4 --rerank true"
    )
    status, told = run(evaluate, PAIRS, f"{words} --max_new_tokens 4 --output_dir ev")
    assert status == 0, told.err
    accuracy = PreferenceReward(scorer).pair_accuracy(PAIRS)
    report = open("ev/report.md", encoding="utf-8").read()
    assert re.search(rf"gives the chosen completion more in {100 * accuracy:.1f} %.* of 2 pairs", report)
    ways = {one["way"] for one in json.load(open("ev/rewards.json", encoding="utf-8"))["best_of_n"]}
    assert "preference" in ways and "A soft_q sum" in ways


def test_names_of_ours_are_kept_beside(run):
    rows = [{"prompt": "One", "completion": " two", "sum": 12, "answer": "x"}]
    status, told = run(score, rows, "--model MODEL --output out.parquet")
    (row,) = read("out.parquet")
    assert status == 0 and row["input_sum"] == 12 and row["sum"] != 12 and row["answer"] == "x"
    assert "the columns sum of the data" in told.out
    assert "input_prompt" not in row and "input_completion" not in row


def test_evaluate_judges_a_files_solutions_without_a_model(run):
    words = f"--task gsm8k {COLUMNS} --answer_marker A: --split train --output_dir ev"
    status, told = run(evaluate, JUDGED, words + " --metrics accuracy")
    assert status == 0, told.err
    (cell,) = json.load(open("ev/metrics.json", encoding="utf-8"))
    assert cell["model"] == "given" and cell["metrics"]["accuracy"]["mean"] == 0.5
    assert cell["metrics"]["pass@2"]["mean"] == 1.0
    first = told.out.split("The first prompt:")[1].split("seconds")[0]
    shown = [JUDGED[0]["question"], "1 + 1 = <<1+1=2>>2", "It is one.\nA: 3"]  # prompt, reference, completion
    assert [first.index(text) for text in shown] == sorted(first.index(text) for text in shown)
    assert "as given" in open("ev/report.md", encoding="utf-8").read()
    status, told = run(evaluate, JUDGED, words.replace("--answer_marker A:", "") + " --metrics accuracy")
    (cell,) = json.load(open("ev/metrics.json", encoding="utf-8"))
    assert cell["metrics"]["accuracy"]["mean"] == 0.0  # without the marker there is no answer


def test_a_reference_that_ends_behind_the_marker_is_not_taken_whole(run):
    rows = [{**row, "ground_truth": row["ground_truth"].replace("#### ", "A: ")} for row in JUDGED]
    words = f"--task gsm8k {COLUMNS} --answer_marker A: --split train --output_dir ev --metrics accuracy"
    status, told = run(evaluate, rows, words)
    assert status == 0, told.err
    (cell,) = json.load(open("ev/metrics.json", encoding="utf-8"))
    assert cell["metrics"]["accuracy"]["mean"] == 0.5
    assert "the whole of them" not in open("ev/report.md", encoding="utf-8").read() + told.out + told.err


def test_and_analyses_rewards_on_them(run, model_folder):
    words = f"--task gsm8k {COLUMNS} --answer_marker A: --split train --output_dir ev --metrics accuracy"
    status, told = run(evaluate, JUDGED, f"{words} --reward_analysis true --rerank true --reward_models M=MODEL")
    assert status == 0, told.err
    found = json.load(open("ev/rewards.json", encoding="utf-8"))
    best = {one["way"]: one for one in found["best_of_n"]}
    assert best["oracle"]["accuracy" if "accuracy" in best["oracle"] else "scores"]["2"]["mean"] == 1.0
    reward = SoftQReward(str(model_folder))
    prompts = [f"QUESTION: {row['question']}\n\nSOLUTION:" for row in JUDGED]
    chosen = [
        reward([prompt], [row["large"]["solution"]])[0] > reward([prompt], [row["small"]["solution"]])[0]
        for prompt, row in zip(prompts, JUDGED, strict=True)
    ]
    key = "accuracy" if "accuracy" in best["M soft_q sum"] else "scores"
    assert best["M soft_q sum"][key]["2"]["mean"] == pytest.approx(fmean(chosen))
    status, told = run(evaluate, JUDGED, f"{words} --reward_analysis true")
    assert status == 2 and "Set `reward_models`" in told.err


PROMPTS = [{"prompt": "One", "topic": "numbers"}, {"prompt": "The quick brown fox", "topic": "animals"}]


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_of_public.py").write_text(
        "def words(text, row): return {'words': len(text.split()) + (row['topic'] == 'animals')}\n"
        "async def later(text, row): return float(len(text))\n"
        "def wrong(text, row): return 'good'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_prompts_without_references(run, own, scorer):
    status, told = run(evaluate, PROMPTS, f"--models A=MODEL --task own_of_public:words {SAMPLED}")
    assert status == 0, told.err
    samples = [json.loads(line) for line in open("ev/samples.jsonl", encoding="utf-8")]
    extra = {"One": 0, "The quick brown fox": 1}
    expected = fmean(len(c["text"].split()) + extra[line["prompt"]] for line in samples for c in line["completions"])
    (cell,) = json.load(open("ev/metrics.json", encoding="utf-8"))
    assert cell["metrics"]["words"]["mean"] == pytest.approx(expected) and "nll" not in cell["metrics"]
    status, told = run(evaluate, PROMPTS, f"--models A=MODEL --reward_model_path {scorer} {SAMPLED}")
    (cell,) = json.load(open("ev/metrics.json", encoding="utf-8"))
    assert status == 0 and "reward" in cell["metrics"] and "win_rate" not in cell["metrics"]
    status, told = run(evaluate, PROMPTS, f"--models A=MODEL {SAMPLED}")
    assert status == 2 and "`target_column`" in told.err
    status, told = run(evaluate, PROMPTS, f"--models A=MODEL --task own_of_public:words --metrics nll {SAMPLED}")
    assert status == 2 and "`metrics: nll` compares with references" in told.err
    status, told = run(score, PROMPTS, "--model MODEL --output out.parquet")
    assert status == 2 and "has no completion: its columns are prompt, topic" in told.err


def test_numbers_and_async_functions_are_scores(run, own):
    assert run(evaluate, PROMPTS, f"--models A=MODEL --task own_of_public:later {SAMPLED}")[0] == 0
    (cell,) = json.load(open("ev/metrics.json", encoding="utf-8"))
    samples = [json.loads(line) for line in open("ev/samples.jsonl", encoding="utf-8")]
    expected = fmean(len(c["text"]) for line in samples for c in line["completions"])
    assert cell["metrics"]["later"]["mean"] == pytest.approx(expected)
    status, told = run(evaluate, PROMPTS, f"--models A=MODEL --task own_of_public:wrong {SAMPLED}x")
    assert status == 2 and "returned 'good', a str. A score is a number, or a mapping" in told.err


@pytest.fixture(scope="module")
def ending(tokenizer, tmp_path_factory):
    """A model that says EOS with probability 0.15, whatever came before, and else any token."""
    folder = tmp_path_factory.mktemp("ending")
    make_model_that_says(tokenizer.eos_token_id, 1.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


PAIRED = "--num_samples 16 --max_new_tokens 40 --output_dir pairs"


def test_pairs_of_prompts_without_references(run, own, scorer, ending):
    words = f"--model {ending} {PAIRED}"
    for judge in ("--task own_of_public:later", f"--reward_model_path {scorer}"):
        status, told = run(reward_data, PROMPTS, f"{words} {judge}")
        assert status == 0, told.err
        pairs = list(load_dataset("parquet", data_files="pairs/train.parquet", split="train"))
        if "own" in judge:
            assert all(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs)
        else:
            reward = PreferenceReward(scorer)
            assert reward.pair_accuracy(pairs) == 1.0
    assert run(reward_data, PROMPTS, words)[0] == 2


BAD = [
    {"prompt": "One", "completion": " two", "topic": "a"},
    {"prompt": None, "completion": " x", "topic": "a"},
    {"prompt": "1", "completion": " 2 3", "topic": "a"},
    {"prompt": "word " * 400, "completion": " x", "topic": "a"},
]
LEFT_OUT = "2 of 4 rows of `train` are left out (`on_bad_row: skip`): 1, 3. The first: Row 1"


@pytest.mark.parametrize("command", ["evaluate", "score", "reward-data"])
def test_bad_rows_stop_or_are_skipped_and_named(command, run, own, ending):
    module, words = {
        "evaluate": (evaluate, f"--models A=MODEL {SAMPLED}"),
        "score": (score, "--model MODEL --output out.parquet"),
        "reward-data": (
            reward_data,
            f"--model {ending} --task own_of_public:later {PAIRED}",
        ),
    }[command]
    status, told = run(module, BAD, words)
    assert status == 2 and "Row 1 of `train` has nothing (null)" in told.err and "`on_bad_row: skip`" in told.err
    status, told = run(module, BAD[:1] + BAD[3:], words)
    assert status == 2 and ("context" in told.err) and "`on_bad_row: skip`" in told.err
    status, told = run(module, BAD, words + " --on_bad_row skip")
    assert status == 0, told.err
    assert LEFT_OUT in told.out
    if command == "score":
        assert list(read("out.parquet")["row"]) == [0, 2]
    if command == "evaluate":
        assert LEFT_OUT in open("ev/report.md", encoding="utf-8").read()
    status, told = run(module, BAD[1:2], words + " --on_bad_row skip")
    assert status == 2 and "Not one of the 1 rows of `train` can be used" in told.err


@pytest.mark.parametrize("name", ["rows.tsv", "rows.jsonl.gz", "rows.csv.gz", "rows.ndjson", "saved", "saved_dict"])
def test_kinds_of_files(name, run, tmp_path, model_folder, capsys):
    rows = [{"prompt": f"One {i}", "completion": " 007"} for i in range(3)]
    if name.startswith("saved"):
        from datasets import DatasetDict

        data = Dataset.from_list(rows)
        (DatasetDict({"train": data}) if name == "saved_dict" else data).save_to_disk(tmp_path / name)
    elif name.endswith("ndjson") or ".jsonl" in name:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    else:
        by = "\t" if "tsv" in name else ","
        text = "".join(
            f"{a}{by}{b}\n" for a, b in [("prompt", "completion"), *(row.values() for row in rows)]
        ).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    status = score.run(["--model", str(model_folder), "--dataset_name", name, "--output", "out.parquet"])
    assert status == 0, capsys.readouterr().err
    found = read("out.parquet")
    assert list(found["prompt"]) == [row["prompt"] for row in rows]
    assert list(found["completion"]) == [" 007"] * 3


def test_an_empty_prompt_is_named(run):
    """Nothing for a model to go on from, where the tokenizer begins a text with no token of its own."""
    rows = [{"prompt": "One", "completion": " two"}, {"prompt": "", "completion": " x"}]
    status, told = run(evaluate, rows, f"--models A=MODEL {SAMPLED}")
    assert status == 2 and "Row 1 of `train` has an empty prompt" in told.err
    status, told = run(evaluate, rows, f"--models A=MODEL {SAMPLED} --on_bad_row skip")
    assert status == 0 and "1 of 2 rows" in told.out
