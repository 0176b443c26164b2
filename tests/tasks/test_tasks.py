import gzip
import json
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from trl_irl.tasks.arithmetic import FACTS, TASK, make_arithmetic, make_arithmetic_facts
from trl_irl.tasks.columns import as_prompt_completion, format_row, from_columns
from trl_irl.tasks.data import TaskData
from trl_irl.tasks.files import check_no_other_splits, load_from_hub_or_path
from trl_irl.tasks.final_answer import final_answer, is_correct
from trl_irl.tasks.gsm8k import load_gsm8k
from trl_irl.tasks.splits import load_task


GSM8K = Path(__file__).parents[3] / "shared/data/gsm8k"


@pytest.mark.parametrize(
    "solution, expected",
    [
        ("so it is 5.\n#### 72", 72),
        ("#### 1,234,567", 1234567),
        ("#### $18", 18),
        ("#### -3.50", Decimal("-3.5")),
        ("#### 1\n#### 2", 2),
        ("no answer 12", None),
        ("####", None),
        ("#### apples", None),
    ],
)
def test_final_answer(solution, expected):
    assert final_answer(solution) == expected


def test_is_correct():
    row = {"completion": " ...\n#### 1,000"}
    assert is_correct("I think #### 1000.0", row)
    assert not is_correct("#### 100", row)
    assert not is_correct("1000", row)


def test_arithmetic_solutions_add_up():
    """Every line is right, the lines chain, and the last one is the answer: checked from the text alone."""
    splits = make_arithmetic(num_train=300, num_validation=50, num_test=50)
    assert {name: len(split) for name, split in splits.items()} == {"train": 300, "validation": 50, "test": 50}
    for row in splits["train"]:
        start = int(re.search(r"has (\d+)", row["prompt"])[1])
        sums = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", row["completion"])
        assert 2 <= len(sums) <= 3
        before = start
        for a, operation, b, result in sums:
            a, b, result = int(a), int(b), int(result)
            assert a == before
            assert result == {"+": a + b, "-": a - b, "*": a * b}[operation]
            before = result
        assert final_answer(row["completion"]) == before
        assert row["prompt"].startswith("QUESTION: ") and row["prompt"].endswith("\n\nSOLUTION:")
        assert is_correct(row["completion"], row)


def test_arithmetic_is_seeded_varied_and_held_out():
    splits = make_arithmetic(num_train=500)
    assert splits["train"].to_list() == make_arithmetic(num_train=500)["train"].to_list()
    assert splits["train"].to_list() != make_arithmetic(num_train=500, seed=1)["train"].to_list()
    assert splits["test"].to_list() == make_arithmetic(num_train=10)["test"].to_list()
    questions = [row["prompt"] for split in splits.values() for row in split]
    assert len(set(questions)) == len(questions)
    # The first line of a solution is worded in several ways.
    openings = {re.sub(r"\d+|[A-Z]\w+|\w+s\b", "_", row["completion"].split("\n")[0]) for row in splits["train"]}
    assert len(openings) >= 4


def test_arithmetic_facts_are_plain_text():
    splits = make_arithmetic_facts(num_train=50, num_validation=5)
    assert splits["train"].column_names == ["text"] and len(splits["train"]) == 50
    for a, operation, b, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", " ".join(splits["train"]["text"])):
        assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation]


@pytest.mark.parametrize("seed", [42, 7, 8, 1001])
def test_facts_do_not_tell_a_held_out_problem_of_their_seed(seed):
    data = SimpleNamespace(seed=seed, num_train_rows=5000)  # as a recipe asks for both
    facts = {re.split(r" (?=\d+ [-+*] \d)", text)[0] for text in FACTS.load(data)["train"]["text"]}
    splits = TASK.load(data)
    stories = {
        name: [re.search(r"QUESTION: (.*) How many", row["prompt"])[1] for row in splits[name]] for name in splits
    }
    assert not [story for name in ("validation", "test") for story in stories[name] if story in facts]
    # Stories are read right, and the two streams are not in step: some of many problems meet some facts by chance.
    assert 0 < sum(story in facts for story in stories["train"]) < 30


