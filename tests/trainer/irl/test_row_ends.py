"""The warnings that no completion ends, or one twice: by what the collator makes of the first rows, which stay."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from tokenizers import processors
from transformers import DataCollatorForLanguageModeling

from tests.conftest import make_tokenizer


NOTHING_ENDS = "has a stop token (<eos>) among its scored tokens"
ENDED = [{"input_ids": [5, 6, 7, 1]}] * 8
ENDLESS = [{"input_ids": [5, 6, 7]}] * 8


def stream_of(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


@pytest.mark.parametrize("rows, warns", [(ENDED, False), (ENDLESS, True)])
@pytest.mark.parametrize("make", [Dataset.from_list, stream_of], ids=["dataset", "stream"])
def test_tokenised_rows(rows, warns, make, make_trainer, caplog):
    trainer = make_trainer(train_dataset=make(rows))
    assert (NOTHING_ENDS in caplog.text) == warns
    assert ("Rows that come as token ids must end in a stop token" in caplog.text) == warns
    first = next(iter(trainer.get_train_dataloader()))
    assert first["input_ids"].shape == (8, len(rows[0]["input_ids"]))  # all of them are still there


@pytest.mark.parametrize("pads_with_eos", [True, False])
def test_a_collator_that_masks_padding(pads_with_eos, make_trainer, caplog):
    tokenizer = make_tokenizer()
    if pads_with_eos:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = make_trainer(
        train_dataset=Dataset.from_list([{**row, "attention_mask": [1] * 4} for row in ENDED]),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    assert (labels == 1).any() == (not pads_with_eos)
    told = "The rows have one, and the data collator, a DataCollatorForLanguageModeling, masks it"
    assert (told in caplog.text) == pads_with_eos
    assert "set `eos_token`" not in caplog.text


@pytest.mark.parametrize("eos_token, advises", [(None, True), ("<eos>", False)])
def test_no_advice_that_was_taken_already(eos_token, advises, make_trainer, caplog):
    make_trainer(train_dataset=Dataset.from_list(ENDLESS), eos_token=eos_token)
    assert NOTHING_ENDS in caplog.text
    assert ("set `eos_token` in IRLConfig" in caplog.text) == advises


def test_random_states_are_as_they_were(make_trainer):
    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def noisy(row):
        drawn()
        return row

    plain, drawing = (stream_of(ENDED), stream_of(ENDED).map(noisy))
    found = []
    for dataset in (plain, drawing):
        trainer = make_trainer(train_dataset=Dataset.from_list(ENDED))
        trainer.train_dataset = dataset
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        trainer._warn_of_ends()
        found.append(drawn())
    assert found[0] == found[1]


def test_a_tokenizer_that_ends_every_text_by_itself(make_trainer, caplog):
    """SFTTrainer, whose rows of text these are, writes EOS too; of prompt and completion the two become one."""
    tokenizer = make_tokenizer()
    ending = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = ending
    text = Dataset.from_list([{"text": "One two three"}] * 8)
    for dataset, ends in ((text, [1, 1]), (Dataset.from_list([{"prompt": "One", "completion": " two"}] * 8), [1])):
        caplog.clear()
        trainer = make_trainer(train_dataset=dataset, processing_class=tokenizer)
        ids = trainer.train_dataset[0]["input_ids"]
        assert ids[-len(ends) :] == ends and ids.count(1) == len(ends)
        assert ("has two EOS tokens in a row (<eos><eos>)" in caplog.text) == (len(ends) > 1)
    make_trainer(train_dataset=text)
    assert caplog.text.count("two EOS") == 0
