"""What `plan` says, against runs that were measured and against forwards of real tensors."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, LlamaConfig, Qwen2Config

from benchmarks.irl_step import SIZES
from benchmarks.memory_per_rank import SCALED
from benchmarks.seeds import RESULTS
from tests.conftest import make_model
from trl_irl.planning import tracing
from trl_irl.planning.memory import BUCKET, LIVE, Precision, memory
from trl_irl.planning.tracing import Batch, trace


MIB = 2**20
STEPS = [cell for cell in json.loads((RESULTS / "irl_step_h200.json").read_text()) if cell["variant"] == "IRLTrainer"]
RANKS = json.loads((RESULTS / "memory_per_rank.json").read_text())


@pytest.mark.parametrize(
    "cell", STEPS, ids=lambda cell: f"{cell['model_size']}-{cell['vocab']}-{cell['logit_buffer_mb']}"
)
def test_within_a_tenth_of_what_a_gpu_took(cell):
    hidden, intermediate, layers, heads, kv_heads, tied = SIZES[cell["model_size"]]
    config = Qwen2Config(
        vocab_size=cell["vocab"],
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
    )
    rows, length = map(int, cell["batch"].split(" x "))
    batch = Batch(rows, length, round(cell["scored_tokens"]))
    found = trace(config, batch, torch.float32, autocast=True)
    assert sum(found.weights.values()) == cell["parameters"]
    taken = memory(found, batch, "single_gpu", 1, Precision(), False, cell["logit_buffer_mb"])
    assert taken.total == pytest.approx(MIB * cell["peak_mib"], rel=0.1)


@pytest.mark.parametrize("cell", RANKS, ids=lambda cell: cell["launcher"])
def test_within_a_tenth_of_what_a_rank_took(cell):
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=768,
        intermediate_size=4 * 768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=False,
    )
    batch = Batch(2, 40, 40)
    found = trace(config, batch, torch.float32, autocast=False)
    assert sum(found.weights.values()) == pytest.approx(cell["weights"], rel=1e-3)
    launcher, is_scaled, _ = cell["launcher"].partition("-scaled")
    deepspeed = (BUCKET, LIVE)
    if is_scaled:
        deepspeed = SCALED["reduce_bucket_size"], SCALED["stage3_max_live_parameters"]
    taken = memory(found, batch, launcher, 2, Precision(autocast=False), True, 128, deepspeed=deepspeed)
    assert taken.total == pytest.approx(MIB * max(cell["peak_mib"]), rel=0.1)


def kept_in_truth(model, batch, autocast):
    """Bytes that a forward of real tensors keeps for the backward, the weights apart."""
    own = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        output = model.base_model(input_ids=torch.ones(batch.rows, batch.length, dtype=torch.long), use_cache=False)
    total = sum(storage.nbytes() for storage in seen.values())
    assert output.last_hidden_state.requires_grad
    return total


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt_neox", "gemma2", "granite", "qwen3"])
def test_a_trace_keeps_what_a_forward_keeps(name, lora, autocast):
    model, batch = make_model(name).train(), Batch(2, 24, 40)
    found = trace(model.config, batch, torch.float32, autocast, lora)
    whole = model if lora is None else get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    whole.train()
    expected = kept_in_truth(model, batch, autocast)
    assert found.saved == pytest.approx(expected, rel=0.05)
    assert sum(found.weights.values()) == sum(p.numel() for p in whole.parameters())
    assert sum(found.trained.values()) == sum(p.numel() for p in whole.parameters() if p.requires_grad)
    # The first block is the one that is seen to keep what all share.
    blocks = found.saved - found.beside
    assert found.one_block < blocks <= found.one_block * model.config.num_hidden_layers


def small_llama(layers):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaConfig(vocab_size=100, num_hidden_layers=layers, **sizes)


def test_operations_are_those_of_the_weights_and_of_attention():
    config = small_llama(layers=3)
    rows, length = 2, 32
    found = trace(config, Batch(rows, length, 10), torch.float32, autocast=False)
    products = 2 * rows * length * 3 * (4 * 64 * 64 + 3 * 64 * 128)
    attention = 2 * rows * 3 * length * length * 64 * 2  # queries with keys, and their shares with values
    assert found.linear == 3 * (4 * 64 * 64 + 3 * 64 * 128)
    assert found.flops == pytest.approx(products + attention, rel=0.02)


def test_checkpointing_keeps_the_blocks_inputs():
    config = small_llama(layers=5)
    found = trace(config, Batch(2, 32, 10), torch.bfloat16, autocast=False)
    assert found.inputs == 5 * 2 * 32 * 64 * 2
    taken = [memory(found, Batch(2, 32, 10), "single_gpu", 1, Precision(), flag, 1) for flag in (True, False)]
    assert taken[0].activations < taken[1].activations / 2 and taken[0].total < taken[1].total


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(ValueError, match="encoder-decoder"):
        trace(AutoConfig.for_model("t5"), Batch(1, 8, 8), torch.float32, False)
    with pytest.raises(ValueError, match="`plan` cannot build a `vit`"):
        trace(AutoConfig.for_model("vit"), Batch(1, 8, 8), torch.float32, False)


def test_a_forward_that_hangs_on_values_is_refused(monkeypatch):
    def depends_on_values(self, batch, autocast):
        return torch.ones(3).sum().item()  # a fake tensor has no value

    monkeypatch.setattr(tracing._Kept, "run", depends_on_values)
    with pytest.raises(ValueError, match="cannot follow the forward of `llama` by shapes alone"):
        trace(LlamaConfig(num_hidden_layers=1), Batch(1, 8, 8), torch.float32, False)
