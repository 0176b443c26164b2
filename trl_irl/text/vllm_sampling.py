"""Completions of prompts with vLLM, where it is installed: the same completions, many times faster on a GPU."""

from collections.abc import Collection

from .sampling import Completion, Prompt, encode_prompts


def load(path: str, dtype: str, adapter: str | None = None):
    """
    vLLM's engine for a model.

    Args:
        path (`str`):
            Folder or Hub id of the model, or of an adapter's base.
        dtype (`str`):
            `"auto"` or a torch data type's name.
        adapter (`str`, *optional*):
            Folder or Hub id of a LoRA adapter for it.

    Raises:
        `ImportError`: vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise ImportError(
            "`backend: vllm` needs vLLM, which is not installed here: `pip install vllm` (it needs a GPU), or leave "
            "`backend` at transformers."
        ) from error
    return LLM(model=path, dtype=dtype, enable_lora=adapter is not None)


def sample(
    engine,
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
    Like [`~text.sampling.sample`], on an engine of [`load`]; vLLM batches by itself. `cuts` are `top_k` and `min_p` of
    a [`~text.samplers.Sampler`], where they are not off.
    """
    from vllm import SamplingParams

    tokenizer = engine.get_tokenizer()
    repeats = num_samples if temperature > 0 else 1
    options = SamplingParams(
        n=repeats,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_new_tokens,
        seed=seed,
        stop_token_ids=sorted(stop_tokens),
        **cuts,
    )
    request = None
    if adapter:
        from vllm.lora.request import LoRARequest

        request = LoRARequest("adapter", 1, adapter)
    asked = [{"prompt_token_ids": ids} for ids in encode_prompts(tokenizer, prompts)]
    results = engine.generate(asked, options, lora_request=request)
    return [
        [
            Completion(
                tokenizer.decode(output.token_ids, skip_special_tokens=True),
                len(output.token_ids),
                output.finish_reason == "stop",
                list(output.token_ids),
            )
            for output in result.outputs
        ]
        * (num_samples // repeats)
        for result in results
    ]
