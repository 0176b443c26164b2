"""The memory of a training step as PyTorch's profiler sees it on a CPU, against the plan."""

import json
from dataclasses import replace
from itertools import accumulate, product

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Qwen2Config

from tests.distributed.launchers import QUIET
from trl_irl import IRLConfig, IRLTrainer
from trl_irl.planning.gpus import GPU
from trl_irl.planning.plan import Setting, options
from trl_irl.planning.tracing import Batch


ROWS, LENGTH = 8, 256
PAIRS = [x for x in product((False, True), repeat=3) if sum(x) % 2 == 0]  # each two of them in all four ways
SCORED = ROWS * (LENGTH - 1)
LORA = {"r": 16, "target_modules": "all-linear"}
CONFIG = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "max_position_embeddings": 1024,
}


def measured(tokenizer, folder, lora: bool, checkpointing: bool, bf16: bool) -> list[int]:
    """
    Most bytes at a time beyond weights and moments after two steps, in a forward and backward, and in two of them that
    are accumulated.
    """
    ids = [5] + [10] * (LENGTH - 1)
    keys = {**QUIET, "bf16": bf16, "gradient_checkpointing": checkpointing, "logit_buffer_mb": 4}
    trainer = IRLTrainer(
        model=AutoModelForCausalLM.from_config(Qwen2Config(**CONFIG)),
        args=IRLConfig(str(folder), per_device_train_batch_size=ROWS, max_steps=2, max_length=LENGTH, **keys),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids}] * (2 * ROWS)),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA) if lora else None,
    )
    trainer.train()
    batch, peaks = next(iter(trainer.get_train_dataloader())), []
    for micro_batches in (1, 2):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            for _ in range(micro_batches):
                trainer.training_step(trainer.model, dict(batch), num_items_in_batch=torch.tensor(SCORED))
            trainer.model.zero_grad()
        trace = folder / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e.get("name") == "[memory]"]
        sizes = [event["args"]["Bytes"] for event in sorted(events, key=lambda e: e["ts"])]
        peaks.append(max(accumulate(sizes)))
    return peaks


@pytest.mark.any_trl
@pytest.mark.parametrize("lora, checkpointing, bf16", PAIRS)
def test_plan_is_within_a_tenth(lora, checkpointing, bf16, tokenizer, tmp_path):
    batch = Batch(ROWS, LENGTH, SCORED)
    method = "lora" if lora else "full"
    config = Qwen2Config(**CONFIG, architectures=["Qwen2ForCausalLM"])
    beyond = []
    for micro_batches in (1, 2):
        setting = Setting(method, torch.float32, bf16, batch, checkpointing, 4, "adamw_torch", LORA)
        setting = replace(setting, gradient_accumulation_steps=micro_batches)
        (planned,) = (option.memory for option in options(config, setting, 1, GPU(24)))
        beyond.append(planned.total - planned.weights - planned.optimizer - planned.workspaces)
    assert beyond == pytest.approx(measured(tokenizer, tmp_path, lora, checkpointing, bf16), rel=0.1)
