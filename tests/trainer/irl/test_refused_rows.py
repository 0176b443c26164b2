"""Rows that the trainer cannot learn from are refused before it loads or trains, by dataset, row and column."""

import json

import pytest
import torch
from datasets import Dataset, IterableDataset

from tests.conftest import make_model, make_tokenizer
from tests.encoder_decoders import make_encoder_decoder
from trl_irl import (
    GAILConfig,
    GAILTrainer,
    OnlineIRLConfig,
    OnlineIRLTrainer,
    Seq2SeqIRLConfig,
    Seq2SeqIRLTrainer,
)


CHAT = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "It is blue."}]
TURNS = [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}]
PAIR = {"prompt": "Sky?", "completion": " blue"}
LONG = {"prompt": "One two three " * 60, "completion": " blue"}
IDS = {"input_ids": [5, 6, 7, 1], "labels": [-100, 6, 7, 1]}


def stream(*rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def rows(*rows):
    return Dataset.from_list(list(rows))


REFUSED = {
    "prompt beside messages": (rows({"prompt": "Sky?", "messages": CHAT}), "'prompt' beside 'messages'"),
    "in a stream": (stream({"prompt": "Sky?", "messages": CHAT}), "'prompt' beside 'messages'"),
    "beside text": (rows({"prompt": "Sky?", "text": "Blue."}), "'prompt' beside 'text'"),
    "beside conversations": (rows({"prompt": "Sky?", "conversations": TURNS}), "'prompt' beside 'conversations'"),
    "both sets": (rows({**PAIR, "messages": CHAT}), "'prompt' beside 'messages'"),
    "strings": (rows({"messages": ["Sky?", "Blue."]}), r"Row 0 of the train dataset has \['Sky\?', 'Blue.'\]"),
    "no message": (
        rows({"messages": CHAT}, {"messages": []}),
        "Row 1 of the train dataset has an empty list as its 'm",
    ),
    "no prompt": (
        rows({"prompt": CHAT[:1], "completion": CHAT[1:]}, {"prompt": [], "completion": CHAT[1:]}),
        "Row 1 of the train dataset has an empty list as its 'prompt'",
    ),
    "empty stream": (stream(), "The train dataset has no rows"),
    "stream too long": (stream(*[LONG] * 4), "No row of the stream of the train dataset is left .* `max_length=64`"),
    "null ids": (
        rows(IDS, {**IDS, "input_ids": None}),
        r"Row 1 of the train dataset has nothing \(null\) as its 'inp",
    ),
    "text ids": (
        rows({"input_ids": ["5", "6"]}),
        "'input_ids' of the train dataset is of the type list<item: string>",
    ),
    "float labels": (rows({**IDS, "labels": [0.5] * 4}), "'labels' of the train dataset is of the type list<item: do"),
    "fewer labels": (rows(IDS, {**IDS, "labels": [6, 7, 1]}), "Row 1 of the train dataset has 4 'input_ids' and 3 'l"),
    "longer mask": (rows({**IDS, "completion_mask": [0, 0, 1, 1, 1]}), "4 'input_ids' and 5 'completion_mask'"),
    "unknown id": (
        rows(IDS, {**IDS, "input_ids": [5, 300, 7, 1]}),
        "Row 1 .* token id 300, and the model has 300 emb",
    ),
    "negative id": (rows({**IDS, "input_ids": [5, -1, 7, 1]}), "Row 0 .* token id -1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_before_training(name, make_trainer):
    dataset, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        make_trainer(train_dataset=dataset)


@pytest.mark.parametrize("dataset, told", [REFUSED["empty stream"], REFUSED["stream too long"]])
def test_of_evaluation(dataset, told, make_trainer):
    with pytest.raises(ValueError, match=told.replace("train dataset", "eval dataset")):
        make_trainer(eval_dataset=dataset)


@pytest.mark.parametrize(
    "good, bad, told",
    [
        ({"messages": CHAT}, {"messages": None}, r"nothing \(null\) as its 'messages'"),
        ({"messages": CHAT}, {"messages": []}, "an empty list as its 'messages'"),
        ({"messages": CHAT}, {"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "with nothing .null."),
        ({"text": "Sky"}, {"text": None}, r"nothing \(null\) as its 'text'"),
        ({"text": "Sky"}, {"text": 7}, "7 as its 'text'"),
        (PAIR, {**PAIR, "completion": None}, r"nothing \(null\) as its 'completion'"),
    ],
)
def test_a_later_row_of_a_stream(good, bad, told, make_trainer):
    trainer = make_trainer(train_dataset=stream(*[good] * 17, bad))
    with pytest.raises(ValueError, match=f"Row 17 of the train dataset has .*{told}"):
        list(trainer.train_dataset)


def test_columns_that_trl_might_take_for_the_rows_are_left_out(make_trainer):
    alone = make_trainer(train_dataset=rows(*[{"messages": CHAT}] * 2)).train_dataset
    for beside in ("completion", "chosen", "rejected"):
        for kind in (rows, stream):
            found = list(make_trainer(train_dataset=kind(*[{beside: "text", "messages": CHAT}] * 2)).train_dataset)
            assert [row["input_ids"] for row in found] == list(alone["input_ids"])


def test_a_tokenizer_with_more_tokens_than_the_model(make_trainer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>"])
    assert len(tokenizer) == 301
    for row, told in ((PAIR, None), ({**PAIR, "completion": "<think> blue"}, "Row 1 .* token id 300, and the model")):
        if told is None:
            make_trainer(train_dataset=rows(PAIR, row), processing_class=tokenizer)
            continue
        with pytest.raises(ValueError, match=told):
            make_trainer(train_dataset=rows(PAIR, row), processing_class=tokenizer)


def test_a_collator_without_labels(make_trainer):
    def collator(rows):
        return {"input_ids": torch.tensor([row["input_ids"][:3] for row in rows])}

    with pytest.raises(ValueError, match="The data collator, a collator, gives no `labels`"):
        make_trainer(data_collator=collator)


@pytest.mark.parametrize("trainer, config", [(OnlineIRLTrainer, OnlineIRLConfig), (GAILTrainer, GAILConfig)])
def test_the_other_methods_too(trainer, config, tmp_path):
    args = config(str(tmp_path), use_cpu=True, bf16=False)
    for dataset, told in (
        (stream(), "The train dataset has no rows"),
        (rows(PAIR, {**PAIR, "prompt": None}), "Row 1"),
    ):
        with pytest.raises(ValueError, match=told):
            trainer(make_model("llama"), args=args, train_dataset=dataset, processing_class=make_tokenizer())


@pytest.mark.parametrize("name", ["empty stream", "unknown id"])
def test_the_train_dataset_beside_an_evaluation_dataset_called_train(name, make_trainer):
    dataset, told = REFUSED[name]
    with pytest.raises(ValueError, match=told):
        make_trainer(train_dataset=dataset, eval_dataset={"train": rows(IDS), "other": rows(IDS)})
    with pytest.raises(
        ValueError, match=told.replace("train dataset", "eval train dataset").replace("Row 1 .*", ".*")
    ):
        make_trainer(train_dataset=rows(IDS), eval_dataset={"train": dataset, "other": rows(IDS)})


def test_a_stream_of_numpys_arrays_too(make_trainer):
    stream_of = rows({"messages": CHAT}, {"messages": CHAT}).to_iterable_dataset()
    plain, found = (
        make_trainer(train_dataset=one).train_dataset for one in (stream_of, stream_of.with_format("numpy"))
    )
    assert [list(row["input_ids"]) for row in found] == [row["input_ids"] for row in plain]


@pytest.mark.parametrize("row", [PAIR, {"messages": CHAT}, {"text": "Sky is blue"}, IDS])
@pytest.mark.parametrize("form", ["numpy", "pandas", "torch"])
def test_rows_in_another_format_are_the_same_rows(form, row, make_trainer):
    plain = make_trainer(train_dataset=rows(row, row)).train_dataset
    found = make_trainer(train_dataset=rows(row, row).with_format(form)).train_dataset.with_format(None)
    assert list(found["input_ids"]) == list(plain["input_ids"])


def test_a_transform_is_not_left_out_in_silence(make_trainer, tokenizer, tmp_path):
    dataset = rows(PAIR, PAIR).with_transform(lambda batch: {"prompt": ["Say it"] * 2, "completion": [" no"] * 2})
    with pytest.raises(ValueError, match="The train dataset has a transform"):
        make_trainer(train_dataset=dataset)
    given = {"args": Seq2SeqIRLConfig(tmp_path, use_cpu=True, bf16=False), "processing_class": tokenizer}
    with pytest.raises(ValueError, match="The train dataset has a transform"):
        Seq2SeqIRLTrainer(make_encoder_decoder("t5"), train_dataset=dataset, **given)


@pytest.mark.parametrize("completion_only_loss", [None, False])
def test_a_text_beside_prompt_and_completion_takes_no_eos_from_them(completion_only_loss, make_trainer, tokenizer):
    dataset = rows({**PAIR, "text": "Sky? blue"}, {**PAIR, "text": "Sky? blue"})
    found = make_trainer(train_dataset=dataset, completion_only_loss=completion_only_loss).train_dataset
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in found)


def test_messages_that_are_text_are_named(make_trainer):
    with pytest.raises(ValueError, match="Row 0 of the train dataset has text as its 'messages' .*json.loads"):
        make_trainer(train_dataset=rows({"messages": json.dumps(CHAT)}))


@pytest.mark.parametrize("key", ["messages", "both"])
def test_rows_of_both_forms_in_one_file(key, make_trainer):
    """Arrow gives every message the keys of both, of which two are empty."""
    renamed = [{"from": message["role"], "value": message["content"]} for message in CHAT]
    if key == "both":
        mixed = rows(*({"prompt": turns[:1], "completion": turns[1:]} for turns in (CHAT, renamed, CHAT)))
    else:
        mixed = rows({"messages": CHAT}, {"messages": renamed}, {"messages": CHAT})
    found = make_trainer(train_dataset=mixed).train_dataset["input_ids"]
    plain = make_trainer(train_dataset=rows(*[{"messages": CHAT}] * 3)).train_dataset["input_ids"]
    assert list(found) == list(plain)
