"""The `prepare` command: what it writes can be trained on, prompts are cut where they should be, limits hold."""

import json
import re

import pytest
from datasets import Dataset, DatasetDict, load_dataset
from transformers import AutoTokenizer

from tests.commands.test_irl import run as run_module
from tests.commands.test_irl import write_recipe
from trl_irl.commands import irl, prepare
from trl_irl.tasks.final_answer import is_correct


ROWS = [
    {"title": f"Title {i}", "post": "\n".join(f"line {j} of post {i}" for j in range(1 + 3 * i)), "tldr": f"post {i}"}
    for i in range(10)
]
COLUMNS = ["--source_column", "post", "--target_column", "tldr", "--validation_fraction", "0.2"]
TEMPLATE = ["--prompt_template", "TITLE: {title}\nPOST: {source}\n\nTL;DR:"]


@pytest.fixture(scope="module")
def loaded_tokenizer(model_folder):
    """As the command loads it: Qwen2's class has its own way to split digits."""
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def run(model_folder, tmp_path):
    """`run(words, rows)`: the exit status and the written splits."""

    def _run(*words, rows=ROWS):
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = tmp_path / "prepared"
        fixed = ["--tokenizer", str(model_folder), "--dataset_name", str(data), "--output_dir", str(folder)]
        try:
            status = prepare.run([*fixed, *words])
        except SystemExit as error:
            status = error.code
        return status, load_dataset(str(folder)) if folder.exists() else None

    return _run


def test_formats_cuts_splits_and_saves(run, loaded_tokenizer, capsys):
    limits = ["--max_prompt_length", "120", "--truncate_field", "post"]
    status, splits = run(*COLUMNS, *TEMPLATE, *limits)
    assert status == 0 and {name: len(split) for name, split in splits.items()} == {"train": 8, "validation": 2}
    rows = {row["title"]: row for split in splits.values() for row in split}
    untouched, cut = rows["Title 0"], rows["Title 9"]
    assert untouched["prompt"] == "TITLE: Title 0\nPOST: line 0 of post 0\n\nTL;DR:"
    assert untouched["completion"] == " post 0"
    # The longest start of whole lines that fits, counted one by one.
    lines = ROWS[9]["post"].split("\n")
    starts = [f"TITLE: Title 9\nPOST: {chr(10).join(lines[:n])}\n\nTL;DR:" for n in range(1, len(lines) + 1)]
    fitting = [prompt for prompt in starts if len(loaded_tokenizer(prompt)["input_ids"]) <= 120]
    assert cut["prompt"] == fitting[-1] and 1 < len(fitting) < len(lines)
    stdout = capsys.readouterr().out
    assert "prompts shortened" in stdout and "Lengths in tokens" in stdout and "8 train, 2 validation" in stdout


