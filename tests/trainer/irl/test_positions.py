"""Rows longer than the model's positions: refused where positions are a table, and told of where they go on."""

import pytest
import torch
from datasets import Dataset, IterableDataset

from tests.conftest import make_model
from tests.trainer.conftest import ROWS


LONG = {"prompt": "Count:", "completion": " one two three" * 8}
TABLES = {
    "gpt2": {"n_positions": 24},
    "gpt_neo": {"max_position_embeddings": 24, "attention_types": [[["global"], 2]]},
    "opt": {"max_position_embeddings": 24, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "gptj": {"max_position_embeddings": 24, "n_inner": 32, "rotary_dim": 8},
}


def rows(*more):
    return Dataset.from_list([*ROWS, *more])


def model_of(architecture):
    return make_model(architecture, **TABLES.get(architecture, {"max_position_embeddings": 24}))


@pytest.mark.parametrize("architecture", TABLES)
def test_a_table_of_positions_ends(architecture, make_trainer):
    short = [row for row in ROWS if len(row["completion"]) < 30]
    trainer = make_trainer(model_of(architecture), Dataset.from_list([*short, LONG]), max_length=24, max_steps=1)
    trainer.train()
    with pytest.raises(ValueError, match="1 text of the train dataset is too long for .* 24 positions: .* 64 t"):
        make_trainer(model_of(architecture), Dataset.from_list([*short, LONG]), max_length=64)
    with pytest.raises((IndexError, RuntimeError)):  # what would come without it
        trainer.model(input_ids=torch.ones(1, 64, dtype=torch.long))


def test_documents_that_share_a_row_begin_anew(make_trainer):
    short = [row for row in ROWS if len(row["completion"]) < 30] * 4
    trainer = make_trainer(model_of("gpt2"), Dataset.from_list(short), max_length=64, packing=True, max_steps=1)
    assert max(map(len, trainer.train_dataset["input_ids"])) > 24
    trainer.train()
    with pytest.raises(ValueError, match="1 text of the train dataset is too long"):
        make_trainer(model_of("gpt2"), Dataset.from_list([*short, LONG]), max_length=64, packing=True)
    with pytest.raises(ValueError, match="too long"):  # in one piece, whatever the documents
        make_trainer(
            model_of("gpt2"), Dataset.from_list(short), max_length=64, packing=True, packing_strategy="wrapped"
        )


def test_of_a_stream_the_length_is_not_known(make_trainer):
    stream = IterableDataset.from_generator(lambda: iter(ROWS))
    with pytest.raises(ValueError, match="a stream with `max_length=64`, and the model has 24 positions"):
        make_trainer(model_of("gpt2"), stream)
    make_trainer(model_of("gpt2"), stream, max_length=24)
    make_trainer(model_of("llama"), stream)


def test_what_is_evaluated_later(make_trainer):
    trainer = make_trainer(model_of("gpt2"), Dataset.from_list(ROWS[:1]))
    with pytest.raises(ValueError, match="of the eval dataset is too long"):
        trainer.evaluate(Dataset.from_list([LONG]))


def test_rotary_positions_go_on_with_a_warning(make_trainer, caplog):
    make_trainer(model_of("llama"), Dataset.from_list([LONG, LONG]), max_steps=1).train()
    assert "2 texts of the train dataset are longer than the model's context of 24 tokens: the longest" in caplog.text
    caplog.clear()
    make_trainer(model_of("llama"), Dataset.from_list([LONG, LONG]), max_length=24)
    assert "context" not in caplog.text
