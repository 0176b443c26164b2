"""
Memory per GPU and time of a micro-batch from 1.5 B to 72 B weights, on paper: `trl-irl plan` for the sizes of Qwen2.5,
whose configs are written out here, since no hub is needed for it. Nothing of it was run.

```bash
.venv/bin/python -m benchmarks.scale     # results/scale.json, some minutes on a CPU
```
"""

import json
from dataclasses import replace

import torch
from transformers import Qwen2Config

from benchmarks.seeds import RESULTS
from trl_irl.planning.gpus import GPUS
from trl_irl.planning.plan import METHODS, Setting, options
from trl_irl.planning.tracing import Batch


# hidden size, layers, heads, heads of keys and values, feed-forward size, vocabulary, tied embeddings
SIZES = {
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, False),
    "32B": (5120, 64, 40, 8, 27648, 152064, False),
    "72B": (8192, 80, 64, 8, 29568, 152064, False),
}
GPU_COUNTS = (1, 8, 64)
SETTING = Setting(
    method="full",
    dtype=torch.float32,
    bf16=True,
    batch=Batch(8, 1024, 8 * 1023),
    gradient_checkpointing=True,
    logit_buffer_mb=128,
    optim="adamw_torch_fused",
    lora={"r": 16, "target_modules": "all-linear"},
)


def config_of(size: str) -> Qwen2Config:
    hidden, layers, heads, kv_heads, feed_forward, vocabulary, tied = SIZES[size]
    return Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feed_forward,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32768,
        architectures=["Qwen2ForCausalLM"],
    )


def setting_of(method: str) -> Setting:
    """With the dtype that the recipes load weights in: what an adapter leaves as it is may be bfloat16."""
    return replace(SETTING, method=method, dtype=torch.float32 if method == "full" else torch.bfloat16)


def cells(size: str, method: str) -> list[dict]:
    """What each launcher takes at each number of GPUs: GiB per GPU, and seconds of a micro-batch on an H100."""
    found = []
    for gpus in GPU_COUNTS:
        for option in options(config_of(size), setting_of(method), gpus, GPUS["h100"]):
            parts = {name: round(value, 2) for name, value in option.memory.in_gib().items()}
            seconds = round(option.seconds(GPUS["h100"]), 3)
            told = {"model": size, "method": method, "gpus": gpus, "launcher": option.launcher}
            found.append({**told, "gib": parts, "seconds": seconds})
    return found


def main() -> None:
    found = []
    for size in SIZES:
        for method in METHODS:
            found += cells(size, method)
            print(size, method, flush=True)
    lines = ",\n".join(json.dumps(cell) for cell in found)
    (RESULTS / "scale.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