def test_a_prompt_that_is_there_keeps_its_closing_line(run, loaded_tokenizer):
    rows = [{"prompt": f"POST: {row['post']}\n\nTL;DR:", "completion": " x"} for row in ROWS]
    limits = ["--max_length", "100", "--truncate_field", "prompt", "--validation_fraction", "0"]
    status, splits = run(*limits, rows=rows)
    assert status == 0 and list(splits) == ["train"]
    for row, before in zip(splits["train"], rows, strict=True):
        assert row["prompt"].endswith("\n\nTL;DR:") and row["prompt"].count("TL;DR:") == 1
        assert before["prompt"].startswith(row["prompt"].removesuffix("\n\nTL;DR:"))
        assert len(loaded_tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 <= 100
    assert splits["train"][0]["prompt"] == rows[0]["prompt"]


def test_a_prompt_that_is_made_anew_from_its_column_is_not_shortened(run, capsys):
    """A recipe with the same columns would make it as long as before."""
    status, splits = run(*COLUMNS, "--max_length", "100", "--truncate_field", "prompt")
    assert status == 2 and splits is None
    assert "would make the prompt anew" in " ".join(capsys.readouterr().err.split())


def test_rows_that_are_too_long_are_an_error_or_kept(run, loaded_tokenizer, capsys):
    limits = ["--max_prompt_length", "60", "--max_completion_length", "3"]
    status, splits = run(*COLUMNS, *limits)
    stderr = capsys.readouterr().err
    assert status == 2 and splits is None
    sizes = [len(loaded_tokenizer(row["post"])["input_ids"]) for row in ROWS]
    above = [i for i, size in enumerate(sizes) if size > 60]
    first = f"(the first is row {above[0]}, {sizes[above[0]]} tokens)"
    assert f"{len(above)} of train in their prompt {first}" in stderr and len(above) < 10
    assert "10 of train in their completion" in stderr
    assert "`truncate_field`" in stderr and "check_length_correctness: false" in stderr
    status, splits = run(*COLUMNS, *limits, "--check_length_correctness", "false")
    assert status == 0 and len(splits["train"]) == 8


def test_what_it_writes_is_trained_on(run, model_folder, tmp_path):
    status, _ = run(*COLUMNS, "--max_length", "200", "--truncate_field", "post")
    assert status == 0
    overrides = {"task": None, "num_train_rows": None, "dataset_name": str(tmp_path / "prepared"), "max_steps": 1}
    recipe = write_recipe(tmp_path, model_folder, **overrides, save_strategy="no", dataset_test_split="validation")
    irl.main(*irl.make_parser().parse(["--config", str(recipe)]))
    assert (tmp_path / "run/model.safetensors").is_file()


def test_generated_tasks_and_messages(run, capsys):
    rows = [{"messages": [{"role": "user", "content": "One"}, {"role": "assistant", "content": "two"}]}] * 5
    status, splits = run(rows=rows)
    assert status == 0 and splits["train"][0]["messages"] == rows[0]["messages"]
    assert "4 train, 1 validation" in capsys.readouterr().out


def test_rows_that_are_too_long_are_left_out(run, capsys):
    status, splits = run(*COLUMNS, *TEMPLATE, "--max_prompt_length", "150", "--drop_too_long", "true")
    assert status == 0
    kept = {row["title"] for split in splits.values() for row in split}
    assert kept == {f"Title {i}" for i in range(len(kept))} and 0 < len(kept) < len(ROWS)
    assert f"{len(ROWS) - len(kept)} rows longer than the limits left out, {len(kept)} kept" in capsys.readouterr().out
    assert run(*COLUMNS, *TEMPLATE, "--max_prompt_length", "2", "--drop_too_long", "true")[0] == 2
    assert "Every row of `train` is longer than the limits" in capsys.readouterr().err


def test_of_preferences_the_chosen_are_demonstrations(run):
    def message(role, text):
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": message("user", f"{i}?"),
            "chosen": message("assistant", f"{i}."),
            "rejected": message("assistant", "No."),
        }
        for i in range(10)
    ]
    status, splits = run("--reference_column", "reference", rows=rows)
    assert status == 0 and set(splits["train"].column_names) == {"prompt", "completion", "reference"}
    for row in splits["train"]:
        assert row["completion"] == message("assistant", row["reference"]) and row["reference"].endswith(".")


def test_a_column_for_reward_functions(run, capsys):
    status, splits = run(*COLUMNS, *TEMPLATE, "--reference_column", "reference")
    assert status == 0
    assert all(row["reference"] == row["completion"] for split in splits.values() for row in split)
    assert run(*COLUMNS, *TEMPLATE, "--reference_column", "title")[0] == 2
    assert "`reference_column: title` is a column of the dataset already" in capsys.readouterr().err
    assert run(*COLUMNS, *TEMPLATE, "--reference_column", "completion")[0] == 2
    assert "is a column that TRL keeps from reward functions" in capsys.readouterr().err


def test_push(run, monkeypatch):
    pushed = []
    monkeypatch.setattr("huggingface_hub.create_repo", lambda *args, **kwargs: None)
    monkeypatch.setattr(DatasetDict, "push_to_hub", lambda self, name, private: pushed.append((self, name, private)))
    status, splits = run(*COLUMNS, "--push_to_hub", "--hub_dataset_id", "me/data")
    assert status == 0
    ((dataset, name, private),) = pushed
    assert name == "me/data" and private and dataset["train"]["prompt"] == splits["train"]["prompt"]


