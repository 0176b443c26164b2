"""Streams are read by every rank, whichever trainer and whichever of its datasets they are."""

import warnings
from types import SimpleNamespace

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model
from tests.encoder_decoders import make_encoder_decoder
from tests.trainer.conftest import ROWS, settings
from tests.trainer.seq2seq.test_trainer import make
from trl_irl.trainer.runtime.streams import read_on_every_rank


STREAM = Dataset.from_list(ROWS).to_iterable_dataset()


def test_on_one_process_a_stream_is_evaluated_as_its_rows_are(make_trainer, tokenizer, tmp_path):
    """Of 7 rows in batches of 3 the last one counts as one row, whichever trainer it is, and with TRL's own."""
    rows = Dataset.from_list((ROWS * 2)[:7])
    arguments = {"per_device_eval_batch_size": 3, "lambda_td": 0.0}
    of_sft = SFTTrainer(
        make_model("qwen2"),
        SFTConfig(**settings(tmp_path, per_device_eval_batch_size=3)),
        train_dataset=rows,
        eval_dataset=rows.to_iterable_dataset(),
        processing_class=tokenizer,
    )
    trainer = make_trainer(eval_dataset=rows.to_iterable_dataset(), **arguments)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(of_sft.evaluate()["eval_loss"], rel=1e-5)
    others = [
        make(tokenizer, tmp_path, make_encoder_decoder(), eval_dataset=of, **arguments)
        for of in (rows, rows.to_iterable_dataset())
    ]
    first, second = (other.evaluate()["eval_loss"] for other in others)
    assert first == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("name", ["train", "eval"])
def test_several_ranks_read_a_stream_each(name):
    given = arguments(2)
    read_on_every_rank(given, [(name, STREAM)])
    assert given.accelerator_config.dispatch_batches is False


def arguments(world_size, dispatch=None):
    config = SimpleNamespace(dispatch_batches=dispatch)
    return SimpleNamespace(accelerator_config=config, world_size=world_size, per_device_eval_batch_size=4)


@pytest.mark.parametrize("rows, ends", [(5, False), (8, False), (9, True), (12, True)])
def test_a_stream_shorter_than_a_step_ends_with_an_error(rows, ends, make_trainer):
    """A step takes 3 batches of 4 rows. SFTTrainer reads such a stream for ever."""
    stream = Dataset.from_list((ROWS * 2)[:rows]).to_iterable_dataset()
    keys = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 4}
    trainer = make_trainer(train_dataset=stream, **keys)
    if ends:
        trainer.train()
        assert trainer.state.global_step == 4
        return
    with pytest.raises(ValueError, match="without one optimiser step: a step takes .*=3` batches of .*=4`"):
        trainer.train()


@pytest.mark.parametrize("world_size, name, said", [(2, "eval", 7), (1, "eval", None), (2, "train", None)])
def test_rows_that_count_twice_are_told(world_size, name, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_on_every_rank(arguments(world_size), [("train", Dataset.from_list(ROWS)), (name, STREAM)])
    assert [f"up to {said} rows count twice" in str(one.message) for one in caught] == [True] * (said is not None)


def test_the_contrary_is_refused():
    with pytest.raises(ValueError, match="The eval dataset is a stream and `accelerator_config` sets `dispatch_batch"):
        read_on_every_rank(arguments(2, dispatch=True), [("eval", STREAM)])
    read_on_every_rank(arguments(2, dispatch=True), [("eval", Dataset.from_list(ROWS))])
    alone = arguments(1, dispatch=True)
    read_on_every_rank(alone, [("eval", STREAM)])
    assert alone.accelerator_config.dispatch_batches is True  # one process cuts for nobody
