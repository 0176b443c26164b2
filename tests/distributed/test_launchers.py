"""
The `irl` command under every launcher that the recipes offer, each on two CPU processes, against one process: the same
losses and weights. The whole product of launchers and options is `python -m tests.slow.equal_launchers`.
"""

import functools
import importlib.util

import pytest

from tests.distributed.launchers import (
    ACCUMULATED,
    CHECKPOINTED,
    METHODS,
    STEPS,
    largest_difference,
    make_inputs,
    run,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("launchers"))


@pytest.fixture(scope="module")
def one_process(inputs):
    """`one_process(method)`: the run that the others must equal, made once a method."""

    @functools.cache
    def reference(method):
        return run(inputs, f"one-{method}", "cpu", 1, **METHODS[method])

    return reference


@pytest.mark.parametrize(
    "launcher, method, options",
    [
        ("ddp", "full", {}),
        ("ddp", "lora, kl", CHECKPOINTED),
        ("ddp", "full, kl", ACCUMULATED),
        ("zero2", "full", {}),
        ("zero2", "lora, kl", ACCUMULATED),
        ("zero3", "full", CHECKPOINTED),
        ("zero3", "full, kl", ACCUMULATED),
        ("zero3", "lora, kl", {}),
        ("zero3", "lora, kl", CHECKPOINTED),
        ("fsdp2", "full", {}),
        ("fsdp2", "full", CHECKPOINTED | ACCUMULATED),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_two_processes_train_as_one(launcher, method, options, inputs, one_process):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    expected, expected_weights = one_process(method)
    name = "-".join([launcher, method, *options])
    actual, weights = run(inputs, name, launcher, 2, **METHODS[method], **options)
    assert len(actual) == len(expected) == STEPS
    for metric in ("loss", "nll", "td_loss", "reward_std") + (("kl",) if "kl" in method else ()):
        assert actual[0][metric] == pytest.approx(expected[0][metric], rel=1e-5, abs=1e-6), metric
        ours, theirs = ([entry[metric] for entry in history] for history in (actual, expected))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), metric
    assert [entry["lambda_td"] for entry in actual] == pytest.approx([entry["lambda_td"] for entry in expected])
    assert largest_difference(weights, expected_weights) < 1e-4