def test_a_folder_with_other_splits_is_refused_and_the_same_are_replaced(run, tmp_path, capsys):
    folder = tmp_path / "prepared"
    old, new = ([{"prompt": f"{age} {i}", "completion": " x"} for i in range(10)] for age in ("Old", "New"))
    assert run(rows=old)[0] == 0
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, _ = run("--validation_fraction", "0", rows=new)
    error = capsys.readouterr().err
    assert status == 2 and "holds validation.parquet, which is none of the splits to write (train)" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    status, splits = run(rows=new)
    assert status == 0 and {row["prompt"][:3] for split in splits.values() for row in split} == {"New"}
    (folder / "data").mkdir()
    (folder / "data/more.jsonl").write_text('{"prompt": "Old", "completion": " x"}\n', encoding="utf-8")
    assert run(rows=new)[0] == 2 and "holds data/more.jsonl" in capsys.readouterr().err


def test_splits_are_replaced_together(run, monkeypatch, tmp_path):
    rows = [{"prompt": f"Old {i}", "completion": " x"} for i in range(10)]
    run(rows=rows)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    whole, calls = Dataset.to_parquet, []

    def no_room(self, path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("No space left on device")
        return whole(self, path)

    monkeypatch.setattr(Dataset, "to_parquet", no_room)
    assert run(rows=[{"prompt": f"New {i}", "completion": " x"} for i in range(10)])[0] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()} == kept


def test_numbers_in_csv_are_written_as_they_were(model_folder, tmp_path):
    lines = ["question,answer", "0042,1e5", "NA,007", '"1,5",+3', "2.50,null"]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--dataset_name", str(tmp_path / "rows.csv"), "--source_column", "question", "--target_column", "answer"]
    words += ["--tokenizer", str(model_folder), "--validation_fraction", "0", "--output_dir", str(tmp_path / "out")]
    assert prepare.run(words) == 0
    rows = load_dataset(str(tmp_path / "out"))["train"]
    assert list(zip(rows["prompt"], rows["completion"], strict=True)) == [
        ("0042", " 1e5"),
        ("NA", " 007"),
        ("1,5", " +3"),
        ("2.50", " null"),
    ]
    assert is_correct(" 100000", rows[0]) and is_correct("#### 7", rows[1]) and not is_correct(" 2", rows[2])


@pytest.mark.parametrize(
    "words, fragment",
    [
        ("--tokenizer ./nowhere", "`tokenizer: ./nowhere` is not there"),
        ("--max_length 0", "`max_length: 0` is out of range"),
        ("--validation_fraction 1", "`validation_fraction: 1.0`"),
        ("--truncate_field post", "`max_prompt_length` or `max_length`"),
        ("--truncate_field nope --max_length 99", "`truncate_field: nope` is no column that prompts are made from"),
        ("--truncate_field summary --max_length 99", "and what is to be learned cut"),
        ("--truncate_field completion --max_length 99", "is no column that prompts are made from"),
        ("--validation_fraction 0.99", "leaves none to train on"),
        ("--eos_token <none>", "`eos_token: <none>` is not among the tokens of"),
        ("--push_to_hub", "`hub_dataset_id: user/name`"),
        ("--prompt_template {nope}", "`nope` is not among the dataset's columns"),
        ("--prompt_template none", "in braces"),
        ("--output_dir /proc/nope", "`output_dir: /proc/nope` cannot be written to"),
    ],
)
def test_one_message(words, fragment, run, capsys):
    status, splits = run(*COLUMNS, *words.split())
    stderr = capsys.readouterr().err
    assert status == 2 and splits is None
    assert stderr.count("trl-irl prepare: error: ") == 1 and fragment in stderr


@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_a_row_with_nothing_in_it_is_named(column, run, capsys):
    rows = [{"prompt": f"{i}?", "completion": f" {i}"} for i in range(4)]
    rows[2][column] = None
    status, splits = run(rows=rows)
    assert status == 2 and splits is None
    assert f"Row 2 of `train` has nothing (null) in the column `{column}`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "message, told",
    [
        ({"role": "assistant", "content": None}, "Row 2 of `train` has a message in its `completion` with nothing"),
        ({"role": "assistant", "content": 7}, "Row 2 of `train` has a message in its `completion` with 7"),
    ],
)
def test_a_message_with_no_text_is_named(message, told, run, capsys):
    rows = [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": "No."}]}
        for i in range(4)
    ]
    rows[2]["completion"] = [message]
    if message["content"] == 7:  # a column of mixed types is JSON, whose values may be anything
        rows[1]["completion"] = [{"role": "assistant", "content": "x", "tool_calls": [1, "a"]}]
    status, splits = run(rows=rows)
    assert status == 2 and splits is None
    assert told in capsys.readouterr().err


