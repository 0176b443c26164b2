"""`trl-irl online-irl` on two processes: without weight on the policy as offline, with weight it learns from it."""

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.launchers import (
    LORA,
    PAIRS,
    QUIET,
    cpu_twin,
    finish,
    history,
    launch,
    make_pairs,
    needs_deepspeed,
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("inputs"))


def run(command, inputs, folder, launcher, processes=2, **keys):
    folder.mkdir()
    keys = {
        "model_name_or_path": str(inputs / "model"),
        "dataset_name": str(inputs / "rows.jsonl"),
        "output_dir": str(folder),
        "lambda_td": 0.3,
        "max_steps": 3,
        "per_device_train_batch_size": len(PAIRS) // processes,
        "learning_rate": 1.0e-2,
        **QUIET,
        **keys,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
    config = cpu_twin(launcher, processes, folder, None if keys["bf16"] else "no")
    words = ["trl_irl.cli", command, "--config", folder / "recipe.yaml", "--accelerate_config", config]
    status, _, stderr = finish(launch(words))
    assert status == 0, stderr[-4000:]
    return history(folder), load_file(next(folder.glob("*.safetensors")))


@pytest.fixture(scope="module")
def offline(inputs, tmp_path_factory):
    """One process, offline: with all weights, and with LoRA."""
    folder = tmp_path_factory.mktemp("offline")
    return {lora: run("irl", inputs, folder / str(lora), "ddp", 1, **(LORA if lora else {})) for lora in (False, True)}


@pytest.mark.parametrize(
    "launcher, lora",
    [
        *(pytest.param("ddp", x, marks=pytest.mark.any_trl) for x in (False, True)),
        pytest.param("zero3", False, marks=[needs_deepspeed, pytest.mark.any_trl]),
        pytest.param("zero3", True, marks=needs_deepspeed),
    ],
)
def test_with_no_weight_on_the_policy_as_offline(launcher, lora, inputs, offline, tmp_path):
    """It samples all the same: whatever gathers weights for that puts them back."""
    online = {"max_completion_length": 5, "policy_weight": 0.0, **(LORA if lora else {})}
    logged, weights = run("online-irl", inputs, tmp_path / "online", launcher, **online)
    expected_log, expected = offline[lora]
    assert all(entry["policy_length"] >= 1 for entry in logged)
    assert [entry["nll"] for entry in logged] == pytest.approx([entry["nll"] for entry in expected_log], rel=1e-4)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def on_two_processes(script, tmp_path):
    """What a script prints that runs on two processes and must end well; its argument is a folder to write into."""
    (tmp_path / "script.py").write_text(script)
    run = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "script.py", tmp_path / "out"]
    status, stdout, stderr = finish(launch(run))
    assert status == 0, stderr[-4000:]
    return stdout


_UNEQUAL = """
import sys
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, set_seed
from tests.conftest import make_tokenizer
from tests.distributed.launchers import QUIET
from tests.encoder_decoders import CONFIGS
from trl_irl import Seq2SeqOnlineIRLConfig, Seq2SeqOnlineIRLTrainer
from trl_irl.commands.console.failures import leave

set_seed(0)
rows = [{"input_ids": [10 + i, 11], "labels": [20, 21, 1]} for i in range(16)]
for i in (1, 3, 5, 9, 11):
    rows[i]["labels"] = [-100, -100]
keys = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 3, "max_completion_length": 8}
args = Seq2SeqOnlineIRLConfig(output_dir=sys.argv[1], ddp_timeout=60, **keys, **QUIET)
model = AutoModelForSeq2SeqLM.from_config(CONFIGS["t5"](300))
trainer = Seq2SeqOnlineIRLTrainer(
    model, args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
)
trainer.train()
if trainer.is_world_process_zero():
    print("LENGTHS", [entry["policy_length"] for entry in trainer.state.log_history if "policy_length" in entry])
trainer.end()
leave()
"""


def test_ranks_with_unequal_numbers_of_prompts(tmp_path):
    """Rows with nothing to learn are not sampled for, and one rank may have more of them: all sample equally often."""
    stdout = on_two_processes(_UNEQUAL, tmp_path)
    assert stdout.count("LENGTHS") == 1 and len(stdout.split("LENGTHS")[1].split(",")) == 3


_ALIKE = """
import sys
from accelerate.utils import gather_object
from datasets import Dataset
from tests.conftest import make_model, make_tokenizer
from tests.distributed.launchers import QUIET
from trl_irl import OnlineIRLConfig, OnlineIRLTrainer
from trl_irl.commands.console.failures import leave

said = []


class Watched(OnlineIRLTrainer):
    def _sample(self, prompts):
        samples = super()._sample(prompts)
        said.append([sample.completion for sample in samples])
        return samples


rows = [{"input_ids": [10, 11, 20, 1], "labels": [-100, -100, 20, 1]}] * 16
args = OnlineIRLConfig(sys.argv[1], max_steps=4, per_device_train_batch_size=2, max_completion_length=6, **QUIET)
trainer = Watched(make_model("llama"), args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer())
trainer.train()
first, second = gather_object([said])
if trainer.is_world_process_zero():
    print("ALIKE", sum(a == b for a, b in zip(first, second)), "OF", len(first), "AGAIN", len(set(map(str, first))))
trainer.end()
leave()
"""


@pytest.mark.any_trl
def test_ranks_with_one_prompt_say_different_things(tmp_path):
    """All start from one seed; each draws random numbers of its own, and others at each step."""
    stdout = on_two_processes(_ALIKE, tmp_path)
    assert "ALIKE 0 OF 4 AGAIN 4" in stdout


@pytest.mark.parametrize("launcher", [pytest.param("zero3", marks=needs_deepspeed)])
def test_learns_from_the_policy(launcher, inputs, offline, tmp_path):
    """In bfloat16, as the config is shipped."""
    keys = {"max_completion_length": 5, "replay_size": 8, "bf16": True}
    logged, weights = run("online-irl", inputs, tmp_path / "online", launcher, **keys)
    assert logged[0]["nll"] == pytest.approx(offline[False][0][0]["nll"], rel=0.02)
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in logged)
    assert any(
        not torch.allclose(weights[name].float(), tensor, atol=1e-2) for name, tensor in offline[False][1].items()
    )
