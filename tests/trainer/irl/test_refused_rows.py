"""Rows that the trainer cannot learn from are refused before it loads or trains, by dataset, row and column."""

import copy
import json
import logging

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


@pytest.mark.parametrize("keys", [{}, {"packing": True}, {"shuffle_dataset": True}])
def test_a_token_id_is_told_with_the_row_that_was_given(keys, make_trainer):
    """Preparation drops the first two rows, and may shuffle or pack the others."""
    dropped, wrong = {**IDS, "labels": [-100] * 4}, {**IDS, "input_ids": [5, 333, 7, 1]}
    given = rows(dropped, dropped, IDS, wrong)
    with pytest.raises(ValueError, match="Row 3 of the train dataset has the token id 333"):
        make_trainer(train_dataset=given, **keys)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>"])
    masked = {
        "input_ids": [5, 6, 7, 1, 300, 300],
        "labels": [-100, 6, 7, 1, -1, -1],
        "attention_mask": [1] * 4 + [0] * 2,
    }
    assert len(make_trainer(train_dataset=rows(masked, masked), **keys).train_dataset["input_ids"][0]) in (4, 8)
    beyond = {"input_ids": [5, 6, 7, 1, 300], "labels": [-100, 6, 7, 1, 300]}
    make_trainer(train_dataset=rows(beyond, beyond), max_length=4)  # cut off
    given = rows(LONG, PAIR, {**PAIR, "completion": "<think> blue"})
    with pytest.raises(ValueError, match="A row of the train dataset has the token id 300"):
        make_trainer(train_dataset=given, processing_class=tokenizer, **keys)


@pytest.mark.parametrize(
    "dataset, told",
    [
        (Dataset.from_list([]), "The eval dataset has no rows"),
        (Dataset.from_dict({"text": []}), "The eval dataset has no rows"),
        (stream(), "The eval dataset has no rows"),
        (rows(IDS, {**IDS, "input_ids": [5, 333, 7, 1]}), "Row 1 of the eval dataset has the token id 333"),
        (rows(IDS, {**IDS, "labels": [-100, 6, 7]}), "Row 1 of the eval dataset has 4 'input_ids' and 3 'labels'"),
    ],
)
def test_what_is_given_to_evaluate(dataset, told, make_trainer):
    trainer = make_trainer(train_dataset=rows(PAIR))
    with pytest.raises(ValueError, match=told):
        trainer.evaluate(dataset)


def test_a_text_field_that_is_a_prompt_or_has_messages(make_trainer):
    with pytest.raises(ValueError, match="`dataset_text_field='prompt'` of the train dataset"):
        make_trainer(train_dataset=rows({"prompt": "Sky?"}), dataset_text_field="prompt")
    with pytest.raises(ValueError, match="Row 0 of the train dataset has messages as its 'text'"):
        make_trainer(train_dataset=rows({"text": CHAT}))
    with pytest.raises(ValueError, match="Row 0 of the train dataset has messages as its 'text'"):
        make_trainer(train_dataset=rows({"word": "fox"}), formatting_func=lambda row: CHAT)


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


@pytest.mark.parametrize("key", ["messages", "conversations", "both"])
def test_rows_of_both_forms_in_one_file(key, make_trainer):
    """Arrow gives every message the keys of both, of which two are empty."""
    renamed = [{"from": message["role"], "value": message["content"]} for message in CHAT]
    if key == "both":
        mixed = rows(*({"prompt": turns[:1], "completion": turns[1:]} for turns in (CHAT, renamed, CHAT)))
    else:
        mixed = rows({key: CHAT}, {key: renamed}, {key: CHAT})
    found = make_trainer(train_dataset=mixed).train_dataset["input_ids"]
    plain = make_trainer(train_dataset=rows(*[{"messages": CHAT}] * 3)).train_dataset["input_ids"]
    assert list(found) == list(plain)


