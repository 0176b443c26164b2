"""Two processes on the CPU (gloo) against one: the same loss, gradients and logged metrics."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.distributed.preloaded import python_of_tests
from tests.trainer.conftest import ROWS


ROOT = Path(__file__).parents[2]

_SCRIPT = """
import json, sys
import torch
from datasets import Dataset
from trl_irl import IRLConfig, IRLTrainer

folder, model, batch, accumulation, keys = sys.argv[1:]


class Noted(IRLTrainer):
    # As scripts do: a number of one's own, logged by one rank, in the middle of a step.
    def compute_loss(self, *args, **kwargs):
        if self.is_world_process_zero() and self.model.training:
            self.log({"noted": 1.0})
        return super().compute_loss(*args, **kwargs)


trainer = Noted(
    model=model,
    args=IRLConfig(
        output_dir=folder, per_device_train_batch_size=int(batch), gradient_accumulation_steps=int(accumulation),
        max_steps=3, logging_steps=1, learning_rate=1e-2, use_cpu=True, bf16=False, gradient_checkpointing=False,
        report_to="none", save_strategy="no", max_grad_norm=1e9, optim="sgd", **json.loads(keys),
        per_device_eval_batch_size=int(batch), dataloader_pin_memory=False,
    ),
    train_dataset=Dataset.from_json(folder + "/rows.jsonl"),
    # No multiple of a batch of two ranks: accelerate fills the last one with rows that were there already.
    eval_dataset=Dataset.from_json(folder + "/rows.jsonl").select(range(7)),
)
# Ranks draw rows of an epoch in turn, so a batch of the whole epoch has the same rows on one rank and on two.
trainer.train()
evaluated = trainer.evaluate()
trainer.save_model(folder + "/saved")
if trainer.is_world_process_zero():
    history = [entry for entry in trainer.state.log_history if "nll" in entry]
    assert sum("noted" in entry for entry in trainer.state.log_history) == 3 * int(accumulation)
    json.dump({"history": history, "evaluated": evaluated}, open(folder + "/result.json", "w"))
from trl_irl.commands.console.failures import leave
trainer.end()
leave()
"""


PLAIN = {"lambda_td": 0.3, "gamma": 0.9}
# Constants that the first step measures, and every statistic that a forward can be asked for, but GEM's linear form.
ALL = PLAIN | {"objective": "gem+soft_q+entropy+z_loss", "gem_form": "log_sigmoid", "z_loss_center": "measured"}
ALL |= {"z_loss_weight": 0.05, "gem_beta": 0.7, "value_temperature": 0.7, "entropy_weight": 0.1}
SMOOTHED = {"objective": "label_smoothing+value_consistency", "label_smoothing_weight": 0.3, "lambda_td": 0.3}
SMOOTHED |= {"value_origin": "reference"}


def launch(folder, model_folder, processes, batch, accumulation=1, keys=PLAIN):
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "script.py").write_text(_SCRIPT)
    command = [python_of_tests(), "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    arguments = [folder / "script.py", folder, model_folder, batch, accumulation, json.dumps(keys)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHON_EXEC": python_of_tests(),
    }
    run = subprocess.run([*command, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    from safetensors.torch import load_file

    return json.loads((folder / "result.json").read_text()), load_file(folder / "saved/model.safetensors")


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(PLAIN, id="soft_q"),
        pytest.param(ALL, id="gem_and_more", marks=pytest.mark.any_trl),
        pytest.param(SMOOTHED, id="label_smoothing", marks=pytest.mark.any_trl),
        pytest.param(PLAIN | {"padding_free": True, "max_length": None, "pad_to_multiple_of": 32}, id="padding_free"),
    ],
)
def test_two_processes_equal_one(keys, model_folder, tmp_path):
    expected, expected_weights = launch(tmp_path / "one", model_folder, 1, 8, keys=keys)
    actual, weights = launch(tmp_path / "two", model_folder, 2, 2, 2, keys=keys)
    skipped = {"num_tokens", "epoch", "step"}
    for ours, theirs in zip(actual["history"], expected["history"], strict=True):
        assert {k: ours[k] for k in theirs if k not in skipped} == pytest.approx(
            {k: theirs[k] for k in theirs if k not in skipped}, rel=1e-4, abs=1e-6
        )
        if "pad_to_multiple_of" not in keys:  # of a padding-free batch padding counts, as SFTTrainer has it
            assert ours["num_tokens"] == theirs["num_tokens"]
    for name in ("eval_nll", "eval_td_loss", "eval_reward_std", "eval_entropy"):
        assert actual["evaluated"][name] == pytest.approx(expected["evaluated"][name], rel=1e-4)
    for name, tensor in expected_weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
