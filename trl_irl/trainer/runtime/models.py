"""What a trainer does to a model before and while it trains it."""

import inspect
import os
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.trainer.utils import create_model_from_path, get_config_model_id

from ...rewards.adapters import base_of, is_adapter, merged, tokenizer_of
from ...rewards.frozen_models import whole_language_model
from ...soft_q.head import can_run
from ...soft_q.own_forward import waits_for_gpu


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The language model itself, adapters inside it and PEFT's wrapper not around it."""
    return model.get_base_model() if is_peft_model(model) else model


def can_be_tried(model: PreTrainedModel) -> bool:
    """Whether a model can be run before the first step: whole, and on a GPU if its attention must be there."""
    return can_run(model) and not waits_for_gpu(model)


def keep_outputs_in_float32(accelerator: Accelerator) -> None:
    """
    As accelerate sets FSDP2 up, what a model returns is rounded to the 16 bits of its weights. A loss that is computed
    inside the model does not mind; Q and V of 30 nats would lose an eighth of a nat, and the loss is made of their
    differences. To be called before the model is prepared.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if getattr(policy, "output_dtype", None) is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def check_no_other_adapter(output_dir: str, model: PreTrainedModel | PeftModel) -> None:
    """
    Raises:
        `ValueError`: all weights are trained, and `output_dir` has an adapter of an earlier run: whoever loads the
            folder would get that.
    """
    if not is_peft_model(model) and Path(output_dir).is_dir() and is_adapter(output_dir):  # no question to the Hub
        raise ValueError(
            f"`output_dir: {output_dir}` holds the adapter of an earlier run, and this run trains all weights: "
            "whoever loads the folder would still get the adapter. Name another folder, or delete adapter_config.json "
            "and adapter_model.safetensors there."
        )


def loaded_if_adapter(model, args, processing_class, quantization_config, peft_config) -> tuple:
    """
    What a trainer starts from where `model` is an adapter by name, which TRL does not load: the model that it stands
    for, its tokenizer unless there is one, and no quantisation to do any more. With a new `peft_config` the adapter is
    merged into its base, and without one the training goes on with the adapter itself. Anything else as it is.

    Returns:
        `tuple`: model, processing class and quantisation config.

    Raises:
        `ValueError`: it cannot be merged, or what is asked for needs another start.
    """
    if not (isinstance(model, str) and is_adapter(model)):
        return model, processing_class, quantization_config
    path = model
    kwargs = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
    kwargs.pop("revision", None)  # the adapter's, and not its base's
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if peft_config is not None and is_deepspeed_zero3_enabled():
        raise ValueError(
            f"`model: {path}` is an adapter, and under DeepSpeed ZeRO-3, where no rank has its base whole, it cannot "
            "be merged into it to train a new one. Merge it first (`merge_and_unload`), or go on with the adapter "
            "itself (`use_peft: false`)."
        )
    why = why_reference(args)
    if peft_config is None and why is not None:
        raise ValueError(
            f"`model: {path}` is an adapter to go on with, and {why} needs the policy as it "
            "starts, for which this would have to hold it twice. Set `use_peft: true` (in Python, `peft_config`): the "
            "adapter is then merged, and the merged model is the reference of a new one."
        )
    if processing_class is None:
        processing_class = tokenizer_of(path, trust_remote_code=args.trust_remote_code)
    with whole_language_model(path):
        base = create_model_from_path(base_of(path), **kwargs)
    args.model_init_kwargs = None  # they are used up; TRL would say that it leaves them aside
    if peft_config is None:
        return PeftModel.from_pretrained(base, path, is_trainable=True), processing_class, None
    return merged(base, path), processing_class, None


def why_reference(args, objective=None) -> str | None:
    """
    What asks for a reference, as it was set; `None` if nothing does. The origin of the values is that of `objective`
    if there is one, and else the arguments' own.
    """
    if getattr(args, "lambda_kl", 0) > 0:
        return f"`lambda_kl={args.lambda_kl}`"
    origin = getattr(args if objective is None else objective, "value_origin", "zero")
    return "`value_origin=reference`" if origin == "reference" else None


def default_output_dir(model: str | PreTrainedModel | PeftModel, method: str) -> str:
    """A folder named after the model, as TRL names it where no arguments are given: `Qwen2.5-0.5B-IRL`."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{name.split('/')[-1]}-{method}"


def keep_4bit_weights_trainable(model: torch.nn.Module) -> None:
    # On a CPU with AVX512-BF16, bitsandbytes repacks a 4-bit layer for inference on its first forward in evaluation
    # mode, for good: training after an evaluation would go on with gradients of zero, and no warning. The layer is
    # known by the attribute, so that a machine without bitsandbytes can train everything else.
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def without_trl_head(model: PreTrainedModel) -> None:
    """
    Take off the fused head that SFTTrainer puts on a model (TRL >= 1.13), which is never used here: its forward holds
    on to the original model, so that a copy (a moving average, a reference, a rollback) computes with the original's
    weights.
    """
    forward = vars(model).get("forward")
    function = getattr(forward, "__func__", None)
    code = getattr(function, "__code__", None)  # of a wrapper, which has the name of what it wraps
    if code is not None and code.co_qualname.startswith("add_fused_lm_head."):
        before = inspect.getclosurevars(function).nonlocals["original_forward"]
        del model.forward
        if getattr(before, "__func__", None) is not type(model).forward:  # such as what moves inputs between devices
            model.forward = before


def rows_per_step(trainer) -> int:
    """Rows of an optimiser step, of all micro-batches and processes."""
    args = trainer.args
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.accelerator.num_processes


def sharding_of(args: TrainingArguments) -> str | None:
    """What shards the weights in this run, if anything does."""
    fsdp = bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
    return "DeepSpeed ZeRO-3" if is_deepspeed_zero3_enabled() else "FSDP" if fsdp else None