@pytest.mark.parametrize("kind", [rows, stream])
@pytest.mark.parametrize(
    "row", [{"text": "The quick fox"}, {"prompt": "One", "completion": " two"}, {"messages": CHAT}]
)
@pytest.mark.parametrize(
    "beside", [{"labels": [3, 7]}, {"labels": 3}, {"attention_mask": [1], "completion_mask": [0]}]
)
def test_classes_of_a_text_are_not_the_labels_of_its_tokens(beside, row, kind, make_trainer):
    alone = next(iter(make_trainer(train_dataset=rows(row)).train_dataset))
    found = next(iter(make_trainer(train_dataset=kind({**row, **beside})).train_dataset))
    assert found["input_ids"] == alone["input_ids"]
    for column in ("labels", "completion_mask"):
        assert found.get(column) == alone.get(column)


@pytest.mark.parametrize("kind", [rows, stream])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_tokenised_rows_is_not_read(side, kind, make_trainer, tokenizer):
    texts = ["The quick brown fox", "One"]
    padded = tokenizer(texts, padding="max_length", max_length=12, padding_side=side)
    plain = [{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]]
    tokenised = [{key: padded[key][i] for key in ("input_ids", "attention_mask")} for i in range(2)]
    tokenised = [{**row, "labels": [5 if mask else 0 for mask in row["attention_mask"]]} for row in tokenised]
    found = list(make_trainer(train_dataset=kind(*tokenised)).train_dataset)
    assert [row["input_ids"] for row in found] == [row["input_ids"] for row in plain]
    assert [set(row["labels"]) for row in found] == [{5}, {5}]


def test_labels_of_another_length_than_the_ids(make_trainer):
    """Shifted by the user, each token would learn the one after next."""

    def collate(examples):
        ids = torch.tensor([[4, 5, 6, 7, 1]] * len(examples))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 1:]}

    trainer = make_trainer(data_collator=collate)
    with pytest.raises(
        ValueError, match=r"labels have the shape \(8, 4\) beside ids of \(8, 5\).*they are shifted here"
    ):
        trainer.train()


@pytest.mark.parametrize("form", ["role", "from"])
def test_conversations_in_both_forms_alone_and_beside_messages(form, make_trainer):
    names = {"role": "role", "content": "content"} if form == "role" else {"role": "from", "content": "value"}
    turns = [{names[key]: value for key, value in turn.items()} for turn in CHAT]
    other = [{names[key]: value.replace("fox", "dog") for key, value in turn.items()} for turn in CHAT]
    expected = list(make_trainer(train_dataset=rows({"messages": CHAT})).train_dataset["input_ids"])
    for kind in (rows, stream):
        alone = make_trainer(train_dataset=kind({"conversations": turns})).train_dataset
        beside = make_trainer(train_dataset=kind({"conversations": other, "messages": CHAT})).train_dataset
        assert [row["input_ids"] for row in alone] == expected == [row["input_ids"] for row in beside]


def test_packed_rows_of_which_nothing_is_scored(make_trainer):
    long = rows(*[{"prompt": "One two three " * 9, "completion": " four"}] * 4)
    with pytest.raises(ValueError, match="No token of the train dataset is scored: .*with `max_length=16` none has"):
        make_trainer(train_dataset=long, packing=True, max_length=16)


def test_a_formatting_function_beside_messages(make_trainer):
    def text_of(row):
        return f"The {row['word']} jumps"

    given = rows({"messages": CHAT, "word": "fox"}, {"messages": CHAT, "word": "dog"})
    found = make_trainer(train_dataset=given, formatting_func=text_of).train_dataset
    expected = make_trainer(train_dataset=rows({"text": "The fox jumps"}, {"text": "The dog jumps"})).train_dataset
    assert list(found["input_ids"]) == list(expected["input_ids"])


SPLIT = {"prompt": CHAT[:-1], "completion": CHAT[-1:]}
AS_SAID = [{"from": turn["role"], "value": turn["content"]} for turn in CHAT]


