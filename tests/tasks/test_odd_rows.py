"""Rows for sampling, scoring and PPO: the text that they mean, or one message with the key, the row and the value."""

import pickle

import pytest
from datasets import Dataset

from tests.conftest import make_tokenizer
from trl_irl.tasks.columns import as_prompt_completion
from trl_irl.tasks.data import TaskData
from trl_irl.tasks.splits import load_task
from trl_irl.text.encode import encode_row, encode_rows
from trl_irl.text.messages import Turns
from trl_irl.text.sampling import encode_prompts


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


PLAIN = {"prompt": [user("One?")], "completion": "It is."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("One?"), bot("It is.")]},
        {"conversations": [{"from": "user", "value": "One?"}, {"from": "assistant", "value": "It is."}]},
        {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "It is."}]},
        {"messages": [user(parts("One", "?")), bot(parts("It is."))]},
        {"prompt": [user("One?")], "completion": [bot("It is.", tool_calls=None, name=None)]},
    ],
)
def test_one_answer(row):
    found = as_prompt_completion(row)
    assert {key: found[key] for key in PLAIN} == PLAIN
    assert type(found["completion"]) is str


def test_several_turns_are_one_text_that_is_encoded_whole():
    turns = [bot("Two."), user("Sure?"), bot("Yes.")]
    found = as_prompt_completion({"prompt": [user("One?")], "completion": turns})
    assert found["completion"] == "Two.\n\nYes." and isinstance(found["completion"], Turns)
    assert pickle.loads(pickle.dumps(found["completion"])).messages == turns
    tokenizer = make_tokenizer()
    assert encode_row(tokenizer, found) == encode_row(tokenizer, {"prompt": [user("One?")], "completion": turns})
    assert tokenizer.decode(encode_row(tokenizer, found).completion).count("<|im_end|>") == 3


@pytest.mark.parametrize(
    "row, told",
    [
        ({"prompt": "a", "completion": None}, r"Row 7 has nothing \(null\) as its `completion`"),
        ({"prompt": None, "completion": "b"}, r"Row 7 has nothing \(null\) as its `prompt`"),
        (
            {"prompt": "2+1=", "completion": 3},
            "Row 7 has 3 as its `completion`, which is neither text nor a list of mess",
        ),
        ({"prompt": ["a"], "completion": "b"}, r"Row 7 has \['a'\] as its `prompt`"),
        ({"messages": None}, r"Row 7 has nothing \(null\) as its `messages`"),
        ({"messages": []}, r"Row 7 has \[\] as its `messages`"),
        (
            {"messages": [user("a"), bot(None)]},
            r"Row 7 has a message in its `messages` with nothing \(null\) as its cont",
        ),
        ({"messages": [user("a"), bot(4.5)]}, "Row 7 has a message in its `messages` with 4.5 as its content"),
        (
            {"messages": [bot("b"), user("a")]},
            "Row 7: its `messages` end in a message of the role `user`, and not",
        ),
        (
            {"messages": [user([{"type": "image"}]), bot("b")]},
            "Row 7 has a message .* of which not every part is text",
        ),
    ],
)
def test_one_message(row, told):
    with pytest.raises(ValueError, match=told):
        as_prompt_completion(row, "Row 7")


@pytest.mark.parametrize("column", ["q", "a", "title"])
def test_columns_with_nothing_in_them(column, tmp_path):
    rows = [{"q": "One", "a": "two", "title": "x"} for _ in range(4)]
    rows[2] = {**rows[2], column: None}
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    data = TaskData(
        dataset_name=str(tmp_path / "rows.jsonl"),
        source_column="q",
        target_column="a",
        prompt_template="{title}: {source}",
    )
    with pytest.raises(ValueError, match=rf"Row 2 has nothing \(null\) in the column `{column}`"):
        load_task(data)


def test_columns_of_numbers_are_their_text(tmp_path):
    Dataset.from_list([{"q": 2, "a": 4}]).to_json(tmp_path / "rows.jsonl")
    data = TaskData(dataset_name=str(tmp_path / "rows.jsonl"), source_column="q", target_column="a")
    (row,) = load_task(data)["train"]
    assert (row["prompt"], row["completion"]) == ("2", " 4")


@pytest.mark.parametrize(("template", "completion"), [("{source}:", " 4"), ("{source}: ", "4"), ("{source}\n", "4")])
def test_one_space_stands_between_prompt_and_completion(template, completion, tmp_path):
    Dataset.from_list([{"q": "2+2", "a": " 4"}]).to_json(tmp_path / "rows.jsonl")
    columns = {"source_column": "q", "target_column": "a", "prompt_template": template}
    (row,) = load_task(TaskData(dataset_name=str(tmp_path / "rows.jsonl"), **columns))["train"]
    assert row["completion"] == completion
    row = as_prompt_completion({"prompt": template, "references": [" 4", "four"]})
    assert row["completion"] == completion


@pytest.mark.parametrize("column", ["q", "a"])
@pytest.mark.parametrize(
    "value, told",
    [
        (["x", "y"], r"Row 1 has \['x', 'y'\] in the column `{}`, which is neither text nor a number"),
        ({"text": ["x"]}, r"Row 1 has \{{'text': \['x'\]\}} in the column `{}`"),
        (float("nan"), r"Row 1 has nothing \(null\) in the column `{}`"),
    ],
)
def test_columns_that_mean_no_text(column, value, told, tmp_path):
    """A list's or a mapping's Python spelling is not trained on, and a NaN is a null."""
    fine = {list: ["x"], dict: {"text": ["y"]}, float: 1.0}[type(value)]
    rows = [{"q": "One", "a": "two", column: value} for _ in range(2)]
    if isinstance(value, float):
        rows[0][column] = fine
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    data = TaskData(dataset_name=str(tmp_path / "rows.parquet"), source_column="q", target_column="a")
    row = "Row 1" if isinstance(value, float) else "A row|Row 0"  # columns of lists are lists from the first on
    with pytest.raises(ValueError, match=told.format(column).replace("Row 1", f"({row})")):
        load_task(data)


def test_a_nested_column_that_is_null(tmp_path):
    rows = [{"t": {"de": "eins", "en": "one"}}, {"t": None}]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    data = TaskData(dataset_name=str(tmp_path / "rows.parquet"), source_column="t.de", target_column="t.en")
    with pytest.raises(ValueError, match=r"Row 1 has nothing \(null\) in the column `t.en`"):
        load_task(data)


def test_the_template_cannot_write_a_row():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + m.name }}{% endfor %}"
    rows = [{"prompt": [{**user("a"), "name": "x"}], "completion": [{**bot("b"), "name": "y"}]}, PLAIN]
    told = "the chat template cannot write its messages .*name"
    with pytest.raises(ValueError, match=f"Row 1 of `test`: {told}"):
        encode_rows(tokenizer, rows, "`test`")
    with pytest.raises(ValueError, match=f"Prompt 0: {told}"):
        encode_prompts(tokenizer, [PLAIN["prompt"]])
