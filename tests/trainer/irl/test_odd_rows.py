"""Columns that are neither plain text nor a plain list of messages: what SFTTrainer takes, and what means nothing."""

from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, Features, IterableDataset, Json, Value
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model, make_tokenizer
from tests.trainer.conftest import settings
from trl_irl import GAILConfig, GAILTrainer


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


CHAT = [[user("What is the sky?"), bot(f"It is {i}.")] for i in range(4)]
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])


def table(**columns):
    return Dataset(pa.table(columns))


def json_rows(rows, *columns):
    features = {key: Json() if key in columns else Value("string") for key in rows[0]}
    return Dataset.from_list(rows, features=Features(features))


TAKEN = {
    "large_list": lambda: table(messages=pa.array(CHAT, type=pa.large_list(MESSAGE))),
    "large_list of prompts": lambda: table(
        prompt=pa.array([c[:1] for c in CHAT], type=pa.large_list(MESSAGE)),
        completion=pa.array([c[1:] for c in CHAT], type=pa.large_list(MESSAGE)),
    ),
    "string_view": lambda: table(text=pa.array([c[1]["content"] for c in CHAT], type=pa.string_view())),
    "large_string": lambda: table(
        prompt=pa.array([c[0]["content"] for c in CHAT], type=pa.large_string()),
        completion=pa.array([f" {c[1]['content']}" for c in CHAT], type=pa.string_view()),
    ),
    "Json": lambda: json_rows([{"messages": c} for c in CHAT], "messages"),
    "Json of prompts": lambda: json_rows(
        [{"prompt": c[:1], "completion": c[1:]} for c in CHAT], "prompt", "completion"
    ),
    "from and value": lambda: Dataset.from_list(
        [{"conversations": [{"from": m["role"], "value": m["content"]} for m in c]} for c in CHAT]
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_sft_takes(name, make_trainer, tokenizer, tmp_path):
    rows = TAKEN[name]()
    sft = SFTTrainer(
        make_model("qwen2"), SFTConfig(**settings(tmp_path)), train_dataset=rows, processing_class=tokenizer
    )
    irl = make_trainer(train_dataset=rows)
    for column in ("input_ids", "labels"):
        assert list(irl.train_dataset[column]) == list(sft.train_dataset[column])


@pytest.mark.parametrize("split", [False, True], ids=["messages", "prompt and completion"])
def test_text_in_parts_is_the_text(split, make_trainer):
    def in_parts(messages):
        return [
            {**m, "content": [{"type": "text", "text": m["content"][:4]}, {"type": "text", "text": m["content"][4:]}]}
            for m in messages
        ]

    def dataset(of):
        rows = [{"prompt": of(c[:1]), "completion": of(c[1:])} if split else {"messages": of(c)} for c in CHAT]
        return make_trainer(train_dataset=Dataset.from_list(rows)).train_dataset

    parts, whole = dataset(in_parts), dataset(lambda messages: messages)
    for column in ("input_ids", "labels"):
        assert list(parts[column]) == list(whole[column])


def with_row_2(column, value, **others):
    rows = [{column: c if column == "messages" else "text", **others} for c in CHAT]
    rows[2] = {column: value, **others}
    return rows


REFUSED = {
    "null text": (lambda: Dataset.from_list(with_row_2("text", None)), r"Row 2 .* nothing \(null\) as its 'text'"),
    "null messages": (
        lambda: Dataset.from_list(with_row_2("messages", None)),
        r"Row 2 .* nothing \(null\)",
    ),
    "large_list": (
        lambda: table(messages=pa.array([*CHAT[:2], None], pa.large_list(MESSAGE))),
        r"Row 2 of the train dataset has nothing \(null\) as its 'messages'",
    ),
    "null content": (
        lambda: Dataset.from_list(with_row_2("messages", [user("One?"), bot(None)])),
        r"Row 2 of the train dataset has a message in its 'messages' with nothing \(null\) as its content",
    ),
    "numbers": (lambda: Dataset.from_dict({"text": [3, 4]}), "Row 0 of the train dataset has 3 as its 'text'"),
    "lists": (lambda: Dataset.from_dict({"text": [["a", "b"]]}), r"Row 0 .* has \['a', 'b'\] as its 'text'"),
    "Json": (
        lambda: json_rows(with_row_2("messages", 3), "messages"),
        "Row 2 of the train dataset has 3 as its 'messages'",
    ),
    "Json content": (
        lambda: json_rows(with_row_2("messages", [user("One?"), bot(7)]), "messages"),
        "Row 2 of the train dataset has a message in its 'messages' with 7 as its content",
    ),
    "stream": (
        lambda: IterableDataset.from_generator(lambda: iter([{"text": None}])),
        r"Row 0 of the train dataset has nothing \(null\) as its 'text'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_message_with_column_row_and_value(name, make_trainer):
    make, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        make_trainer(train_dataset=make())


def test_a_later_row_of_a_stream(make_trainer):
    rows = [{"prompt": "One", "completion": " two"}] * 20 + [{"prompt": "One", "completion": 5}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(train_dataset=stream)
    with pytest.raises(ValueError, match="Row 20 of the train dataset has 5 as its .completion."):
        list(trainer.train_dataset)


def test_gail_before_anything_is_loaded(tmp_path):
    rows = Dataset.from_dict({"prompt": ["One", "Two"], "completion": [" two", None]})
    args = GAILConfig(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"Row 1 of the train dataset has nothing \(null\) as its 'completion'"):
        GAILTrainer(make_model("llama"), args, rows, processing_class=make_tokenizer())


def test_a_tool_call_is_no_null(make_trainer):
    call = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]
    rows = json_rows([{"messages": [user("1?"), bot(None, tool_calls=call)]}] * 3, "messages")
    assert len(make_trainer(train_dataset=rows).train_dataset) == 3


SYSTEM = {"role": "system", "content": "Be brief."}


def with_template(name: str):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (Path(__file__).parents[2] / "text" / "templates" / f"{name}.jinja").read_text()
    return tokenizer


def no_system_role():
    """As Gemma's."""
    return with_template("gemma")


@pytest.mark.parametrize("kind", ["prompt", "messages", "several", "gail"])
def test_what_the_template_refuses_is_told_with_its_row(kind, make_trainer, tmp_path):
    rows = [[user("Sky?"), bot("It is blue.")] for _ in range(4)]
    rows[2] = [SYSTEM, *rows[2]]
    data = Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows])
    if kind in ("messages", "several"):
        data = Dataset.from_list([{"messages": row} for row in rows])
    told = r"Row 2 of the (train|later) dataset: the chat template cannot write .*System role not supported"
    with pytest.raises(ValueError, match=told):
        if kind == "gail":
            make_model("llama").save_pretrained(tmp_path / "m")
            args = GAILConfig(str(tmp_path), num_generations=2, use_cpu=True, bf16=False, report_to="none")
            GAILTrainer(str(tmp_path / "m"), args, data, processing_class=no_system_role())
        elif kind == "several":
            make_trainer(
                train_dataset=data.select([0, 1]), eval_dataset={"later": data}, processing_class=no_system_role()
            )
        else:
            make_trainer(train_dataset=data, processing_class=no_system_role())


@pytest.mark.parametrize("kind", ["messages", "prompt", "stream"])
def test_what_a_template_trips_over_is_told_with_its_row(kind, make_trainer):
    """OpenAI's arguments of tools are JSON as text, and some templates want objects."""
    call = [{"type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}]
    chats = [[user("1?"), bot("", tool_calls=call)] for _ in range(3)]
    rows = [{"messages": chat} if kind != "prompt" else {"prompt": chat[:1], "completion": chat[1:]} for chat in chats]
    data = IterableDataset.from_generator(lambda: iter(rows)) if kind == "stream" else Dataset.from_list(rows)
    with pytest.raises(ValueError, match="Row 0 of the train dataset: the chat template .*from a mapping"):
        make_trainer(train_dataset=data, processing_class=with_template("nemotron_3_nano"))


@pytest.mark.parametrize("kind", ["stream", "json"])
def test_parts_of_a_later_row_alone(kind, make_trainer, tokenizer):
    plain = [{"messages": chat} for chat in CHAT]
    parts = [*plain[:2], {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHAT[2]]}]
    rows = IterableDataset.from_generator(lambda: iter(parts)) if kind == "stream" else json_rows(parts, "messages")
    expected = make_trainer(train_dataset=Dataset.from_list(plain[:3])).train_dataset
    found = make_trainer(train_dataset=rows).train_dataset
    assert [row["input_ids"] for row in found] == list(expected["input_ids"])


def in_parts(chat, key="content"):
    return [{**message, key: [{"type": "text", "text": message[key]}]} for message in chat]


@pytest.mark.parametrize("kind", ["stream", "json"])
def test_rows_of_text_among_rows_of_messages(kind, make_trainer):
    """Each is of its own kind, and is encoded as it would be alone."""
    of_chat = {"prompt": CHAT[0][:1], "completion": CHAT[0][1:]}
    given = [{key: in_parts(turns) for key, turns in of_chat.items()}, {"prompt": "One", "completion": " two"}]
    alone = [
        list(make_trainer(train_dataset=Dataset.from_list([row])).train_dataset["input_ids"])[0]
        for row in (of_chat, given[1])
    ]
    for rows in (given, given[::-1]):
        stream = IterableDataset.from_generator(lambda rows=rows: iter(rows))
        dataset = stream if kind == "stream" else json_rows(rows, "prompt", "completion")
        found = [row["input_ids"] for row in make_trainer(train_dataset=dataset).train_dataset]
        assert found == (alone if rows is given else alone[::-1])


@pytest.mark.parametrize("column", ["messages", "prompt", "conversations"])
def test_keys_that_come_late(column, make_trainer):
    """`map` tells a column's type by its first thousand rows, if it is not told."""
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    early, late = in_parts(CHAT[0]), in_parts([CHAT[0][0], bot("It is.", tool_calls=[call])])
    rows = [early] * 1010 + [late] * 5
    if column == "prompt":
        given = [{"prompt": chat[:1], "completion": chat[1:]} for chat in rows]
    elif column == "messages":
        given = [{"messages": chat} for chat in rows]
    else:
        given = [{column: [{"from": m["role"], "value": m["content"]} for m in chat]} for chat in rows]
    dataset = Dataset.from_list(given)
    keys = {"completion_only_loss": False} if column == "prompt" else {}
    assert len(make_trainer(train_dataset=dataset, **keys).train_dataset) == 1015
