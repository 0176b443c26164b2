"""Tiny encoder-decoder models of every family, built from configs."""

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    LongT5Config,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MT5Config,
    PegasusConfig,
    SwitchTransformersConfig,
    T5Config,
    T5GemmaConfig,
    T5GemmaModuleConfig,
    UMT5Config,
    set_seed,
)


IDS = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0, **IDS}
BART = {
    "d_model": 16,
    **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in (("layers", 2), ("ffn_dim", 32))},
    **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
    "max_position_embeddings": 64,
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), 0.0),
    "bos_token_id": 2,
    "forced_eos_token_id": None,
    **IDS,
}
GEMMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 5.0,
    "sliding_window": 64,
    "dropout_rate": 0.0,
    "bos_token_id": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "t5": lambda size: T5Config(vocab_size=size, **T5),
    "flan-t5": lambda size: T5Config(vocab_size=size, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5),
    "mt5": lambda size: MT5Config(vocab_size=size, **T5),
    "umt5": lambda size: UMT5Config(vocab_size=size, **T5),
    "bart": lambda size: BartConfig(vocab_size=size, **BART),
    "marian": lambda size: MarianConfig(vocab_size=size, **BART),
    "pegasus": lambda size: PegasusConfig(vocab_size=size, **BART),
    # As mBART-50's, whose decoder begins with EOS: its language is the first label.
    "mbart": lambda size: MBartConfig(vocab_size=size, **BART | {"decoder_start_token_id": 1}),
    "m2m100": lambda size: M2M100Config(vocab_size=size, **BART),
    "t5gemma": lambda size: T5GemmaConfig(
        encoder=T5GemmaModuleConfig(vocab_size=size, **GEMMA),
        decoder=T5GemmaModuleConfig(vocab_size=size, **GEMMA),
        vocab_size=size,
        dropout_rate=0.0,
    ),
}
# Whose values are looked at, and not all that a trainer does with them.
MORE_CONFIGS = {
    "longt5": lambda size: LongT5Config(vocab_size=size, **T5),
    "switch": lambda size: SwitchTransformersConfig(vocab_size=size, num_experts=2, router_jitter_noise=0.0, **T5),
}
PACKABLE = ("t5", "flan-t5", "mt5", "umt5", "t5gemma")  # whose positions are relative


def make_encoder_decoder(family: str = "t5", vocab_size: int = 300, dtype=torch.float32, seed: int = 0):
    """Weights large enough for logits to differ clearly; what BART and Marian add to their logits is not zero."""
    set_seed(seed)
    model = AutoModelForSeq2SeqLM.from_config((CONFIGS | MORE_CONFIGS)[family](vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        if family in ("bart", "marian"):
            model.final_logits_bias.normal_()
    return model.to(dtype)
