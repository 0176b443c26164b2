"""What an encoder-decoder run refuses: one message each, before anything is trained or written."""

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.conftest import make_model
from tests.encoder_decoders import PACKABLE, make_encoder_decoder
from tests.trainer.conftest import ROWS, one_step, settings
from tests.trainer.seq2seq.test_trainer import make
from trl_irl import IRLConfig, Seq2SeqIRLConfig, Seq2SeqIRLTrainer


def test_a_decoder_only_model(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="Qwen2ForCausalLM is decoder-only .*Train it with `IRLTrainer`"):
        make(tokenizer, tmp_path, make_model("qwen2"))
    make_model("qwen2").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`model: .*model` is decoder-only"):
        make(tokenizer, tmp_path, str(tmp_path / "model"))


def test_arguments_of_another_trainer(tokenizer, tmp_path):
    with pytest.raises(TypeError, match="`args` is a `IRLConfig`.*Seq2SeqIRLConfig"):
        Seq2SeqIRLTrainer(make_encoder_decoder(), IRLConfig(**settings(tmp_path)), processing_class=tokenizer)


@pytest.mark.parametrize("key", ["decoder_start_token_id", "pad_token_id"])
@pytest.mark.parametrize("family", ["t5", "bart", "m2m100"])
def test_a_decoder_that_begins_with_nothing(family, key, tokenizer, tmp_path):
    model = make_encoder_decoder(family)
    setattr(model.config, key, None)
    with pytest.raises(ValueError, match="has no `decoder_start_token_id`, .* or no `pad_token_id`"):
        make(tokenizer, tmp_path, model)


def turns(*roles):
    return [{"role": role, "content": "fox"} for role in roles]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"text": "One two"}], "the columns .'text'.*name them `prompt` and `completion`"),
        ([{"input_ids": [5, 6, 1], "labels": [-100, -100]}], "no completion with a token to learn"),
        ([{"input_ids": [5, 999, 1], "labels": [5, 1]}], "has the token id 999"),
        ([{"input_ids": [5], "labels": [5]}, {"input_ids": [], "labels": [5]}], "Row 1 .* a prompt without a token"),
        (
            [{"input_ids": [5], "labels": [5]}, {"input_ids": None, "labels": [5]}],
            "Row 1 of the train .* nothing .null",
        ),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], "Row 1 .* as its 'completion'"),
        ([{"prompt": None, "completion": "b"}], "Row 0 of the train dataset has nothing .null. as its 'prompt'"),
        ([{"prompt": "a", "completion": 5}], "Row 0 of the train dataset has 5 as its 'completion'"),
        ([{"prompt": "", "completion": "b"}], "Row 0 of the train dataset: it has an empty prompt"),
        ([{"prompt": "a", "completion": "b", "image": "c.png"}], "a column 'image', .* reads text alone"),
        ([{"messages": turns("user", "assistant", "user")}], "Row 0 .* do not end in the assistant's answer"),
        ([{"messages": turns("user")}], "Row 0 .* do not end in the assistant's answer"),
        ([{"messages": turns("assistant")}], "Row 0 .* do not end in the assistant's answer"),
        (
            [{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "completion": "c"}],
            "Row 0 of the train dataset: its prompt is 2 messages, and the tokenizer has no chat template",
        ),
    ],
)
def test_rows(rows, message, tokenizer, tmp_path):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match=message):
        make(plain, tmp_path, rows=rows)


@pytest.mark.parametrize("side", ["prompt", "completion"])
def test_rows_longer_than_learned_positions(side, tokenizer, tmp_path):
    rows = [ROWS[0], {**ROWS[1], side: "fox " * 60}]
    key = {"prompt": "max_length", "completion": "max_completion_length"}[side]
    with pytest.raises(
        ValueError, match=f"Row 1 of the train dataset has a {side} of .* has 64 positions. Set `{key}`"
    ):
        make(tokenizer, tmp_path, "bart", rows, max_length=None)
    assert len(make(tokenizer, tmp_path, "bart", rows, max_length=64).train_dataset) == 2  # they are cut
    assert len(make(tokenizer, tmp_path, "t5", rows, max_length=None).train_dataset) == 2  # whose are relative


