"""`trl-irl gail` on two processes: one discriminator, and the expert's term as on one."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.launchers import LORA, QUIET, cpu_twin, finish, history, launch, make_pairs, needs_deepspeed


CASES = [
    *(pytest.param("ddp", lora, marks=pytest.mark.any_trl) for lora in (False, True)),
    pytest.param("zero3", False, marks=[needs_deepspeed, pytest.mark.any_trl]),
    pytest.param("zero3", True, marks=needs_deepspeed),
    ("fsdp2", False),
    pytest.param("fsdp2", True, marks=pytest.mark.any_trl),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("inputs"))


def run(inputs, folder, launcher, lora, processes=2, **keys):
    folder.mkdir()
    keys = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "rows.jsonl"),
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8 // processes,
        "num_generations": 2,
        "max_completion_length": 5,
        "learning_rate": 1.0e-2,
        "dtype": "float32",
        **(LORA if lora else {}),
        **QUIET,
        **keys,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    config = cpu_twin(launcher, processes, folder, None if keys["bf16"] else "no")
    words = ["accelerate.commands.launch", "--config_file", config, "-m", "tests.distributed.observed_gail"]
    status, _, stderr = finish(launch([*words, "--config", folder / "recipe.yaml"]))
    assert status == 0, stderr[-4000:]
    ranks = [
        [json.loads(line) for line in (folder / f"rank-{rank}.jsonl").read_text().splitlines()]
        for rank in range(processes)
    ]
    return history(folder), load_file(next(folder.glob("*.safetensors"))), ranks


# Adam divides a gradient by its own size: at its usual epsilon a weight whose gradient is rounding alone moves as far
# as any other, and in a direction that the machine chooses.
WARM_UP = {"discriminator_warmup_steps": 9, "beta": 0.0, "mle_coef": 1.0, "adam_epsilon": 1.0e-3}


@pytest.fixture(scope="module")
def one_process(inputs, tmp_path_factory):
    """Nothing but the expert's term moves the policy: with all weights, and with LoRA."""
    folder = tmp_path_factory.mktemp("one")
    return {lora: run(inputs, folder / str(lora), "ddp", lora, 1, **WARM_UP) for lora in (False, True)}


@pytest.mark.parametrize("launcher, lora", CASES)
def test_the_experts_term_as_on_one_process(launcher, lora, inputs, one_process, tmp_path):
    logged, weights, ranks = run(inputs, tmp_path / "two", launcher, lora, **WARM_UP)
    expected_log, expected, _ = one_process[lora]
    assert [entry["nll"] for entry in logged] == pytest.approx([entry["nll"] for entry in expected_log], rel=1e-4)
    assert len({round(entry["nll"], 4) for entry in logged}) == 3
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
    assert ranks[0][-1]["weights"] == ranks[1][-1]["weights"]


@pytest.mark.any_trl
def test_resume(inputs, tmp_path):
    """Both models, the discriminator's optimiser and the random numbers of both ranks."""
    keys = {"discriminator_learning_rate": 1.0e-2, "discriminator_warmup_steps": 1}
    # One epoch: TRL's sampler shuffles the next ones otherwise after a resume.
    rows = tmp_path / "rows.jsonl"
    rows.write_text((inputs / "rows.jsonl").read_text() * 4)
    keys |= {"save_strategy": "steps", "save_steps": 2, "dataset_name": str(rows)}
    whole, weights, ranks = run(inputs, tmp_path / "whole", "ddp", False, **keys)
    checkpoint = str(tmp_path / "whole/checkpoint-2")
    again, same, others = run(inputs, tmp_path / "again", "ddp", False, **keys, resume_from_checkpoint=checkpoint)
    for metric in ("loss", "reward", "nll", "discriminator_loss", "discriminator_accuracy_policy"):
        assert [one[metric] for one in again] == [one[metric] for one in whole], metric
    assert others == [of_rank[2:] for of_rank in ranks]
    for name, tensor in weights.items():
        assert tensor.equal(same[name]), name


SHARED = {"discriminator_lora_r": 4, "discriminator_shares_base": True}


@pytest.mark.parametrize(
    "launcher, keys",
    [
        ("ddp", SHARED),
        pytest.param("zero2", SHARED | {"bf16": True}, marks=[needs_deepspeed, pytest.mark.any_trl]),
        pytest.param("zero3", {"bf16": True}, marks=needs_deepspeed),
    ],
)
def test_one_discriminator_on_all_ranks(launcher, keys, inputs, tmp_path):
    lora = "discriminator_lora_r" in keys
    keys = {"discriminator_learning_rate": 1.0e-2, "discriminator_update_ratio": 2.0, **keys}
    keys |= {"discriminator_warmup_steps": 1}
    logged, _, ranks = run(inputs, tmp_path / "two", launcher, lora, **keys)
    assert ranks[0] == ranks[1] and len(ranks[0]) == 3  # what is measured is over all ranks, too
    assert ranks[0][0]["rows"] == [4, 4]
    weights = [tuple(step["weights"].values()) for step in ranks[0]]
    assert len(set(weights)) == 3
    assert all(torch.tensor([entry["loss"], entry["reward"]]).isfinite().all() for entry in logged)
    kind = "adapter_model" if lora else "model"
    saved = load_file(tmp_path / f"two/discriminator/{kind}.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}  # whatever the policy computes in
    if not lora:
        return
    # An adapter's B starts at 0: its largest weight is of the size of two updates of Adam a step, to more digits than
    # bfloat16 has.
    largest = max(tensor.abs().max().item() for name, tensor in saved.items() if "lora_B" in name)
    assert 0.5 * 6 * 1e-2 < largest <= 1.01 * 6 * 1e-2
    assert any((tensor != tensor.bfloat16().float()).any() for tensor in saved.values())