@pytest.fixture
def gsm8k_rows():
    return Dataset.from_list(
        [
            {"question": f"How many is {i} + 1?", "answer": f"It is {i}+1=<<{i}+1={i + 1}>>{i + 1}.\n#### {i + 1}"}
            for i in range(20)
        ]
    )


@pytest.mark.parametrize("layout", ["jsonl", "parquet", "folder"])
def test_gsm8k_from_local_files(layout, gsm8k_rows, tmp_path):
    path = tmp_path / f"rows.{layout}"
    if layout == "folder":
        path.mkdir()
        gsm8k_rows.to_json(path / "train.jsonl")
        gsm8k_rows.select(range(3)).to_json(path / "test.jsonl")
    else:
        getattr(gsm8k_rows, {"jsonl": "to_json", "parquet": "to_parquet"}[layout])(path)
    splits = load_gsm8k(str(path))
    assert (len(splits["train"]), len(splits["validation"])) == (18, 2)
    assert ("test" in splits) == (layout == "folder")
    rows = sorted((*splits["train"], *splits["validation"]), key=lambda row: int(re.search(r"\d+", row["prompt"])[0]))
    assert rows[3] == {
        "prompt": "QUESTION: How many is 3 + 1?\n\nSOLUTION:",
        "completion": " It is 3+1=<<3+1=4>>4.\n#### 4",
    }
    stripped = load_gsm8k(str(path), calculator_annotations=False)
    assert not any("<<" in row["completion"] for split in stripped.values() for row in split)
    assert splits["validation"].to_list() == load_gsm8k(str(path))["validation"].to_list()
    assert splits["validation"].to_list() != load_gsm8k(str(path), seed=1)["validation"].to_list()


def test_gsm8k_takes_a_test_file_alone_and_splits_that_differ(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(10)]
    for name, more in (("test", {}), ("train", {"id": 1}), ("validation", {"source": "x"})):
        Dataset.from_list([{**row, **more} for row in rows]).to_json(tmp_path / f"{name}.jsonl")
        splits = load_gsm8k(str(tmp_path))
        assert all(set(split.column_names) == {"prompt", "completion"} for split in splits.values())
        assert len(splits["test"]) == 10 and ("train" in splits) == (name != "test")
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 10,
        "validation": 10,
        "test": 10,
    }  # its own


@pytest.mark.parametrize("annotations", [True, False])
@pytest.mark.parametrize("key", ["question", "answer"])
def test_gsm8k_with_nothing_in_a_row(key, annotations, tmp_path):
    rows = [{"question": "1?", "answer": "#### 1"}] * 3
    Dataset.from_list([*rows, {**rows[0], key: None}]).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=f"Row 3 of .*rows.jsonl has None as its `{key}`, which is no text"):
        load_gsm8k(str(tmp_path / "rows.jsonl"), calculator_annotations=annotations)


def test_gsm8k_refuses_other_columns(tmp_path):
    Dataset.from_list([{"q": "1", "a": "2"}] * 4).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="'question' and 'answer'"):
        load_gsm8k(str(tmp_path / "rows.jsonl"))


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the real GSM8K is not on this machine")
def test_real_gsm8k():
    splits = load_gsm8k(str(GSM8K))
    assert {name: len(split) for name, split in splits.items()} == {"train": 6725, "validation": 748, "test": 1319}
    assert all(final_answer(row["completion"]) is not None for split in splits.values() for row in split)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.csv", "."])