def streamed(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def test_a_stream_is_checked_as_it_is_read(tokenizer, tmp_path):
    masked = [{"input_ids": [5, 6, 1], "labels": [-100, -100]}] * 3
    with pytest.raises(ValueError, match="all labels are masked .-100. in the first 1,000 rows of the stream"):
        make(tokenizer, tmp_path, rows=streamed(masked))
    learns = [*masked, {"input_ids": [5], "labels": [7, 1]}]
    assert make(tokenizer, tmp_path, rows=streamed(learns), max_steps=1).train().training_loss > 0
    for row, message in (
        ({"prompt": "fox " * 60, "completion": "b"}, "a prompt of .* has 64 positions. Set `max_length`"),
        ({"prompt": "fox", "completion": "fox " * 60}, "a completion of .* has 64 positions"),
    ):
        trainer = make(tokenizer, tmp_path, "bart", streamed([ROWS[0], row]), max_length=None)
        with pytest.raises(ValueError, match=f"Row 1 of the train dataset has {message}"):
            trainer.train()
    trainer = make(tokenizer, tmp_path, rows=streamed([*learns, {"input_ids": [], "labels": [5]}]))
    with pytest.raises(ValueError, match="Row 4 of the train dataset has a prompt without a token"):
        trainer.train()


def test_packed_rows_without_labels_and_rows_that_were_not_packed(tokenizer, tmp_path):
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 6, 1], "labels": []}]
    trainer = make(tokenizer, tmp_path, rows=rows, packing=True, max_length=32)
    packed, _ = one_step(trainer)
    alone, _ = one_step(make(tokenizer, tmp_path, rows=rows[:1]))
    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    with pytest.raises(ValueError, match="`packing=True`, and a row has the columns .*'prompt'.*`eval_dataset`"):
        trainer.predict(Dataset.from_list(ROWS))


@pytest.mark.parametrize(
    "family, message",
    [
        *((family, "in .* its values differ by .*") for family in ("bart", "pegasus", "mbart", "switch")),
        ("longt5", "LongT5ForConditionalGeneration does not take several documents in one row"),
    ],
)
def test_packing_where_documents_are_not_apart(family, message, tokenizer, tmp_path):
    """Absolute positions; experts that take only so many tokens; attention to neighbours alone."""
    assert family not in PACKABLE
    with pytest.raises(ValueError, match=f"`packing=True`, and {message}.*Set `packing=False`"):
        make(tokenizer, tmp_path, make_encoder_decoder(family), packing=True, max_length=32)


def test_packing_beyond_a_window_of_attention(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="rows of 100 tokens, and T5Gemma.* attends within windows of 64"):
        make(tokenizer, tmp_path, "t5gemma", packing=True, max_length=100)


def test_packing_a_stream(tokenizer, tmp_path):
    def stream():
        yield from ROWS

    rows = IterableDataset.from_generator(stream)
    with pytest.raises(ValueError, match="`packing=True` needs all rows at hand"):
        make(tokenizer, tmp_path, rows=rows, packing=True)
    assert make(tokenizer, tmp_path, rows=rows).train().training_loss > 0


@pytest.mark.parametrize(
    "key, value",
    [
        ("padding_free", True),
        ("packing_strategy", "wrapped"),
        ("assistant_only_loss", True),
        ("completion_only_loss", False),
        ("max_completion_length", 0),
        ("predict_with_generate", True),  # of packed rows
        ("eval_packing", True),
        ("dataset_text_field", "story"),
    ],
)
def test_keys(key, value, tmp_path):
    with pytest.raises(ValueError, match=f"`{key}="):
        Seq2SeqIRLConfig(**settings(tmp_path, packing=key == "predict_with_generate", **{key: value}))


def test_tokens_that_the_tokenizer_has_not(tokenizer, tmp_path):
    for key in ("eos_token", "pad_token"):
        with pytest.raises(ValueError, match=f"`{key}: <nope>` is none of the tokenizer's tokens"):
            make(tokenizer, tmp_path, **{key: "<nope>"})


def test_packed_rows_for_another_collator(tokenizer, tmp_path):
    args = Seq2SeqIRLConfig(**settings(tmp_path, packing=True))
    rows = Dataset.from_list(ROWS)
    with pytest.raises(ValueError, match="`packing=True` with a `data_collator`"):
        Seq2SeqIRLTrainer(make_encoder_decoder(), args, list, train_dataset=rows, processing_class=tokenizer)


def test_a_second_adapter(tokenizer, tmp_path):
    trainer = make(tokenizer, tmp_path, peft_config=LoraConfig(r=2, target_modules=["q"]))
    with pytest.raises(ValueError, match="The model has an adapter already"):
        make(tokenizer, tmp_path, trainer.model, peft_config=LoraConfig(r=2, target_modules=["q"]))


def test_an_empty_dataset(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="The train dataset has no rows"):
        make(tokenizer, tmp_path, rows=Dataset.from_list([]))


