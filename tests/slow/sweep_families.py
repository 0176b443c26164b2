"""
Every causal language model family that transformers has, built tiny: does the soft-Q head give the model's own Q and V
and their gradients, or refuse with a reason?

```bash
python -m tests.slow.sweep_families --output results/decoder_families.json --table docs/decoder_families.md
python -m tests.slow.sweep_families --check results/decoder_families.json  # fails if a verdict is another
```
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, set_seed
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from trl_irl.soft_q import attach_soft_q_head


VOCABULARY, LENGTH = 211, 12
# Sizes by the names that configs have for them; a config gets those that it knows.
SIZES = {
    32: "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim model_dim backbone_hidden_size "
    "hidden_dim attention_hidden_size emb_dim width text_hidden_size projection_dim embd_pdim q_dim output_dim "
    "input_embedding_size output_embedding_size out_hidden_size",
    48: "intermediate_size ffn_dim n_inner d_ff decoder_ffn_dim encoder_ffn_dim dim_ff inner_dim d_inner "
    "ffn_hidden_size "
    "intermediate_size_mlp moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
    "expert_ffn_hidden_size moe_shared_expert_intermediate_size hidden_mlp mlp_hidden_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers depth num_experts_per_tok num_experts_per_token moe_topk moe_top_k "
    "num_key_value_heads num_kv_heads n_head_kv kv_channels_heads top_k num_nextn_predict_layers_",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts num_routed_experts q_lora_rank_ mamba_n_heads_ num_attn_heads "
    "linear_num_key_heads linear_num_value_heads",
    8: "head_dim rotary_dim qk_rope_head_dim d_kv attention_head_dim qk_nope_head_dim v_head_dim q_lora_rank "
    "kv_lora_rank kv_channels state_size mamba_d_state ssm_state_size linear_key_head_dim linear_value_head_dim "
    "hidden_size_per_layer_input dim_model_base global_head_dim",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length context_length",
}
SETTINGS = {name: value for value, names in SIZES.items() for name in names.split()}
SETTINGS |= {"vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
SETTINGS |= {"is_decoder": True, "pad_token_id": 0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
SETTINGS |= dict.fromkeys(("hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout"), 0.0)
SETTINGS |= dict.fromkeys(("attention_dropout", "activation_dropout", "hidden_dropout_prob", "layerdrop"), 0.0)
SETTINGS |= {"attention_probs_dropout_prob": 0.0, "layer_dropout": 0.0, "classifier_dropout": 0.0}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1}
VISION |= {"image_size": 28, "patch_size": 14, "embed_dim": 32, "num_heads": 2, "out_hidden_size": 32, "layers": 1}
MLA = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu".split()
MLA += "kimi_k25 mistral_large4 mistral4 kimi_linear bailing_hybrid".split()
# What some need beside that, to be built so small.
MORE = {
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "layer_types": ["mamba", "attention"],
    },
    "jetmoe": {"kv_channels": 8, "num_key_value_heads": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "layers_block_type": ["mamba", "attention"],
    },
    "zamba": {"n_mamba_heads": 2, "mamba_dt_rank": 4},
    "reformer": {
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [4, 3],
        "axial_pos_embds_dim": [16, 16],
        "attention_head_size": 8,
        "feed_forward_size": 48,
        "local_attn_chunk_length": 4,
    },
    "big_bird": {"attention_type": "original_full"},
    "xlnet": {"d_head": 8},
    "moshi": {"audio_vocab_size": 32, "num_codebooks": 2},
    "ctrl": {"dff": 48},
    "phimoe": {"head_dim": 8},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"moe_layers": [1], "num_experts_per_tok": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2},
    "roformer": {"embedding_size": 32},
    "electra": {"embedding_size": 32},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    **dict.fromkeys(MLA, {"num_key_value_heads": 4, "num_attention_heads": 4}),
    **dict.fromkeys(
        "qwen2_vl_text qwen2_5_vl_text glm4v_text glm4v_moe_text glm_ocr_text paddleocr_vl_text "
        "qwen2_5_omni_text".split(),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    ),
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "attention_head_dim": 16},
    "mistral4": {"num_key_value_heads": 4, "qk_rope_head_dim": 4, "head_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "dots1": {"n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
}


def knows(config, name: str) -> bool:
    """Whether a config takes an argument of that name."""
    try:
        return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)
    except Exception:  # some raise for what differs from layer to layer
        return False


def shrink(config_class, model_type: str) -> dict:
    """Arguments that make a config of a class tiny; nested configs are shrunk alike."""
    default = config_class()
    found = {name: value for name, value in SETTINGS.items() if knows(default, name)}
    if {"num_encoder_layers", "num_decoder_layers"} <= found.keys():  # ProphetNet: both or the other
        found.pop("num_hidden_layers", None)
    derived = isinstance(getattr(type(default), "layers_block_type", None), property)
    if knows(default, "layer_types") and default.layer_types and not derived:  # one layer of each of two kinds
        kinds = list(dict.fromkeys(default.layer_types))
        found["layer_types"] = [kinds[0], kinds[-1]]
    rope = getattr(default, "rope_parameters", None) or {}
    if "mrope_section" in rope:
        found["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    if "full_attention" in rope or "sliding_attention" in rope:
        found["rope_parameters"] = rope
    for name, part_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if not isinstance(part_class, type) or not hasattr(part_class, "model_type"):
            part_class = type(getattr(default, name, None))
        if name == "text_config" or "text" in name or "decoder" in name or "language" in name or "llm" in name:
            found[name] = shrink(part_class, part_class.model_type) | {"model_type": part_class.model_type}
        elif hasattr(part_class, "model_type"):
            part = part_class()
            found[name] = {key: value for key, value in VISION.items() if knows(part, key)}
            found[name]["model_type"] = part_class.model_type
    return found | MORE.get(model_type, {})


def build(model_type: str, auto):
    config_class = type(AutoConfig.for_model(model_type))
    config = AutoConfig.for_model(model_type, **shrink(config_class, model_type))
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > 30_000_000:
        raise MemoryError(f"{size} weights")
    set_seed(0)
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def gradients_of(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def verdict(model) -> tuple[str, str]:
    """("equal" | "wrong" | "refused", what)."""
    special = {getattr(model.config, name, None) for name in ("image_token_id", "image_token_index", "pad_token_id")}
    ordinary = [i for i in range(3, VOCABULARY) if i not in special]
    generator = torch.Generator().manual_seed(1)
    picked = torch.randint(len(ordinary), (2, LENGTH), generator=generator)
    ids = torch.tensor(ordinary)[picked]
    labels = ids.clone()
    labels[0, :4] = -100
    try:
        attach_soft_q_head(model)
    except (ValueError, RuntimeError) as error:
        return "refused", str(error).splitlines()[0][:300]
    model.train()
    set_seed(2)
    output = model(input_ids=ids, labels=labels, soft_q="values", return_logits=True)
    scored = labels[:, 1:] != -100
    logits = output.logits[:, :-1]
    q = logits.gather(2, ids[:, 1:, None])[..., 0].masked_fill(~scored, 0)
    v = logits.logsumexp(-1).masked_fill(~scored, 0)
    off = max((output.q - q).abs().max().item(), (output.v - v).abs().max().item())
    # Without the logits, as in training: the same numbers and gradients as the model's own forward gives.
    set_seed(2)
    bare = model(input_ids=ids, labels=labels, soft_q="values")
    set_seed(2)
    own = model(input_ids=ids).logits[:, :-1]
    own_q = own.gather(2, ids[:, 1:, None])[..., 0].masked_fill(~scored, 0)
    own_v = own.logsumexp(-1).masked_fill(~scored, 0)
    off = max(off, (bare.q - own_q).abs().max().item(), (bare.v - own_v).abs().max().item())
    expected = gradients_of(model, (own_v - own_q).sum())
    actual = gradients_of(model, (bare.v - bare.q).sum())
    if expected.keys() != actual.keys():
        return "wrong", f"gradients of {sorted(expected.keys() ^ actual.keys())[:3]}"
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    error = torch.stack([(g - actual[name]).norm() for name, g in expected.items()]).norm() / norm
    what = f"Q and V off by {off:.1e}, gradients by {error:.1e}"
    return ("equal" if off < 1e-3 * max(1, own.abs().max().item()) and error < 1e-3 else "wrong"), what


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]


def sweep(names: list[tuple[str, object]], seconds: int = 120) -> dict[str, dict]:
    def too_long(signum, frame):
        raise TimeoutError(f"not done in {seconds} s")

    signal.signal(signal.SIGALRM, too_long)
    found = {}
    for model_type, auto in names:
        signal.alarm(seconds)
        try:
            model = build(model_type, auto)
        except Exception as error:
            kind, what = (
                "not built",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200],
            )
        else:
            try:
                kind, what = verdict(model)
            except Exception as error:
                kind, what = (
                    "failed",
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300],
                )
        finally:
            signal.alarm(0)
        found[model_type] = {"verdict": kind, "what": what, "auto": auto.__name__}
        print(f"{model_type:32} {kind:10} {what}", flush=True)
    return found


def families() -> list[tuple[str, object]]:
    causal = [(name, AutoModelForCausalLM) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    both = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    vision = [(n, AutoModelForImageTextToText) for n in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if n not in both]
    return causal + vision


TABLE = """# Which families the soft-Q head knows

