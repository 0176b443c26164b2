"""The `irl` command with an encoder-decoder model on two processes, against one: the same losses and weights."""

import functools

import pytest

from tests.distributed.launchers import (
    ACCUMULATED,
    CHECKPOINTED,
    STEPS,
    largest_difference,
    make_inputs,
    needs_deepspeed,
    run,
)
from tests.encoder_decoders import make_encoder_decoder


LORA = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0, "lora_target_modules": ["q", "v"]}
# At 1e-3 this model's loss jumps after some ten steps, and whatever rounding differed by grows tenfold every two.
SLOW = {"learning_rate": 2.0e-4}
METHODS = {
    "full, kl": {"lambda_kl": 0.5, **SLOW},
    "packed": {"packing": True, "max_length": 64, "value_origin": "reference", **SLOW},
    "streamed": {"dataset_streaming": True, **SLOW},  # rows of all widths
    "lora, kl": {**LORA, "lambda_kl": 0.5, "learning_rate": 1e-2},
}


def inputs_of(family, folder):
    inputs = make_inputs(folder)
    (inputs / "model/config.json").unlink()
    (inputs / "model/model.safetensors").unlink()
    make_encoder_decoder(family).save_pretrained(inputs / "model")
    return inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return inputs_of("flan-t5", tmp_path_factory.mktemp("seq2seq"))


@pytest.fixture(scope="module")
def one_process(inputs):
    @functools.cache
    def reference(method):
        return run(inputs, f"one-{method}", "cpu", 1, **METHODS[method], **sizes(method, 1))

    return reference


def sizes(method, processes):
    """All rows in a step: of the packed ones there are four."""
    return {"per_device_train_batch_size": 4 // processes} if method == "packed" else {}


@pytest.mark.parametrize(
    "launcher, method, options",
    [
        pytest.param("ddp", "packed", {}, marks=pytest.mark.any_trl),
        pytest.param("ddp", "streamed", {}, marks=pytest.mark.any_trl),
        pytest.param("zero2", "lora, kl", CHECKPOINTED, marks=[needs_deepspeed, pytest.mark.any_trl]),
        pytest.param("zero3 releasing", "lora, kl", CHECKPOINTED, marks=[needs_deepspeed, pytest.mark.any_trl]),
        pytest.param("zero3", "full, kl", ACCUMULATED, marks=needs_deepspeed),
        pytest.param("zero3", "packed", {}, marks=[needs_deepspeed, pytest.mark.any_trl]),
    ],
)
def test_two_processes_train_as_one(launcher, method, options, inputs, one_process):
    expected, expected_weights = one_process(method)
    name = "-".join([launcher, method, *options])
    keys = {**METHODS[method], **sizes(method, 2), **options}
    actual, weights = run(inputs, name, launcher, 2, "accelerate", **keys)
    assert len(actual) == len(expected) == STEPS
    for metric in ("loss", "nll", "td_loss", "reward_std") + (("kl",) if "kl" in method else ()):
        ours, theirs = ([entry[metric] for entry in history] for history in (actual, expected))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), metric
    assert expected[-1]["nll"] < expected[0]["nll"]
    assert largest_difference(weights, expected_weights) < 1e-4


@needs_deepspeed
@pytest.mark.any_trl
def test_what_is_added_to_logits_is_whole_where_weights_are_not(tmp_path):
    """Marian adds a bias to its logits, a buffer, which ZeRO-3 does not partition as it does the head's weight."""
    inputs = inputs_of("marian", tmp_path)
    (expected, expected_weights), (actual, weights) = (
        run(inputs, launcher, launcher, processes, max_steps=3, **SLOW)
        for launcher, processes in (("cpu", 1), ("zero3", 2))
    )
    assert [entry["nll"] for entry in actual] == pytest.approx([entry["nll"] for entry in expected], rel=1e-5)
    assert largest_difference(weights, expected_weights) < 1e-4
