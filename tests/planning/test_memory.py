"""What `plan` says, against runs that were measured and against forwards of real tensors."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, LlamaConfig, MixtralConfig, Qwen2Config, Qwen2ForCausalLM

from benchmarks.irl_step import SIZES
from benchmarks.memory_per_rank import SCALED
from benchmarks.seeds import RESULTS
from tests.conftest import make_model
from trl_irl.planning import tracing
from trl_irl.planning.memory import BITS_4, BUCKET, LIVE, Precision, memory
from trl_irl.planning.tracing import Batch, trace


MIB = 2**20
STEPS = [cell for cell in json.loads((RESULTS / "irl_step_h200.json").read_text()) if cell["variant"] == "IRLTrainer"]
RANKS = json.loads((RESULTS / "memory_per_rank.json").read_text())


@pytest.mark.any_trl
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


QWEN = Qwen2Config(
    vocab_size=1000,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    tie_word_embeddings=False,
)
ADAPTER = {"r": 4, "target_modules": "all-linear"}
PLAIN = {"checkpointing": True, "logit_buffer_mb": 128}


def counts(config, lora):
    """Weights in linear layers, other frozen ones, and trained ones, of a model on the meta device."""
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
        whole = sum(p.numel() for p in model.parameters())
        head = model.get_output_embeddings()
        linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    return linear, whole - linear, sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("frozen", [2, 4])
def test_what_is_frozen_stays_as_it_was_loaded(frozen):
    """4-bit layers aside, and with FSDP2, which keeps shards of float32 where that is what was loaded."""
    batch = Batch(2, 32, 62)
    found = trace(QWEN, batch, torch.bfloat16, autocast=False, lora=ADAPTER)
    linear, others, trained = counts(QWEN, ADAPTER)
    one = memory(found, batch, "single_gpu", 1, Precision(True, True, frozen), **PLAIN)
    assert one.weights == pytest.approx(linear * BITS_4 + others * frozen + trained * 2)
    assert one.optimizer == 2 * 2 * trained  # adapters in bfloat16, and their moments
    several = memory(found, batch, "fsdp2", 8, Precision(True, False, frozen), **PLAIN)
    assert several.weights == pytest.approx(((linear + others) * frozen + 4 * trained) / 8)


def test_eight_bits_of_moments_but_for_embeddings():
    batch = Batch(2, 32, 62)
    found = trace(QWEN, batch, torch.float32, autocast=True)
    taken = memory(found, batch, "single_gpu", 1, Precision(), **PLAIN, moment_bytes=2.0)
    assert taken.optimizer == pytest.approx(2 * sum(found.weights.values()) + 6 * 1000 * 64)


def test_operations_of_experts_are_counted():
    """Each token has two of four experts of three products each, and attention as a dense model has."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"vocab_size": 1000, "intermediate_size": 128}
    batch = Batch(2, 32, 62)
    experts = MixtralConfig(num_local_experts=4, num_experts_per_tok=2, **sizes)
    flops = trace(experts, batch, torch.bfloat16, autocast=False).flops
    dense = trace(LlamaConfig(**sizes), batch, torch.bfloat16, autocast=False).flops
    tokens, products, router = 64, 3 * 2 * 64 * 128, 2 * 64 * 4
    assert flops - dense == pytest.approx(2 * tokens * (products + router))
    with pytest.raises(ValueError, match="cannot follow the forward of `mixtral`.*Set `dtype: bfloat16`"):
        trace(experts, batch, torch.float32, autocast=True)


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
