"""What a trainer does to a model before and while it trains it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import is_peft_model
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id


def causal_lm(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The language model itself, adapters inside it and PEFT's wrapper not around it."""
    return model.get_base_model() if is_peft_model(model) else model


def default_output_dir(model: str | PreTrainedModel | PeftModel, method: str) -> str:
    """A folder named after the model, as TRL names it where no arguments are given: `Qwen2.5-0.5B-IRL`."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return f"{name.split('/')[-1]}-{method}"


def keep_4bit_weights_trainable(model: torch.nn.Module) -> None:
    # On a CPU with AVX512-BF16, bitsandbytes repacks a 4-bit layer for inference on its first forward in evaluation
    # mode, for good: training after an evaluation would go on with gradients of zero, and no warning.
    for module in model.modules():
        if isinstance(module, Linear4bit):
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


@contextmanager
def no_dropout(model: torch.nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