def test_text_in_csv_stays_text(name, streaming, tmp_path):
    written = [{"n": "001", "x": "1.50", "t": "true"}, {"n": "-0", "x": "nan", "t": "2024-01-02"}]
    lines = ["n,x,t", *(",".join(row.values()) for row in written), ",,é"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    splits = load_from_hub_or_path(str(tmp_path / name), streaming=streaming)
    assert list(splits["train"]) == [*written, {"n": None, "x": None, "t": "é"}]


def test_missing_files(tmp_path):
    for name in ("./nowhere.jsonl", str(tmp_path / "nowhere"), "a/b/c", "rows.parquet"):
        with pytest.raises(FileNotFoundError, match="is not there"):
            load_from_hub_or_path(name)
    (tmp_path / "rows.pkl").write_text("")
    with pytest.raises(ValueError, match="is not one of"):
        load_from_hub_or_path(str(tmp_path / "rows.pkl"))


@pytest.mark.parametrize("rows", ["ask,reply\nHi, you,yes\n", "ask,reply\n1,2,3\nfour,five\n"])
def test_a_csv_file_with_commas_outside_quotes_loses_no_text(rows, tmp_path):
    """pandas takes the first cell of such rows for their names."""
    (tmp_path / "rows.csv").write_text(rows, encoding="utf-8")
    with pytest.raises(ValueError, match="the first row of rows.csv has 1 more cells than the header"):
        load_from_hub_or_path(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz"])
@pytest.mark.parametrize(
    "text, expected",
    [
        # Files of translations put nothing in quotes, and their texts have some.
        ('"Yes, he said.\tJa.\nNo.\tNein.\n"Stop!\tHalt!\nlast\t"letzte"\n', "as written"),
        ('He said\t"Ja"\n"Quoted" first\tx\n', "as written"),
        ('a "b" c\td\n', "as written"),
        ('"hi\tx\nlast\ty\n"z"\tw\n', "as written"),
        # Those of a table program put in quotes what needs it.
        ('"a\nb"\tc\n"d ""e"""\tf\n', [("a\nb", "c"), ('d "e"', "f")]),
        ('"a\tb"\tc\nd\te\n', [("a\tb", "c"), ("d", "e")]),
        ('"a"\t"b"\n007\tNA\n', [("a", "b"), ("007", "NA")]),
        ('"hi\tx\nlast line\n"z\tw\n', [('"hi', "x"), ("last line", None), ('"z', "w")]),
    ],
)
def test_quotes_in_a_tsv_file(text, expected, name, folder, tmp_path):
    if expected == "as written":
        expected = [tuple(line.split("\t")) for line in text.splitlines()]
    content = ("en\tde\n" + text).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows = load_from_hub_or_path(str(tmp_path if folder else tmp_path / name))["train"]
    assert [(row["en"], row["de"]) for row in rows] == expected


def test_a_tsv_file_of_one_column(tmp_path):
    """Whose every line is whole by itself, whatever is in quotes."""
    (tmp_path / "rows.tsv").write_text('text\n"one\ntwo"\n"q"\n')
    rows = load_from_hub_or_path(str(tmp_path / "rows.tsv"))["train"]
    assert rows["text"][:] == ["one\ntwo", "q"]


@pytest.mark.parametrize("values", [[1, 2.5, -3], [1, None, -3]])
def test_whole_numbers_are_written_without_a_point(values, tmp_path):
    """JSON has one type for a column: a fraction makes floats of the others."""
    rows = [{"ask": "x", "say": value} for value in values]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = TaskData(dataset_name=str(tmp_path / "rows.jsonl"), source_column="ask", target_column="say")
    rows = load_from_hub_or_path(data.dataset_name)["train"]
    said = [from_columns(row, data, "A row")["completion"].strip() for row in rows if row["say"] is not None]
    assert said == [str(value) for value in values if value is not None]


def test_text_that_was_read_as_a_date_is_told(tmp_path):
    rows = [{"prompt": "When?", "completion": "2020-01-01"}, {"prompt": "And?", "completion": "2021-02-03"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_from_hub_or_path(str(tmp_path / "rows.jsonl"))["train"]
    data = TaskData(dataset_name="rows.jsonl", source_column="prompt", target_column="completion")
    for read in (as_prompt_completion, lambda row: from_columns(row, data, "A row")):
        with pytest.raises(ValueError, match="every text of the column looks like a date: in CSV"):
            read(loaded[0])


@pytest.mark.parametrize(
    "name, text",
    [
        ("validation.tsv", "a\tb\n"),
        ("train/part.jsonl.gz", ""),
        ("README.md", "---\nconfigs:\n- split: x\n---\n"),
    ],
)
def test_no_folder_is_written_to_that_would_load_as_something_else(name, text, tmp_path):
    (tmp_path / "notes.md").write_text("Mine.", encoding="utf-8")
    (tmp_path / "train.parquet").write_bytes(b"")
    check_no_other_splits(str(tmp_path), "output_dir", ["train"])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds {name}"):
        check_no_other_splits(str(tmp_path), "output_dir", ["train"])


@pytest.mark.any_trl
def test_an_edited_task_does_not_read_its_old_rows(tmp_path):
    """`datasets` knows cached rows by the function that made them, and that by its name."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"asked": "one", "said": "two"}) + "\n")
    code = "from trl_irl.tasks.data import TaskData\nfrom trl_irl.tasks.splits import load_task\n"
    code += (
        "data = TaskData(task='mine:TASK', dataset_name='rows.jsonl', source_column='asked', target_column='said')\n"
    )
    code += "row = load_task(data)['train'][0]\nprint(row['prompt'] + '|' + row['completion'])"
    module = "from trl_irl.tasks.task import Task\ndef target(text, data):\n    return {}\n"
    module += "TASK = Task(prompt={!r}, target=target)\n"
    seen = []
    for prompt, target in (("Q: {source}", "text"), ("Ask: {source}", "text"), ("Ask: {source}", "text.upper()")):
        (tmp_path / "mine.py").write_text(module.format(target, prompt))
        environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
        )
        seen.append(done.stdout.strip())
    assert seen == ["Q: one| two", "Ask: one| two", "Ask: one| TWO"]


def test_only_rows_that_are_wanted_are_formatted(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("trl_irl.tasks.splits.from_columns", lambda row, data, where: made.append(where) or {**row})
    rows = [{"text": f"One {i}", "summary": "two"} for i in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    columns = {"source_column": "text", "target_column": "summary"}
    data = TaskData(task="summarization", dataset_name=str(tmp_path / "rows.jsonl"), num_train_rows=3, **columns)
    assert load_task(data)["train"]["text"][:] == ["One 0", "One 1", "One 2"] and len(made) == 3


def test_a_dataset_that_is_a_script_and_the_hubs_copy_of_its_rows(tmp_path, monkeypatch):
    """As on the Hub's branch `refs/convert/parquet`: folders of splits in a folder of a config."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "news/news.py"
    script.parent.mkdir()
    script.write_text("print('never run')\n", encoding="utf-8")
    with pytest.raises(ValueError, match="scripts are no longer supported.*hf download news .*refs/convert/parquet"):
        load_from_hub_or_path("news")
    for split, count in (("train", 3), ("validation", 2)):
        folder = tmp_path / "data/rows/default" / split
        folder.mkdir(parents=True)
        Dataset.from_dict({"document": ["news"] * count}).to_parquet(folder / "0000.parquet")
    splits = load_from_hub_or_path("data/rows")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3, "validation": 2}


@pytest.mark.parametrize("chat_format", [False, True])
def test_named_columns_are_trained_on_whatever_else_there_is(chat_format, tmp_path):
    """As in data sets of mathematics, which have the problem, the solution and both as messages."""
    row = {"problem": "2 + 2?", "solution": "4", "input_ids": [1, 2], "messages": [{"role": "user", "content": "no"}]}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    named = {"dataset_name": str(tmp_path / "rows.jsonl"), "source_column": "problem", "target_column": "solution"}
    for streaming in (False, True):
        data = TaskData(**named, chat_format=chat_format, prompt_template="{source}", streaming=streaming)
        found = next(iter(load_task(data)["train"]))
        assert not {"messages", "input_ids"} & found.keys()
        asked = [{"role": "user", "content": "2 + 2?"}] if chat_format else "2 + 2?"
        assert found["prompt"] == format_row(row, data)["prompt"] == asked


def written(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "row, expected",
    [
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            {"conversations": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        ),
        (
            {
                "chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
                "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}],
            },
            {
                "prompt": [{"role": "user", "content": "hi"}],
                "completion": [{"role": "assistant", "content": "yo"}],
            },
        ),
        ({"chosen": "Say it: yes", "rejected": "Say it: no"}, {"prompt": "Say it:", "completion": " yes"}),
    ],
)
def test_rows_of_other_forms_to_train_on(row, expected, streaming, tmp_path):
    splits = load_task(TaskData(dataset_name=written(tmp_path, [row] * 3), streaming=streaming))
    assert list(splits["train"]) == [expected] * 3


@pytest.mark.parametrize(
    "answers, fragment",
    [
        ([2**64 + 1, 2**64 + 2], "1.8446744073709552e.19 in the column `a`, a number so large"),
        ([0.5, 12345678901234567], "1.2345678901234568e.16 in the column `a`, a number so large"),
        ([{"text": ["u"]}], "Name a column in it with a dot"),
        ([["u"]], "neither text nor a number, and prompts and completions are made from it. Make text of it first"),
    ],
)
def test_a_value_whose_text_is_not_known(answers, fragment, tmp_path):
    """Rounded numbers had been trained on as answers."""
    path = written(tmp_path, [{"q": "x", "a": answer} for answer in answers])
    with pytest.raises(ValueError, match=fragment):
        list(load_task(TaskData(dataset_name=path, source_column="q", target_column="a"))["train"])


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_are_the_text_that_their_types_mean(streaming, tmp_path):
    """Classes by their names, and fractions of four bytes by the digits that were meant."""
    features = Features({"q": Value("string"), "label": ClassLabel(names=["neg", "pos"]), "x": Value("float32")})
    fractions = [0.1, 0.7, 1e-3, 16777216.0, 3.5]
    rows = {"q": list("abcde"), "label": [0, 1, 1, 0, 1], "x": fractions}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")

    def made(target, **keys):
        data = TaskData(
            dataset_name=str(tmp_path), source_column="q", target_column=target, streaming=streaming, **keys
        )
        return list(load_task(data)["train"])

    assert [row["completion"] for row in made("label")] == [" neg", " pos", " pos", " neg", " pos"]
    assert [row["completion"] for row in made("x")] == [" 0.1", " 0.7", " 0.001", " 16777216", " 3.5"]
    asked = made("x", prompt_template="{source} {label}:")
    assert [row["prompt"] for row in asked] == ["a neg:", "b pos:", "c pos:", "d neg:", "e pos:"]
    data = TaskData(dataset_name=str(tmp_path), source_column="q", target_column="label", streaming=streaming)
    assert format_row(next(iter(load_task(data, formatted=False)["train"])), data, "")["completion"] == " neg"
    doubles = [0.1, 1e10 + 0.5, 1.5e-300, 1 / 3, 0.5]
    Dataset.from_dict({"q": list("abcde"), "x": doubles}).to_parquet(tmp_path / "train.parquet")
    assert [row["completion"] for row in made("x")] == [f" {x}" for x in doubles]


def test_large_numbers_that_are_whole_in_the_file(tmp_path):
    numbers = [12345678901234567, 2**53 + 1, -(2**62)]
    path = written(tmp_path, [{"q": "x", "a": number} for number in numbers])
    rows = load_task(TaskData(dataset_name=path, source_column="q", target_column="a"))["train"]
    assert [int(row["completion"]) for row in rows] == numbers
    made = from_columns(
        {"q": "x", "a": Decimal("1.50")}, TaskData(dataset_name=path, source_column="q", target_column="a"), ""
    )
    assert made["completion"].strip() == "1.50"


@pytest.mark.parametrize(
    "keys, fragment",
    [
        ({"task": "arithmetic", "streaming": True}, "`dataset_streaming` is of a dataset"),
        ({"task": "arithmetic", "dataset_config": "x"}, "`dataset_config` is of a dataset"),
    ],
)
def test_keys_of_datasets_that_are_generated(keys, fragment):
    with pytest.raises(ValueError, match=fragment):
        TaskData(**keys)


def test_a_configuration_of_what_has_none(tmp_path):
    path = written(tmp_path, [{"prompt": "a", "completion": "b"}])
    Dataset.from_list([{"prompt": "a", "completion": "b"}]).save_to_disk(tmp_path / "saved")
    for name, what in ((path, "a file"), (str(tmp_path / "saved"), "one that `save_to_disk` wrote")):
        with pytest.raises(ValueError, match=f"`dataset_config: x` chooses .* is {what}, which has none"):
            load_from_hub_or_path(name, "x")


def test_a_file_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "a", "completion": "b"}\n{"prompt": "Straße", "completion": "b"}\n'.encode("latin1"))
    with pytest.raises(ValueError, match=f"`dataset_name: {path}` is not UTF-8: line 2 has the byte 0xdf"):
        load_from_hub_or_path(str(path))