def test_a_column_to_cut_needs_columns(run, capsys):
    rows = [{"prompt": "One", "completion": " two"}]
    status, _ = run("--truncate_field", "post", "--max_length", "9", rows=rows)
    assert status == 2 and "Set it to prompt, or set `source_column`" in capsys.readouterr().err


@pytest.mark.any_trl
def test_the_command_line(model_folder, tmp_path):
    words = ["--task", "arithmetic", "--num_train_rows", "20", "--tokenizer", model_folder]
    result = run_module("trl_irl.cli", "prepare", *words, "--output_dir", tmp_path / "data")
    assert "20 train" in result.stdout
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_a_nested_column_is_shortened(run):
    rows = [{"t": {"de": "eins zwei drei " * 20, "en": "one two"}} for _ in range(4)]
    words = "--source_column t.de --target_column t.en --truncate_field t.de --max_prompt_length 30 --truncate_text"
    status, splits = run(*words.split(), " ", "--task", "translation", rows=rows)
    assert status == 0
    for row in splits["train"]:
        assert row["prompt"].startswith(row["t"]["de"]) and 0 < len(row["t"]["de"]) < 200
        assert row["completion"] == " one two"


@pytest.mark.parametrize("rows, fraction, says", [(1, 0.1, "1 row leaves"), (2, 0.6, "2 rows leaves")])
def test_too_few_rows_to_split(rows, fraction, says, run, capsys):
    told = [{"prompt": f"{i}?", "completion": f" {i}"} for i in range(rows)]
    assert run("--validation_fraction", str(fraction), rows=told)[0] == 2
    assert f"`validation_fraction: {fraction}` of {says} none to train on" in capsys.readouterr().err
    assert run("--validation_fraction", "0", rows=told)[0] == 0


def test_in_its_own_words(run, capsys):
    rows = [{"instruction": "Do", "output": "Done"}] * 3
    assert run(rows=rows)[0] == 2
    told = capsys.readouterr().err
    assert "this data has the columns instruction, output" in told and "ampling" not in told
    # Not behind the progress bar that was open.
    assert any(line.startswith("trl-irl prepare: error: ") for line in re.split(r"[\r\n]", told))


def test_columns_of_several_kinds(run, capsys):
    rows = [{"prompt": "One", "completion": " two"}] * 2
    rows.append({"prompt": [{"role": "user", "content": "One"}], "completion": " two"})
    assert run("--validation_fraction", "0", rows=rows)[0] == 2
    assert "since `prompt` is str in row 0 and list in row 2" in capsys.readouterr().err


@pytest.mark.parametrize("fraction", ["0", "0.2"])
def test_shortened_prompts_of_a_chat_are_messages(fraction, run, loaded_tokenizer, capsys):
    columns = ["--source_column", "post", "--target_column", "tldr", "--validation_fraction", fraction]
    limits = ["--max_prompt_length", "120", "--truncate_field", "post", "--chat_format", "true"]
    status, splits = run(*columns, *TEMPLATE, *limits)
    assert status == 0 and "prompts shortened" in capsys.readouterr().out
    for row in (row for split in splits.values() for row in split):
        (message,) = row["prompt"]
        assert message["role"] == "user" and re.match(r"TITLE: Title \d\nPOST: line 0", message["content"])
        assert row["completion"][0]["role"] == "assistant"
        ids = loaded_tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        assert len(ids) <= 120


def test_a_prompt_of_which_nothing_would_be_left_is_too_long(run, capsys):
    rows = [{"q": "What is the colour of the sky?", "a": "a b c d"}] * 2
    words = ["--source_column", "q", "--target_column", "a", "--validation_fraction", "0", "--truncate_field", "q"]
    status, _ = run(*words, "--max_length", "4", rows=rows)
    assert status == 2 and "2 of train in their total" in capsys.readouterr().err


def test_rows_of_references_get_the_completion_that_trainers_read(run):
    chat = [{"role": "user", "content": "a"}]
    for prompt, expected in (("a", " b"), (chat, [{"role": "assistant", "content": "b"}])):
        rows = [{"prompt": prompt, "references": ["b", "c"]}] * 3
        status, splits = run("--validation_fraction", "0", rows=rows)
        assert status == 0 and splits["train"][0]["completion"] == expected