@pytest.mark.parametrize("kind", [rows, stream])
@pytest.mark.parametrize("columns", [{"messages": CHAT}, SPLIT, {"conversations": AS_SAID}])
def test_template_arguments_that_some_rows_have_not(columns, kind, make_trainer, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ shout | default('quiet') }} " + own.chat_template
    given = [{**columns, "chat_template_kwargs": told} for told in ({"shout": "loud"}, None, {"other": "x"})]
    found = make_trainer(train_dataset=kind(*given), processing_class=own, completion_only_loss=False).train_dataset
    texts = [own.decode(row["input_ids"]).split(" ")[0] for row in found]
    assert texts == ["loud", "quiet", "quiet"]


@pytest.mark.parametrize("columns", [{"messages": CHAT}, SPLIT, {"conversations": AS_SAID}])
def test_template_arguments_that_later_rows_of_a_stream_have_or_have_not(columns, make_trainer, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.chat_template = "{{ shout | default('quiet') }} " + own.chat_template
    loud, null, none = {"chat_template_kwargs": {"shout": "loud"}}, {"chat_template_kwargs": None}, {}
    for given in ((loud, none, null), (none, null, loud), (null, loud, none)):
        dataset = stream(*({**columns, **told} for told in given))
        found = make_trainer(train_dataset=dataset, processing_class=own, completion_only_loss=False).train_dataset
        texts = [own.decode(row["input_ids"]).split(" ")[0] for row in found]
        assert texts == ["loud" if told is loud else "quiet" for told in given]


def test_template_arguments_of_rows_of_text_do_nothing(make_trainer):
    given = [{**PAIR, "chat_template_kwargs": told} for told in ({"shout": "loud"}, None)]
    found = make_trainer(train_dataset=rows(*given), completion_only_loss=False).train_dataset["input_ids"]
    assert list(found) == list(make_trainer(train_dataset=rows(PAIR, PAIR)).train_dataset["input_ids"])


@pytest.mark.parametrize("kind", [rows, stream])
@pytest.mark.parametrize("keys", [{"completion_only_loss": False}, {"assistant_only_loss": True}])
def test_parts_of_prompts_and_completions_that_are_scored_whole(keys, kind, make_trainer):
    def in_parts(turns):
        return [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]

    expected = make_trainer(train_dataset=rows(SPLIT), **keys).train_dataset["input_ids"]
    parts = {key: in_parts(turns) for key, turns in SPLIT.items()}
    found = make_trainer(train_dataset=kind(parts), **keys).train_dataset
    assert [row["input_ids"] for row in found] == list(expected)


@pytest.mark.parametrize(
    "row, keys, evaluated, told",
    [
        ({"input_ids": [5, 6, 1], "completion_mask": [0, 1, 1]}, {}, None, "has a `completion_mask`"),
        ({"messages": CHAT}, {"completion_only_loss": True}, None, "has `messages`, of which `completion_only_loss`"),
        ({"conversations": CHAT}, {"completion_only_loss": True}, None, "has `messages`, of which"),
        ({"messages": CHAT}, {"completion_only_loss": True, "assistant_only_loss": True}, None, None),
        ({"text": "One two"}, {}, {"prompt": "One", "completion": " two"}, "eval dataset has prompts and completions"),
        ({"prompt": "One", "completion": " two"}, {}, {"prompt": "One", "completion": " two"}, None),
        ({"input_ids": [5, 6, 1], "completion_mask": [0, 1, 1]}, {"completion_only_loss": True}, None, None),
    ],
)
def test_marks_that_nothing_asks_for_are_told(row, keys, evaluated, told, make_trainer, caplog):
    with caplog.at_level(logging.WARNING, logger="trl_irl"):
        make_trainer(train_dataset=rows(row), eval_dataset=evaluated and rows(evaluated), **keys)
    assert (told or "prompts are scored as it is") in caplog.text if told else "as it is" not in caplog.text