def test_text_without_a_token_is_told(tmp_path, caplog):
    """As T5's vocabulary has none for braces: all of it is one token then, and nothing says so."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "one": 3, "two": 4}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    plain.backend_tokenizer.pre_tokenizer = Whitespace()
    rows = [{"prompt": "one {", "completion": "two"}, {"prompt": "one", "completion": "one { two } two"}]
    make(plain, tmp_path, rows=rows[:1])
    assert "no token for" not in caplog.text
    make(plain, tmp_path, rows=rows * 2)
    assert "2 of 4 completions of the train dataset have text that the tokenizer has no token for" in caplog.text
    assert "The first, row 1, reads to it: 'one <unk> two <unk> two </s>'" in caplog.text
    plain.eos_token = "<unk>"  # noqa: S105  GPT-2's kin have one token for both, and it ends every completion
    caplog.clear()
    make(plain, tmp_path, rows=rows)
    assert "no token for" not in caplog.text


def test_rows_that_are_cut_are_told(tokenizer, tmp_path, caplog):
    """What closes a prompt is lost in training, and not in an evaluation."""
    long = "One two three 1 2 3 " * 8 + "TL;DR:"
    rows = [{"prompt": "One", "completion": "two"}, {"prompt": long, "completion": "three"}]
    make(tokenizer, tmp_path, rows=rows, max_length=len(tokenizer(long)["input_ids"]) + 8)
    assert "is cut off" not in caplog.text
    make(tokenizer, tmp_path, rows=rows * 2, max_length=12)
    assert "2 of 4 prompts of the train dataset have as many tokens as `max_length: 12`" in caplog.text
    assert "completions of the train dataset have as many" not in caplog.text
    make(tokenizer, tmp_path, rows=rows * 2, max_length=128, max_completion_length=2)
    assert "4 of 4 completions of the train dataset have as many tokens as `max_completion_length: 2`" in caplog.text


@pytest.mark.parametrize("family, is_refused", [("t5", True), ("bart", True), ("t5gemma", False)])
def test_embeddings_that_fsdp_cannot_shard(family, is_refused, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("trl_irl.trainer.seq2seq.checks.sharding_of", lambda args: "FSDP")
    if not is_refused:
        make(tokenizer, tmp_path, make_encoder_decoder(family))
        return
    with pytest.raises(ValueError, match="share their embeddings, and the launcher is FSDP.*ddp, zero2 or zero3"):
        make(tokenizer, tmp_path, make_encoder_decoder(family))


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_padding_of_tokenised_rows_is_not_read(kind, tokenizer, tmp_path):
    texts = ["The quick brown fox", "One"]
    ids, padded = tokenizer(texts)["input_ids"], tokenizer(texts, padding="max_length", max_length=12)
    given = Dataset.from_list([{key: padded[key][i] for key in padded} | {"labels": [5, 1]} for i in range(2)])
    given = given.to_iterable_dataset() if kind == "stream" else given
    assert [row["input_ids"] for row in make(tokenizer, tmp_path, rows=given).train_dataset] == ids


def test_masks_of_tokenised_rows(tokenizer, tmp_path):
    row = {
        "input_ids": [9, 10, 0],
        "attention_mask": [True, True, False],
        "labels": [5, 1],
        "completion_mask": "no mask",
    }
    (found,) = make(tokenizer, tmp_path, rows=[row]).train_dataset["input_ids"]
    assert found == [9, 10]
    with pytest.raises(ValueError, match="Row 0 of the train dataset has 3 'input_ids' and 2 'attention_mask'"):
        make(tokenizer, tmp_path, rows=[{**row, "attention_mask": [True, True]}])


def test_tokenised_rows_that_are_cut_are_told(tokenizer, tmp_path, caplog):
    given = Dataset.from_list([{"input_ids": [9, 10, 11, 12], "labels": [9, 10, 11, 1]}])
    with caplog.at_level("WARNING", logger="trl_irl"):
        make(tokenizer, tmp_path, rows=given, max_length=3, max_completion_length=3)
    assert "1 of 1 prompts of the train dataset" in caplog.text and "1 of 1 completions" in caplog.text


def test_an_eos_that_is_there_is_not_written_again(tokenizer, tmp_path):
    given = [{"prompt": "One", "completion": "two<eos>"}, {"prompt": "One", "completion": "two"}]
    with_eos, without = make(tokenizer, tmp_path, rows=given).train_dataset["labels"]
    assert with_eos == without and without.count(tokenizer.eos_token_id) == 1
