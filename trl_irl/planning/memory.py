"""
Memory per GPU of a training, by what it is for and by launcher, at its peak.

Weights, gradients and moments are what PyTorch, DeepSpeed and FSDP2 are documented to keep. What DeepSpeed copies for
a while is documented nowhere: there the formulas are those that agree with the one run of each launcher that was
measured. A test holds all of them to 10 % of `results/irl_step_h200.json` and `results/memory_per_rank.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from .tracing import Batch, Trace


LAUNCHERS = ("single_gpu", "ddp", "zero2", "zero3", "fsdp2")
BUCKET = 500_000_000  # elements of DeepSpeed's buckets of gradients
LIVE = 1_000_000_000  # elements that ZeRO-3 keeps gathered
WORKSPACES = 80 * 2**20  # of cuBLAS and of a process' small things
RESERVE = 2**30  # of the CUDA context, and of memory that is free and in pieces
WIDEST = 1.5  # of the widest tensor of a block, for its gradients: agrees with eight runs measured on a CPU
BITS_4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes of an NF4 weight: its 8-bit scale in 64, and that one's in 256 of them


@dataclass(frozen=True)
class Precision:
    """
    Attributes:
        autocast (`bool`): products in bfloat16.
        four_bits (`bool`): linear layers in NF4 with double quantisation, and adapters in bfloat16, as TRL has them.
        frozen (`int`): bytes of a weight that is not trained, where the launcher leaves it as it was loaded.
    """

    autocast: bool = True
    four_bits: bool = False
    frozen: int = 2


@dataclass(frozen=True)
class Memory:
    """
    Bytes per GPU.

    Attributes:
        weights, optimizer, gradients (`float`): as the launcher shards them; gradients with its buckets.
        gathered (`float`): what is whole for a while: sharded weights, or 4-bit ones as 16 bits.
        activations (`float`): what the forward keeps for the backward.
        head (`float`): tiles of logits, and the gradient of hidden states.
        workspaces (`float`)
        total (`float`): at the peak, which not all of these share.
    """

    weights: float
    optimizer: float
    gradients: float
    gathered: float
    activations: float
    head: float
    workspaces: float
    total: float

    def in_gib(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) / 2**30 for field in fields(self)}


def sizes(counts: dict[torch.dtype, int]) -> int:
    """Bytes of so many numbers by dtype."""
    return sum(count * dtype.itemsize for dtype, count in counts.items())


def memory(
    trace: Trace,
    batch: Batch,
    launcher: str,
    gpus: int,
    precision: Precision,
    checkpointing: bool,
    logit_buffer_mb: float,
    moment_bytes: float | None = None,
    deepspeed: tuple[int, int] = (BUCKET, LIVE),
    accumulates: bool = False,
) -> Memory:
    """
    Memory at the peak of a step: where the backward begins, in its course, or where the optimizer steps.

    Args:
        trace ([`Trace`]):
            With the weights in the dtype that the launcher trains them in.
        batch ([`Batch`])
        launcher (`str`):
            One of `LAUNCHERS`.
        gpus (`int`)
        precision ([`Precision`])
        checkpointing (`bool`):
            Gradient checkpointing.
        logit_buffer_mb (`float`):
            As in [`IRLConfig`].
        moment_bytes (`float`, *optional*):
            Of both of the optimizer's moments for a weight, but for those of embeddings, which Trainer keeps in
            float32; twice the weight's own if unset.
        deepspeed (`tuple[int, int]`, *optional*):
            Elements of a bucket, and that ZeRO-3 keeps gathered.
        accumulates (`bool`, *optional*, defaults to `False`):
            Whether a step has several micro-batches: all but the first begin with gradients there.
    """
    weights, trained = sizes(trace.weights), sizes(trace.trained)
    count = sum(trace.trained.values())
    if precision.four_bits:
        others = sum(trace.weights.values()) - trace.linear - count
        as_loaded = 2 if launcher == "zero2" else precision.frozen  # DeepSpeed casts what is not packed
        weights, trained = trace.linear * BITS_4 + others * as_loaded + 2 * count, 2 * count
    if moment_bytes is not None and trace.head_trained:  # the embeddings, which have as many weights as the head
        moment_bytes += (8 - moment_bytes) * trace.head / count
    moments = 2 * trained if moment_bytes is None else moment_bytes * count
    gradients, at_step, gathered = float(trained), 0.0, 0.0
    if precision.four_bits:
        gathered = 2.0 * trace.largest_linear
    if launcher == "ddp":
        gradients *= 2  # and their buckets
    elif launcher in ("zero2", "zero3"):
        shard, bucket = trained / gpus, min(deepspeed[0] * trained / max(count, 1), trained)
        moments = (4 * count + (8 * count if moment_bytes is None else moments)) / gpus  # float32, with a copy
        if launcher == "zero2":
            gradients = 2 * shard + bucket
        else:
            gathered += min(deepspeed[1], sum(trace.weights.values())) / sum(trace.weights.values()) * weights
            weights /= gpus
            gradients, at_step = shard + 2 * bucket, shard + 4 * count / gpus
    elif launcher == "fsdp2":
        size = 2 if precision.autocast else _largest(trace.weights)
        if precision.autocast:  # it keeps what is trained in float32 and the rest as it was, and gathers in 16 bits
            frozen = sum(trace.weights.values()) - count
            weights, trained = frozen * precision.frozen + 4 * count, 4 * count
            moments = 8 * count if moment_bytes is None else moments
        gathered += (2 * trace.layer + trace.outside) * size
        gradients = trained / gpus + (trace.layer * size if 2 * count > sum(trace.weights.values()) else 0)
        weights, moments = weights / gpus, moments / gpus

    tiles = min(logit_buffer_mb * 2**20, 8 * batch.scored * trace.head / trace.hidden)
    head = tiles + batch.scored * trace.hidden * 12  # hidden states, in float32 too, and their gradient
    # The gradient of the head's weight is there before all others.
    of_head = trace.head * _largest(trace.weights) if trace.head_trained and launcher in ("single_gpu", "ddp") else 0
    # What a block keeps, and the gradients of the widest of it while they are taken.
    one_block = trace.one_block + WIDEST * trace.widest if checkpointing else 0
    if checkpointing:
        kept = trace.inputs + trace.beside
        begins = max(kept + max(head + of_head, one_block), kept + trace.casts)
        activations = kept + one_block
    else:
        begins = trace.saved + head + of_head
        activations = trace.saved
    stays = weights + moments + gathered + WORKSPACES
    if launcher == "single_gpu":
        during = begins + gradients if accumulates else max(begins, gradients + one_block)
    elif launcher == "ddp":  # buckets are made at the first step, and stay
        during = begins + gradients if accumulates else max(begins + trained, gradients)
    else:  # and here they are there all the while
        during = max(begins + gradients, at_step)
    return Memory(weights, moments, gradients, gathered, activations, head, WORKSPACES, stays + during)


def _largest(counts: dict[torch.dtype, int]) -> int:
    return max(dtype.itemsize for dtype in counts)
