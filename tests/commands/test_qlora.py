"""`irl_qlora.yaml` from the recipe to the merged model, on a tiny model: NF4 with double quantisation, on the CPU."""

import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.commands.test_irl import ROOT
from tests.conftest import make_model, make_tokenizer
from trl_irl.commands import irl


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The trainer after the recipe's run, the base model's folder and the output folder."""
    folder = tmp_path_factory.mktemp("qlora")
    make_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    rows = [{"question": f"What is {i} + 1?", "answer": f"One more.\n#### {i + 1}"} for i in range(40)]
    (folder / "data").mkdir()
    Dataset.from_list(rows).to_json(folder / "data/train.jsonl")
    Dataset.from_list(rows[:4]).to_json(folder / "data/test.jsonl")
    changed = {
        "model_name_or_path": folder / "base",
        "dataset_name": folder / "data",
        "output_dir": folder / "run",
        "use_cpu": "true",
        # The recipe's 2 epochs of 18 batches are 2 optimiser steps; half of the steps come after an evaluation.
        "num_train_epochs": 1,
        "gradient_accumulation_steps": 1,
        "mle_warmup_steps": 1,
        "lambda_td_warmup_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 4,
    }
    words = [word for key, value in changed.items() for word in (f"--{key}", str(value))]
    recipe = str(ROOT / "recipes/gsm8k/irl_qlora.yaml")
    arguments = irl.make_parser().parse(["--config", recipe, *words])
    trainer, resume = irl.make_trainer(*arguments)
    irl.train(trainer, resume, "gsm8k")
    return trainer, folder / "base", folder / "run"


def test_only_adapters_train_and_are_saved(trained):
    trainer, _, output = trained
    layers = {name: module for name, module in trainer.model.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == 14 and not any("lm_head" in name for name in layers)
    for layer in layers.values():
        assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert (output / "adapter_model.safetensors").is_file() and not (output / "model.safetensors").exists()
    assert json.loads((output / "adapter_config.json").read_text())["r"] == 32


def test_it_learns_and_goes_on_learning_after_an_evaluation(trained):
    """bitsandbytes repacks 4-bit weights for inference on some CPUs, and gradients were zero from then on."""
    entries = trained[0].state.log_history
    norms = [entry["grad_norm"] for entry in entries if "grad_norm" in entry]
    assert len(norms) == 9 and min(norms) > 0.01 * norms[0] and norms[-1] > 0
    assert {4, 8} <= {entry["step"] for entry in entries if "eval_nll" in entry}
    losses = [entry["nll"] for entry in entries if "nll" in entry]
    assert losses[-1] < losses[4] < losses[0]


def logits(model, ids):
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits.float()


def test_reloaded_and_merged(trained, tmp_path):
    trainer, base, output = trained
    ids = torch.tensor([[5, 20, 40, 60, 80, 100]])
    expected = logits(trainer.model, ids)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    reloaded = AutoPeftModelForCausalLM.from_pretrained(output, quantization_config=nf4, dtype=torch.bfloat16)
    scale = expected.abs().max()
    assert (logits(reloaded, ids) - expected).abs().max() < 0.05 * scale  # bfloat16, and adapters kept in float32
    untrained = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.bfloat16)
    assert (logits(untrained, ids) - expected).abs().max() > 0.2 * scale

    # Merged into weights that are not quantised, as the README says: the same function as base and adapter.
    unquantised = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output)
    before = logits(unquantised, ids)
    unquantised.merge_and_unload().save_pretrained(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged, ids), before, rtol=0, atol=1e-4)
    assert not any("lora" in name for name in merged.state_dict())
