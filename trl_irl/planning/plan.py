"""A plan: for each way to train a model, and each launcher, the memory per GPU; and the operations of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from transformers import PreTrainedConfig

from .gpus import GPU
from .memory import LAUNCHERS, RESERVE, Memory, Precision, memory
from .tracing import Batch, Trace, trace


METHODS = ("full", "lora", "qlora")
# Of what a GPU's maker states. 0.5 B weights had 0.19 and 0.14, one run each (`results/irl_step_h200.json` and
# `..._h100.json`); that more weights use more is an assumption.
UTILIZATION = 0.3
_MOMENT_BYTES = {"adamw_8bit": 2.0, "adamw_bnb_8bit": 2.0, "paged_adamw_8bit": 2.0}
_OF_WEIGHTS = ("adamw_torch", "adamw_torch_fused")


@dataclass(frozen=True)
class Setting:
    """
    What of a training decides its memory; names are those of recipes.

    Attributes:
        method (`str`): one of `METHODS`.
        dtype (`torch.dtype`): of the weights.
        bf16 (`bool`): products in bfloat16.
        batch ([`~planning.tracing.Batch`])
        gradient_checkpointing (`bool`)
        logit_buffer_mb (`float`)
        optim (`str`)
        lora (`dict`): keys of [`~peft.LoraConfig`], of methods other than full.
        reference (`bool`): a whole copy of the model is there for the KL.
        gradient_accumulation_steps (`int`): micro-batches of a step.
    """

    method: str
    dtype: torch.dtype
    bf16: bool
    batch: Batch
    gradient_checkpointing: bool
    logit_buffer_mb: float
    optim: str
    lora: dict
    reference: bool = False
    gradient_accumulation_steps: int = 1


@dataclass(frozen=True)
class Option:
    """
    A method and a launcher, with what they take.

    Attributes:
        method, launcher (`str`)
        memory ([`~planning.memory.Memory`])
        fits (`bool`): with a GiB to spare for the CUDA context and for memory in pieces.
        flops (`float`): operations per GPU of a micro-batch, forward and backward.
    """

    method: str
    launcher: str
    memory: Memory
    fits: bool
    flops: float

    def seconds(self, gpu: GPU, utilization: float = UTILIZATION) -> float | None:
        """Of a micro-batch, where the GPU's speed is known."""
        return None if gpu.tflops is None else self.flops / (gpu.tflops * 1e12 * utilization)


def options(config: PreTrainedConfig, setting: Setting, gpus: int, gpu: GPU) -> list[Option]:
    """
    What a setting takes with each launcher for so many GPUs.

    Raises:
        `ValueError`: an optimizer or a model that is not known here.
    """
    if setting.optim not in _OF_WEIGHTS and setting.optim not in _MOMENT_BYTES:
        known = ", ".join((*_OF_WEIGHTS, *_MOMENT_BYTES))
        raise ValueError(f"`optim={setting.optim}`: `plan` knows what {known} keep, and not what this one does.")
    launchers = ("single_gpu",) if gpus == 1 else LAUNCHERS[1:]
    if setting.method == "qlora":  # which the trainer refuses where weights are sharded
        launchers = tuple(name for name in launchers if name not in ("zero3", "fsdp2"))
    traced = cache(partial(trace, config, setting.batch, lora=None if setting.method == "full" else setting.lora))
    return [_option(traced, setting, launcher, gpus, gpu) for launcher in launchers]


def _option(
    traced: Callable[[torch.dtype, bool], Trace], setting: Setting, launcher: str, gpus: int, gpu: GPU
) -> Option:
    dtype, autocast = setting.dtype, setting.bf16
    if setting.method == "qlora":
        dtype = torch.bfloat16
    elif setting.bf16 and launcher in ("zero2", "zero3", "fsdp2"):
        dtype, autocast = torch.bfloat16, False  # they cast the weights themselves
    found = traced(dtype, autocast)
    precision = Precision(setting.bf16, setting.method == "qlora", setting.dtype.itemsize)
    taken = memory(
        found,
        setting.batch,
        launcher,
        gpus,
        precision,
        setting.gradient_checkpointing,
        setting.logit_buffer_mb,
        _MOMENT_BYTES.get(setting.optim),
        accumulates=setting.gradient_accumulation_steps > 1,
    )
    if setting.reference and setting.method == "full":
        taken = _with_reference(taken, sum(found.weights.values()), setting, launcher, gpus, dtype)
    fits = taken.total + RESERVE <= gpu.memory * 2**30
    flops = flops_of(found, setting.batch, setting.gradient_checkpointing, setting.reference)
    return Option(setting.method, launcher, taken, fits, flops)


def _with_reference(
    taken: Memory, count: int, setting: Setting, launcher: str, gpus: int, dtype: torch.dtype
) -> Memory:
    """With a frozen copy of all `count` weights, in the dtype that the launcher holds it in."""
    # FSDP2 leaves it as it was loaded, and TRL wraps it as one: it is gathered whole for its forward.
    held = setting.dtype if launcher == "fsdp2" else dtype
    copy = count * held.itemsize / (gpus if launcher in ("zero3", "fsdp2") else 1)
    weights, total = taken.weights + copy, taken.total + copy
    if launcher == "fsdp2":
        whole = count * (2 if setting.bf16 else held.itemsize)
        total = max(total, weights + taken.optimizer + taken.gradients + whole + taken.workspaces)
    return replace(taken, weights=weights, total=total)


def flops_of(found: Trace, batch: Batch, checkpointing: bool, reference: bool = False) -> float:
    """
    Operations of a micro-batch: forward, the gradients of what each layer is given, those of the trained weights, and
    with checkpointing the forward again. The head multiplies four times, or three where its weight is frozen. A
    reference is one forward more, and its head two products.
    """
    share = sum(found.trained.values()) / sum(found.weights.values())
    head = 2 * batch.scored * found.head * ((4 if found.head_trained else 3) + 2 * reference)
    return found.flops * (2 + share + checkpointing + reference) + head
