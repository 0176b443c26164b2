"""Generations during training on two processes: those of one process, and the same weights as without them."""

import csv
import json

import pytest

from tests.distributed.launchers import largest_difference, make_inputs, run


GENERATE = {
    "eval_strategy": "steps",
    "eval_steps": 10,
    "dataset_test_split": "train",
    "eval_generations": 5,  # over two processes, one has a prompt more
    "eval_temperature": 0.0,
    "eval_max_new_tokens": 8,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("generations"))


@pytest.fixture(scope="module")
def one_process(inputs):
    _, weights = run(inputs, "one", "cpu", 1, **GENERATE)
    return weights


def generations(folder):
    with (folder / "generations/step-20.csv").open() as file:
        return list(csv.DictReader(file))


def logged(folder):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in entries if "eval_rougeL" in entry]


@pytest.mark.parametrize(
    "launcher, options",
    [
        ("ddp", {"gradient_checkpointing": True}),
        pytest.param("zero2", {}, marks=pytest.mark.any_trl),
        pytest.param("zero3", {"gradient_checkpointing": True}, marks=pytest.mark.any_trl),
        ("zero3", {"eval_ds3_gather_for_generation": False}),
        ("fsdp2", {}),
    ],
)
def test_two_processes_generate_as_one(launcher, options, inputs, one_process):
    name = f"{launcher}-{len(options) and next(iter(options))}"
    _, weights = run(inputs, name, launcher, 2, **GENERATE, **options)
    assert largest_difference(weights, one_process) < 1e-4
    assert len(generations(inputs / name)) == 5
    assert generations(inputs / name) == generations(inputs / "one")
    for entry, expected in zip(logged(inputs / name), logged(inputs / "one"), strict=True):
        assert entry["step"] == expected["step"]
        for metric in ("eval_rougeL", "eval_length", "eval_ended"):
            assert entry[metric] == pytest.approx(expected[metric])
