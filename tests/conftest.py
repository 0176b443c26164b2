"""Tiny models and tokenizers, built from configs: nothing is ever downloaded."""

import os
import tempfile


# Before torch is imported anywhere. Tests compare numbers, so they run on the CPU and without the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp())

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the colour of the sky? It is blue. One two three 1 2 3"
]

# Model type -> config arguments beside the sizes that all share.
ARCHITECTURES = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 8},
    "llama": {"tie_word_embeddings": False},
    "gpt_neox": {"tie_word_embeddings": False},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "gpt2": {},
}


def make_tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


def make_model(architecture: str = "qwen2", vocab_size: int = 300, dtype=torch.float32, seed: int = 0, **overrides):
    """A model of two layers with weights large enough for its logits to differ clearly."""
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 1,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    if architecture == "gpt2":
        for new, old in {
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
        }.items():
            sizes[new] = sizes.pop(old)
        sizes |= {"n_positions": sizes.pop("max_position_embeddings"), "n_inner": sizes.pop("intermediate_size")}
        del sizes["num_key_value_heads"]
    if architecture == "gpt_neox":
        del sizes["num_key_value_heads"]
    config = AutoConfig.for_model(architecture, **{**sizes, **ARCHITECTURES.get(architecture, {}), **overrides})
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    # Tests compare two trainers on one batch: no dropout.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def make_model_that_says(token: int, weight: float):
    """A model that says a token with a probability of its own, whatever came before: logit 4 * weight, others 0."""
    model = make_model("llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.dim() > 1:
                parameter.mul_(0.01)
        model.model.embed_tokens.weight[:, 0] = 10.0
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[token, 0] = weight
    return model


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """A tiny model and its tokenizer, saved: what a command takes as `model_name_or_path`."""
    folder = tmp_path_factory.mktemp("model")
    make_model("qwen2").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
