"""
The `irl` command under every launcher that the recipes offer, each on two CPU processes, against one process: the same
losses and weights. The whole product of launchers and options is `python -m tests.slow.equal_launchers`.
"""

import functools
import importlib.util
import json

import pytest

from tests.distributed.launchers import (
    ACCUMULATED,
    CHECKPOINTED,
    METHODS,
    STEPS,
    finish,
    largest_difference,
    make_inputs,
    run,
    start,
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


def once(*case):
    """On one TRL is enough: the same launchers and methods run on both, otherwise combined."""
    return pytest.param(*case, marks=pytest.mark.any_trl)


# What each launcher wraps a model in, as a training of all weights sees it.
WRAPPED = {
    "ddp": {"wrapper": "DistributedDataParallel", "head": "Parameter"},
    "zero2": {"wrapper": "DeepSpeedEngine", "zero_stage": 2},
    "zero3": {"wrapper": "DeepSpeedEngine", "zero_stage": 3, "elements_here": 300 * 16 // 2, "kept": [100_000, 10**9]},
    "zero3 releasing": {"wrapper": "DeepSpeedEngine", "zero_stage": 3, "elements_here": 300 * 16 // 2, "kept": [0, 0]},
    "fsdp2": {"wrapper": "FSDPLlamaForCausalLM", "head": "DTensor"},
}


@pytest.mark.parametrize(
    "launcher, method, options",
    [
        ("ddp", "full", {}),
        ("ddp", "lora, kl", CHECKPOINTED),
        once("ddp", "full, kl", ACCUMULATED),
        ("zero2", "full", {}),
        once("zero2", "lora, kl", ACCUMULATED),
        once("zero3", "full", CHECKPOINTED),
        once("zero3", "full, kl", ACCUMULATED),
        once("zero3", "lora, kl", {}),
        ("zero3 releasing", "full, kl", CHECKPOINTED),
        once("zero3 releasing", "lora, kl", CHECKPOINTED),
        ("ddp", "qlora, kl", CHECKPOINTED),
        once("zero2", "qlora, kl", ACCUMULATED),
        ("fsdp2", "full", {}),
        once("fsdp2", "full", CHECKPOINTED | ACCUMULATED),
        once("fsdp2", "lora, kl", ACCUMULATED),
        ("fsdp2", "lora, head", {}),
        once("fsdp2", "lora, head", CHECKPOINTED | ACCUMULATED),
        once("zero3 releasing", "lora, head", ACCUMULATED),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_two_processes_train_as_one(launcher, method, options, inputs, one_process):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    expected, expected_weights = one_process(method)
    name, observed = "-".join([launcher, method, *options]), method.startswith("full")
    by = "observed" if observed else "accelerate"
    actual, weights = run(inputs, name, launcher, 2, by, **METHODS[method], **options)
    for rank in (0, 1) if observed else ():  # is the twin what it stands for?
        wrapped = json.loads((inputs / name / f"observed-{rank}.json").read_text())
        assert {key: wrapped[key] for key in WRAPPED[launcher]} == WRAPPED[launcher]
    assert len(actual) == len(expected) == STEPS
    # TRL keeps the adapters of a quantised model in bfloat16, which rounds a sum over ranks to three digits.
    rounding = 5e-3 if "qlora" in method else 0
    for metric in ("loss", "nll", "td_loss", "reward_std") + (("kl",) if "kl" in method else ()):
        assert actual[0][metric] == pytest.approx(expected[0][metric], rel=1e-5, abs=1e-6), metric
        ours, theirs = ([entry[metric] for entry in history] for history in (actual, expected))
        assert ours == pytest.approx(theirs, rel=1e-4 + rounding, abs=1e-5 + rounding), metric
    assert [entry["lambda_td"] for entry in actual] == pytest.approx([entry["lambda_td"] for entry in expected])
    assert largest_difference(weights, expected_weights) < 1e-4 + 2 * rounding


@pytest.mark.parametrize("launcher, method", [once("zero2", "lora, kl"), ("zero3", "full"), once("fsdp2", "full, kl")])
def test_in_the_precision_that_is_shipped(launcher, method, inputs, one_process):
    """In bfloat16, against float32 on one process: as near as eight bits of a product are."""
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    expected, expected_weights = one_process(method)
    actual, weights = run(inputs, f"bf16-{launcher}", launcher, 2, **METHODS[method], bf16=True)
    for metric, tolerance in (("nll", 0.01), ("td_loss", 0.05)):
        ours, theirs = ([entry[metric] for entry in history] for history in (actual, expected))
        assert ours == pytest.approx(theirs, rel=tolerance), metric
    assert expected[0]["nll"] - expected[-1]["nll"] > 0.02  # and it learns
    # Adam follows the sign of a small gradient, which rounding turns: adapters differ by some of its steps of 0.01.
    assert largest_difference(weights, expected_weights) < (0.1 if "lora" in method else 0.02)
    if launcher == "fsdp2":  # which would round what a model returns to bfloat16
        observed = [json.loads((inputs / f"bf16-{launcher}/observed-{rank}.json").read_text()) for rank in (0, 1)]
        assert all(one["q and v"] == ["torch.float32"] * 2 for one in observed)


@pytest.mark.parametrize("launcher, named", [("zero3", "DeepSpeed ZeRO-3"), once("fsdp2", "FSDP")])
def test_quantised_weights_are_not_sharded(launcher, named, inputs):
    if launcher.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    output = inputs / f"{launcher}-qlora"
    status, _, stderr = finish(start(inputs, output, launcher, 2, **METHODS["qlora, kl"]))
    assert status != 0
    for rank in (0, 1):
        assert f"[rank {rank}] trl-irl irl: error: The model is quantised" in stderr
    assert f"the launcher is {named}" in stderr and "under DDP and under ZeRO-2" in stderr
    assert "[rank0]: Traceback" not in stderr and not list(output.glob("*.safetensors"))
