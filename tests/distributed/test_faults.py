"""A batch whose loss is not finite on one rank of two: every launcher does with it what one process does."""

import importlib.util
import json
import math

import pytest
import torch

from tests.conftest import make_tokenizer
from tests.distributed.launchers import finish, history, largest_difference, make_inputs, start, weights
from tests.trainer.conftest import ROWS


POISON = "~"  # a token of one row alone, with an embedding that is infinite
LAUNCHERS = ["ddp", "zero2", "zero3", "fsdp2"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    token = make_tokenizer().convert_tokens_to_ids(POISON)

    def poison(model):
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = math.inf

    folder = make_inputs(tmp_path_factory.mktemp("faults"), poison)
    rows = [*ROWS, {"prompt": f"Of one {POISON}", "completion": " blue"}, *ROWS[1:]]  # 16: of 8 steps the fifth is bad
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(inputs, launcher, policy, processes, **overrides):
    output = inputs / f"{launcher}-{policy}"
    options = {"train_sampling_strategy": "sequential", "max_steps": 8, "learning_rate": 1e-2, "nan_policy": policy}
    options |= {"per_device_train_batch_size": 2 // processes, "preloaded": True}
    process = start(inputs, output, launcher, processes, **options, **overrides)
    return output, *finish(process)


@pytest.fixture(scope="module")
def one_process(inputs):
    output, status, _, stderr = run(inputs, "cpu", "skip", 1)
    assert status == 0, stderr[-3000:]
    assert "Step 5: the loss is NaN or infinite. It was skipped" in stderr
    return history(output), weights(output)


def without_poison(tensors):
    return {name: tensor for name, tensor in tensors.items() if "embed_tokens" not in name}


@pytest.mark.any_trl  # of its own part in the step, `test_stop` is on both
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_skip(launcher, inputs, one_process):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    expected, expected_weights = one_process
    output, status, _, stderr = run(inputs, launcher, "skip", 2)
    assert status == 0, stderr[-3000:]
    assert stderr.count("the loss is NaN or infinite on rank 0. It was skipped") == 1
    actual = history(output)
    assert [entry["skipped_steps"] for entry in actual] == [entry["skipped_steps"] for entry in expected]
    for metric in ("nll", "td_loss", "learning_rate"):
        ours, theirs = ([entry[metric] for entry in entries] for entries in (actual, expected))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5), metric
    assert largest_difference(without_poison(weights(output)), without_poison(expected_weights)) < 1e-4


@pytest.mark.parametrize("launcher", ["zero3", pytest.param("ddp", marks=pytest.mark.any_trl)])
def test_stop(launcher, inputs):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    output, status, _, stderr = run(inputs, launcher, "stop", 2, save_strategy="steps", save_steps=2)
    assert status == 1
    for rank in (0, 1):
        assert f"[rank {rank}] trl-irl irl: error: Step 5: the loss is NaN or infinite on rank 0." in stderr
    assert "checkpoint-4; `resume_from_checkpoint: true`" in stderr and "Try a `learning_rate` below" in stderr
    assert "Traceback" not in stderr
    assert not (output / "model.safetensors").exists() and (output / "checkpoint-4/model.safetensors").exists()
