"""
What a model's forward keeps for its backward, and how much it computes: the forward itself, on tensors that have a
shape and no memory (`FakeTensorMode`), so that a config is enough and any architecture is counted as it is.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer


# What the counter does not know: attention on a CPU, and the products of experts, of each token with its own.
_OPERATIONS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._grouped_mm: lambda tokens, experts, *_, **__: 2 * math.prod(tokens) * experts[-1],
}


@dataclass(frozen=True)
class Batch:
    """
    A micro-batch.

    Attributes:
        rows (`int`)
        length (`int`): tokens per row.
        scored (`int`): tokens that the loss is over, in all rows together.
    """

    rows: int
    length: int
    scored: int


@dataclass(frozen=True)
class Trace:
    """
    Attributes:
        weights, trained (`dict[torch.dtype, int]`): how many, and how many that a gradient is for, by dtype.
        linear (`int`): weights of linear layers but the head, which a 4-bit model has in 4 bits.
        largest_linear, layer, outside (`int`): weights of the largest of them, of the largest block, and of what is in
            no block: embeddings, head, the last norm.
        head (`int`): weights of the output projection.
        head_trained (`bool`)
        saved (`int`): bytes kept for the backward, all of them.
        inputs, one_block, beside (`int`): of them what gradient checkpointing keeps: the blocks' inputs, then what one
            block keeps while it is computed again, and what is kept outside of blocks.
        widest (`int`): bytes of the largest tensor that a block keeps.
        casts (`int`): bytes of 16-bit copies of trained weights, which autocast keeps until the forward's end.
        flops (`int`): operations of the forward without the head.
        hidden (`int`): numbers of a hidden state.
    """

    weights: dict[torch.dtype, int]
    trained: dict[torch.dtype, int]
    linear: int
    largest_linear: int
    layer: int
    outside: int
    head: int
    head_trained: bool
    saved: int
    inputs: int
    one_block: int
    widest: int
    beside: int
    casts: int
    flops: int
    hidden: int


def trace(
    config: PreTrainedConfig, batch: Batch, dtype: torch.dtype, autocast: bool, lora: dict[str, Any] | None = None
) -> Trace:
    """
    Trace the forward of a causal language model in training.

    Args:
        config ([`~transformers.PreTrainedConfig`])
        batch ([`Batch`])
        dtype (`torch.dtype`):
            Of the weights.
        autocast (`bool`):
            Whether products are in bfloat16 whatever the weights' dtype.
        lora (`dict[str, Any]`, *optional*):
            Keys of [`~peft.LoraConfig`]; all weights are trained without.

    Raises:
        `ValueError`: the model is no causal language model, or cannot be traced: its forward depends on the values of
            its numbers, as where a router chooses experts.
    """
    config = copy.deepcopy(config)
    if config.is_encoder_decoder:
        raise ValueError(
            f"`plan` knows causal language models, and `{config.model_type}` is an encoder-decoder. Train a few steps "
            "(`trl-irl irl --max_steps 3`) and look at the memory that they take."
        )
    try:
        with torch.device("meta"):
            causal = model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"`plan` cannot build a `{config.model_type}` from its config: {error}") from error
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        try:
            with torch.device("meta"):
                model = get_peft_model(causal, LoraConfig(task_type="CAUSAL_LM", **lora))
        except ValueError as error:
            raise ValueError(
                f"`plan` cannot put an adapter on a `{config.model_type}` (`lora_target_modules: "
                f"{lora.get('target_modules')}`): {error}"
            ) from error
    model.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _place_on_cpu(model)
        kept = _Kept(causal)
        try:
            with _quiet(), FlopCounterMode(display=False, custom_mapping=_OPERATIONS) as counted:
                kept.run(batch, autocast)
        except Exception as error:
            hint = ""
            if re.search("BF16|BFloat16", str(error)):  # torch multiplies experts in no other dtype by shapes
                hint = " Set `dtype: bfloat16` (`--dtype bfloat16`)."
            raise ValueError(
                f"`plan` cannot follow the forward of `{config.model_type}` by shapes alone: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}{hint}"
            ) from error
        if lora is not None and autocast:
            kept.widest *= 2  # PEFT gives an adapter in float32 a copy in float32
        return _trace_of(model, causal, kept, counted.get_total_flops())


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs what its fake tensors cannot do, line by line, beside the error."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _place_on_cpu(model: torch.nn.Module) -> None:
    """Fake tensors of a CPU, which autocast knows, in place of those of the meta device; shared ones stay shared."""
    new: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and old not in new:
                    made = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    is_parameter = isinstance(old, torch.nn.Parameter)
                    new[old] = torch.nn.Parameter(made, old.requires_grad) if is_parameter else made
                if old is not None:
                    tensors[name] = new[old]


class _Kept:
    """What is kept for the backward, by the block that keeps it."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        # Storages, held so that no other gets their address.
        self.own = {x.untyped_storage()._cdata: x for x in (*model.parameters(), *model.buffers())}
        self.seen: dict[int, torch.UntypedStorage] = {}
        self.of_block: dict[torch.nn.Module | None, int] = {}
        self.inputs = self.widest = 0
        self.copies = _Copies(self.own)
        self._block: torch.nn.Module | None = None

    @property
    def casts(self) -> int:
        return sum(x.nbytes() for x in self.copies.made.values())

    def run(self, batch: Batch, autocast: bool) -> None:
        hooks = [block.register_forward_pre_hook(self._enter, with_kwargs=True) for block in self.blocks]
        hooks += [block.register_forward_hook(self._leave) for block in self.blocks]
        input_ids = torch.zeros(batch.rows, batch.length, dtype=torch.long)
        self._length = batch.length
        try:
            with (
                self.copies,
                torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x),
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
            ):
                self.model.base_model(input_ids=input_ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, block, args, kwargs) -> None:
        self._block = block
        hidden = args[0] if args else kwargs["hidden_states"]
        self.inputs += hidden.numel() * hidden.element_size()

    def _leave(self, *_) -> None:
        self._block = None

    def _pack(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        # The attention mask is one for all blocks on a GPU; here each casts its own.
        is_mask = x.dim() == 4 and x.shape[1] == 1 and x.shape[-2:] == (self._length, self._length)
        if storage._cdata not in self.own and storage._cdata not in self.seen and not is_mask:
            self.seen[storage._cdata] = storage
            self.of_block[self._block] = self.of_block.get(self._block, 0) + storage.nbytes()
            self.widest = max(self.widest, storage.nbytes() if self._block is not None else 0)
        return x


class _Copies(TorchDispatchMode):
    """The copies that are made of trained weights: autocast's, in 16 bits, which it keeps until it ends."""

    def __init__(self, own: dict[int, torch.Tensor]):
        super().__init__()
        self.own = own
        self.made: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            weight = self.own.get(args[0].untyped_storage()._cdata)
            if weight is not None and weight.requires_grad:
                storage = result.untyped_storage()
                self.made[storage._cdata] = storage
        return result


def _trace_of(model: torch.nn.Module, causal, kept: _Kept, flops: int) -> Trace:
    head = causal.get_output_embeddings()
    weights, trained = _by_dtype(model.parameters()), _by_dtype(p for p in model.parameters() if p.requires_grad)
    linears = [
        module.weight.numel()
        for name, module in causal.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head and ".lora_" not in name
    ]
    blocks = [sum(p.numel() for p in block.parameters()) for block in kept.blocks]
    beside = kept.of_block.get(None, 0)
    return Trace(
        weights=weights,
        trained=trained,
        linear=sum(linears),
        largest_linear=max(linears, default=0),
        layer=max(blocks, default=0),
        outside=sum(weights.values()) - sum(blocks),
        head=head.weight.numel(),
        head_trained=head.weight.requires_grad,
        saved=sum(kept.of_block.values()),
        inputs=kept.inputs,
        one_block=max((kept.of_block.get(block, 0) for block in kept.blocks), default=0),
        widest=kept.widest,
        beside=beside,
        casts=kept.casts,
        flops=flops,
        hidden=head.weight.shape[1],
    )


def _by_dtype(parameters) -> dict[torch.dtype, int]:
    found: dict[torch.dtype, int] = {}
    for parameter in parameters:
        found[parameter.dtype] = found.get(parameter.dtype, 0) + parameter.numel()
    return found
