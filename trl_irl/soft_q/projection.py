"""
The model's output projection: its parameters, its post-processing of logits, and the tiles it is computed in.

`(tokens, vocabulary)` logits exist only where the buffer holds them all: elsewhere a tile is at most `TOKENS_PER_TILE`
tokens by as many vocabulary columns as the buffer allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.trainer.utils import maybe_gather_lm_head_ctx

from .own_forward import Postprocessing, UnknownHeadError, logits_bias


# With all the tokens of a micro-batch in one tile, the weight gradient of a vocabulary tile is one product, written
# once: token-wise chunks would read and write the whole `(vocabulary, hidden)` float32 gradient again for every chunk.
TOKENS_PER_TILE = 4096
COLUMN_MULTIPLE = 16

Tile = tuple[slice, slice]  # rows (tokens) and vocabulary columns


@dataclass(frozen=True)
class Projection:
    """
    From hidden states to Q: `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap)`.

    Attributes:
        weight (`torch.Tensor` of shape `(vocabulary, hidden)`)
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*)
        scale (`float`):
            Multiplier of the logits (Cohere, Granite, Falcon-H1, ...).
        softcap (`float`, *optional*):
            Final logit softcapping (Gemma).
        vocabulary (`int`, *optional*):
            How many of the weight's rows are tokens, the first ones; all of them if unset.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocabulary: int | None = None

    @property
    def columns(self) -> int:
        """Tokens of the vocabulary: columns of the logits."""
        return self.weight.size(0) if self.vocabulary is None else self.vocabulary

    @classmethod
    def of(cls, model: PreTrainedModel, postprocessing: Postprocessing, with_adapters: bool = True) -> Projection:
        """
        The projection of a causal language model as it is now (FSDP and PEFT may replace the head's parameters).

        A sharded DTensor that is left is gathered once, for tensor parallelism differentiably. Parameters partitioned
        by ZeRO-3 are left as they are: use [`gathered`] around every access, in forward and in backward.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                The causal language model itself, not its PEFT wrapper.
            postprocessing ([`~soft_q.own_forward.Postprocessing`]):
                What it does to its logits.
            with_adapters (`bool`, *optional*, defaults to `True`):
                If `False` and PEFT trains a copy of the head (`modules_to_save`) or rows of it
                (`trainable_token_indices`), the original head.
        """
        head = model.get_output_embeddings()
        for module in head.modules():
            # Nobody calls the head's forward, before which FSDP2 would gather a head that it holds apart: the head of
            # an adapter (`modules_to_save`), or that of a model of text and images. After a backward it is sharded
            # again; without one it is gathered for this once, below.
            if isinstance(module, FSDPModule) and torch.is_grad_enabled():
                module.unshard()
        if isinstance(head, ModulesToSaveWrapper):
            if with_adapters and not head.disable_adapters and head.active_adapters:
                head = head.modules_to_save[head.active_adapters[0]]
            else:
                head = head.original_module
        elif isinstance(head, TrainableTokensWrapper) and not with_adapters:
            head = head.original_module  # its own `weight` is that with the trained rows in place
        weight, bias = head.weight, getattr(head, "bias", None)
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
            bias = bias.full_tensor() if bias is not None else None
        if postprocessing.adds_bias:
            added = logits_bias(model).to(weight.device)
            bias = added if bias is None else bias + added
        return cls(weight, bias, postprocessing.scale, postprocessing.softcap, postprocessing.vocabulary)

    def gathered(self) -> AbstractContextManager:
        """Context in which parameters that ZeRO-3 has partitioned are whole; nothing to do elsewhere."""
        # None of a whole model beside a partitioned one; and a bias may be a buffer (Marian), which never is.
        partitioned = [x for x in (self.weight, self.bias) if hasattr(x, "ds_status")]
        return maybe_gather_lm_head_ctx(*partitioned) if partitioned else nullcontext()

    @property
    def tile_columns(self) -> int:
        """Vocabulary columns as tiles count them, in whole multiples."""
        return -(-self.columns // COLUMN_MULTIPLE) * COLUMN_MULTIPLE

    def tiles(self, tokens: int, buffer_bytes: int) -> list[Tile]:
        """
        Rows (tokens) and vocabulary columns of each tile, all rows of some columns before the next columns.

        Args:
            tokens (`int`):
                Number of tokens in all.
            buffer_bytes (`int`):
                Memory for one tile of float32 logits and the working copy that its statistics or its gradient need.
        """
        vocabulary = self.columns
        elements = max(COLUMN_MULTIPLE, buffer_bytes // 8)  # half of the buffer, as float32
        most = tokens if tokens * self.tile_columns <= elements else TOKENS_PER_TILE
        rows = max(1, min(tokens, most, elements // COLUMN_MULTIPLE))
        columns = max(1, elements // rows // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        return [
            (slice(row, min(row + rows, tokens)), slice(column, min(column + columns, vocabulary)))
            for column in range(0, vocabulary, columns)
            for row in range(0, tokens, rows)
        ]


def check_head(model: PreTrainedModel) -> None:
    """
    Refuse heads whose effect is not `hidden @ weight.T + bias`.

    Raises:
        `ValueError`: the head carries an adapter, is quantised, or the model has none; or the model is compiled.
    """
    if type(model).__name__ == "OptimizedModule":  # its class is private, and slow to import
        raise ValueError(
            "The model is what `torch.compile` made of one, which cannot be asked for Q and V. Pass the model itself, "
            "and set `torch_compile=True` to compile its layers."
        )
    head = model.get_output_embeddings()
    name = type(model).__name__
    if head is None:
        raise ValueError(
            f"{name} has no output embeddings (`get_output_embeddings()` is None), so it has no Q-values. Pass a "
            "causal language model, e.g. one loaded with `AutoModelForCausalLM`."
        )
    if isinstance(head, BaseTunerLayer) or (
        isinstance(head, AuxiliaryTrainingWrapper)
        and not isinstance(head, ModulesToSaveWrapper | TrainableTokensWrapper)
    ):
        raise ValueError(
            f"The output head of {name} carries a PEFT adapter ({type(head).__name__}). The soft-Q head multiplies by "
            "the head's own weight, so the adapter would be left out of Q and V and never be trained. Remove "
            "'lm_head' from `target_modules`, or train the whole head with `modules_to_save=['lm_head']`."
        )
    if isinstance(getattr(head, "original_module", None), AuxiliaryTrainingWrapper):
        raise ValueError(
            f"Both `modules_to_save` and `trainable_token_indices` reach the output head of {name}: one trains all of "
            "it, the other some of its rows. Set one of them. (TRL sets the second for tokens that a model in "
            "`chat_template_path` adds; a `.jinja` file there adds none.)"
        )
    if isinstance(head, TrainableTokensWrapper) and hasattr(head.original_module.weight, "ds_id"):
        raise ValueError(
            f"`trainable_token_indices` reach the output head of {name}, and DeepSpeed ZeRO-3 partitions its weight: "
            "PEFT cannot put the trained rows into a part of it. Use ZeRO-2 or DDP, or train the embeddings whole: "
            "`modules_to_save=['embed_tokens', 'lm_head']`."
        )
    trained = getattr(head, "original_module", head)
    if not isinstance(getattr(trained, "weight", None), torch.Tensor) or (more := _parameters_beside(trained)):
        what = f"weights beside `weight` and `bias` ({', '.join(more)})" if hasattr(trained, "weight") else "layers"
        raise ValueError(
            f"The output head of {name} is a {type(trained).__name__} with {what}, and the soft-Q head multiplies by "
            "`weight` alone: the rest would be left out of Q and V and never be trained. Let "
            "`get_output_embeddings()` return a plain `nn.Linear`, and call what comes before it in the forward."
        )
    if not head.weight.is_floating_point():
        raise ValueError(
            f"The output head of {name} is quantised ({type(head).__name__}), and Q and V need its float weight. Keep "
            "it out of quantisation, e.g. `BitsAndBytesConfig(..., llm_int8_skip_modules=['lm_head'])`."
        )


def _parameters_beside(head: nn.Module) -> list[str]:
    # A parametrised weight is computed from others when it is asked for, and its gradient reaches them.
    names = [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    return [name for name in names if name not in ("weight", "bias") and not name.startswith("parametrizations.")]


def check_linear(model: PreTrainedModel, projection: Projection, hidden: torch.Tensor) -> None:
    """
    Refuse a head that does not give what its weight and bias give, also where its outputs are large: a soft cap or a
    normalised weight of its own may not show on a model's first logits.

    Args:
        model ([`~transformers.PreTrainedModel`])
        projection ([`Projection`]):
            Of the model.
        hidden (`torch.Tensor` of shape `(positions, hidden)`):
            Hidden states of the model, finite. They are scaled up for outputs of up to a thousand.

    Raises:
        [`~soft_q.own_forward.UnknownHeadError`]
    """
    head, weight = model.get_output_embeddings(), projection.weight
    bias = getattr(head, "bias", None)  # the head's own: what a model adds to its logits comes later
    hidden = hidden.to(weight)
    of_inputs, of_outputs = (x.abs().amax(-1).float() for x in (hidden, nn.functional.linear(hidden, weight)))
    factors = torch.logspace(0, 3, len(hidden), device=hidden.device) / of_outputs.clamp(min=1e-6)
    factors = torch.minimum(factors, 1e4 / of_inputs.clamp(min=1e-6))  # finite in float16
    hidden = (hidden * factors[:, None]).to(hidden.dtype)
    expected, actual = nn.functional.linear(hidden, weight, bias).float(), head(hidden).float()
    tolerance = 0.02 if hidden.dtype.itemsize == 2 else 1e-3
    difference = (actual - expected).masked_fill(actual == expected, 0)  # a bias of -inf masks a token for good
    size = expected.masked_fill(expected.isinf(), 0).abs().amax(-1)
    if not (difference.abs().amax(-1) <= tolerance * size).all():
        raise UnknownHeadError(
            f"The output head of {type(model).__name__}, {type(head).__name__}, does more than multiply by its weight "
            "and add its bias (or a hook on it does), and the soft-Q head would leave that out. Training would "
            "optimise the wrong function. Please report the architecture."
        )


def product_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """
    Dtype in which the products with the weight are computed; their sums are float32 (float64 for float64 input).

    CUDA multiplies bfloat16 and float16 with float32 sums. Elsewhere float32 it is: a CPU product of bfloat16 rounds
    its sums, and r = Q - gamma * V' is a small difference of large numbers.
    """
    promoted = torch.promote_types(hidden.dtype, weight.dtype)
    if hidden.device.type != "cuda":
        return torch.promote_types(promoted, torch.float32)
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else promoted


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def project(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, columns: slice, buffer: torch.Tensor
) -> torch.Tensor:
    """
    `hidden @ weight.T + bias[columns]` into the front of `buffer`, with float32 sums.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden)`)
        weight (`torch.Tensor` of shape `(columns, hidden)`, same dtype)
        bias (`torch.Tensor` of shape `(vocabulary,)`, *optional*)
        columns (`slice`)
        buffer (`torch.Tensor`, one dimension, float32 or float64)

    Returns:
        `torch.Tensor` of shape `(tokens, columns)`, a contiguous view of `buffer`.
    """
    tile = buffer[: hidden.size(0) * weight.size(0)].view(hidden.size(0), weight.size(0))
    if hidden.dtype == buffer.dtype:
        torch.mm(hidden, weight.t(), out=tile)
    else:
        torch.mm(hidden, weight.t(), out_dtype=buffer.dtype, out=tile)  # CUDA only, see `product_dtype`
    if bias is not None:
        tile.add_(bias[columns])
    return tile


def _size(tile: Tile) -> int:
    rows, columns = tile
    return (rows.stop - rows.start) * (columns.stop - columns.start)


@contextmanager
def tile_memory(
    device: torch.device, tiles: list[Tile], dtype: torch.dtype, count: int = 2
) -> Iterator[tuple[torch.Tensor, ...]]:
    """
    Flat memory for `count` times the largest of the tiles, used again for every tile: fresh memory would be paged in
    anew each time. Each is an allocation of its own, so that one can outlive the others.

    Autocast is off inside: dtypes are chosen here, and autocast would round float32 operands.
    """
    elements = max(map(_size, tiles), default=0)
    with torch.autocast(device.type, enabled=False):
        yield tuple(torch.empty(elements, dtype=dtype, device=device) for _ in range(count))


def projection_gradients(
    hidden: torch.Tensor,
    projection: Projection,
    wanted: tuple[bool, bool, bool],
    dtype: torch.dtype,
    buffer_bytes: int,
    logit_gradient: Callable[[slice, slice, torch.Tensor, torch.Tensor], torch.Tensor],
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """
    Gradients of hidden states, weight and bias: each tile of the projection is computed again, turned into the
    gradient of the loss with respect to it, and multiplied out with float32 sums.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden)`)
        projection ([`Projection`])
        wanted (`tuple[bool, bool, bool]`):
            Which of the gradients of hidden states, weight and bias to compute; the others are `None`.
        dtype (`torch.dtype`):
            Dtype of the products, see [`product_dtype`].
        buffer_bytes (`int`):
            As in [`Projection.tiles`].
        logit_gradient (`Callable`):
            From rows, columns, the tile of the projection's output and flat memory of that size (it may overwrite
            both) to the gradient with respect to that output, in `dtype`.
        kept (`torch.Tensor`, *optional*):
            The output where it is a single tile and was kept, flat; it is overwritten.

    Returns:
        The three gradients, each in its tensor's dtype.
    """
    weight, bias = projection.weight, projection.bias
    accumulate = sum_dtype(dtype)
    tiles = projection.tiles(len(hidden), buffer_bytes)
    with (
        projection.gathered(),
        tile_memory(hidden.device, tiles, accumulate, count=1 if kept is not None else 2) as (*buffers, work),
    ):
        grad_hidden, grad_weight, grad_bias = (
            torch.zeros(tensor.shape, dtype=sums, device=tensor.device) if is_wanted else None
            for tensor, sums, is_wanted in zip(
                (hidden, weight, bias), (accumulate, weight.dtype, accumulate), wanted, strict=True
            )
        )
        cast_hidden, slab = hidden.to(dtype), None
        for rows, columns in tiles:
            if rows.start == 0:  # the first of these columns
                cast_weight = weight[columns].to(dtype)
                if grad_weight is not None:
                    # Rounded to the weight's dtype once, when all rows are in it; never the whole gradient in float32.
                    exact = weight.dtype == accumulate
                    slab = grad_weight[columns] if exact else torch.empty_like(cast_weight, dtype=accumulate)
            if kept is None:
                tile = project(cast_hidden[rows], cast_weight, bias, columns, *buffers)
            else:
                tile = kept.view(len(cast_hidden), len(cast_weight))
            tile = logit_gradient(rows, columns, tile, work)
            if grad_hidden is not None:
                _add_product_(grad_hidden[rows], tile, cast_weight, first=columns.start == 0)
            if slab is not None:
                _add_product_(slab, tile.t(), cast_hidden[rows], first=rows.start == 0)
                if rows.stop == len(hidden) and slab.dtype != weight.dtype:
                    grad_weight[columns] = slab
            if grad_bias is not None:
                grad_bias[columns] += tile.sum(0, dtype=accumulate)
        return tuple(
            None if grad is None else grad.to(tensor.dtype)
            for grad, tensor in zip((grad_hidden, grad_weight, grad_bias), (hidden, weight, bias), strict=True)
        )


def _add_product_(accumulator: torch.Tensor, a: torch.Tensor, b: torch.Tensor, first: bool) -> None:
    """`accumulator += a @ b`, or `=` for the first: float32 sums of products in the dtype of `a` and `b`."""
    kwargs = {} if a.dtype == accumulator.dtype else {"out_dtype": accumulator.dtype}
    if first:
        torch.mm(a, b, out=accumulator, **kwargs)
    else:
        torch.addmm(accumulator, a, b, out=accumulator, **kwargs)