Every family that `AutoModelForCausalLM` and `AutoModelForImageTextToText` of transformers {version} have, built tiny
with random weights (`python -m tests.slow.sweep_families`; raw in `results/decoder_families.json`). "Equal": Q, V and
all gradients are those of the model's own logits, in float32. "Refused": the error says what stands below.

**Equal, {equal}:** {names}

| not equal | verdict | what |
|---|---|---|
{rows}

"Not built" and "failed" say nothing about a family: the sweep does not know how to make it so small, or its own
forward fails then. It is looked at when a model of it is loaded.
"""


def table(found: dict[str, dict]) -> str:
    equal = [name for name, entry in sorted(found.items()) if entry["verdict"] == "equal"]
    rows = [
        f"| {name} | {entry['verdict']} | {entry['what'].replace('|', '/')} |"
        for name, entry in sorted(found.items())
        if entry["verdict"] != "equal"
    ]
    version = transformers.__version__
    return TABLE.format(version=version, equal=len(equal), names=", ".join(equal), rows="\n".join(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--check", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    found = sweep([pair for pair in families() if not arguments.only or pair[0] in arguments.only])
    print(Counter(entry["verdict"] for entry in found.values()))
    if arguments.output:
        result = {"transformers": transformers.__version__, "torch": torch.__version__, "families": found}
        arguments.output.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if arguments.table:
        arguments.table.write_text(table(found), encoding="utf-8")
    if arguments.check:
        before = json.loads(arguments.check.read_text(encoding="utf-8"))["families"]
        changed = [n for n, entry in found.items() if entry["verdict"] != before.get(n, {}).get("verdict")]
        sys.exit(f"Other verdicts than before: {', '.join(changed)}" if changed else 0)


if __name__ == "__main__":
    main()
