"""
One tile of the output projection, read once: `[tokens, vocabulary columns]` of logits folded into per-token
statistics, or turned into the gradient of the loss with respect to the projection's output.

Two implementations of the same two functions: torch operations, and Triton kernels on CUDA, where the tile would
otherwise be read and written once for every elementwise operation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.utils import is_triton_available


if is_triton_available():
    import triton
    import triton.language as tl

_BLOCK = 1024


def _on(device: torch.device) -> AbstractContextManager:
    # Triton launches on the current device, which a model with a `device_map` may not be on.
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def uses_triton(device: torch.device) -> bool:
    """Whether tiles on `device` are folded by the Triton kernels rather than by torch operations."""
    return device.type == "cuda" and is_triton_available()


class RunningStatistics:
    """
    What a forward pass keeps of the logits: one number per token and field, updated tile by tile from the left of the
    vocabulary to its right (a streaming logsumexp).

    Args:
        labels (`torch.Tensor` of shape `(tokens,)`, int64):
            The action of each token; its logit is `q`.
        dtype (`torch.dtype`):
            float32, or float64 when the model is.
    """

    def __init__(self, labels: torch.Tensor, dtype: torch.dtype):
        self.labels = labels.contiguous()  # the kernels read one after the other

        def full(value: float) -> torch.Tensor:
            return torch.full(labels.shape, value, dtype=dtype, device=labels.device)

        self.max = full(float("-inf"))
        self.max_before_label = full(float("-inf"))
        self.sum_exp = full(0.0)  # sum of exp(l - max)
        self.sum_exp_logit = full(0.0)  # sum of exp(l - max) * l
        self.q = full(0.0)

    def rows(self, rows: slice) -> RunningStatistics:
        """A view of some tokens: folding into it updates this object."""
        view = object.__new__(RunningStatistics)
        view.__dict__.update({name: tensor[rows] for name, tensor in self.__dict__.items()})
        return view

    def result(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(q, v, entropy, is_top1)`, each `(tokens,)`; `is_top1` is boolean; ties go to the lowest id."""
        v = self.max + self.sum_exp.log()
        entropy = v - self.sum_exp_logit / self.sum_exp
        is_top1 = (self.q >= self.max) & (self.q > self.max_before_label)
        return self.q, v, entropy, is_top1


def fold(
    tile: torch.Tensor,
    start: int,
    stats: RunningStatistics,
    scale: float,
    softcap: float | None,
    work: torch.Tensor,
) -> None:
    """
    Fold a tile into the running statistics.

    Args:
        tile (`torch.Tensor` of shape `(tokens, columns)`, float32 or float64):
            Output of the projection for the vocabulary columns `start ... start + columns - 1`. Overwritten.
        start (`int`):
            Vocabulary id of the tile's first column.
        stats ([`RunningStatistics`]):
            Updated in place.
        scale (`float`):
            The model's logit scale.
        softcap (`float`, *optional*):
            The model's final logit softcapping, applied after the scale.
        work (`torch.Tensor`, one dimension, the tile's dtype):
            Memory for a working copy of the tile.
    """
    if uses_triton(tile.device):
        with _on(tile.device):
            _fold_kernel[(tile.size(0),)](
                tile,
                tile.stride(0),
                stats.labels,
                stats.max,
                stats.max_before_label,
                stats.sum_exp,
                stats.sum_exp_logit,
                stats.q,
                start,
                tile.size(1),
                scale,
                softcap or 1.0,
                HAS_SOFTCAP=softcap is not None,
                BLOCK=_BLOCK,
            )
        return
    apply_postprocessing_(tile, scale, softcap)
    columns = torch.arange(start, start + tile.size(1), device=tile.device)
    local = stats.labels - start
    inside = (local >= 0) & (local < tile.size(1))
    q = tile.gather(1, local.clamp(0, tile.size(1) - 1).unsqueeze(1)).squeeze(1)
    stats.q.copy_(torch.where(inside, q, stats.q))

    tile_max, argmax = tile.max(dim=1)
    # What matters is a tie: a logit left of the label that equals the maximum. `max` gives the first index of its
    # maximum, so where that is not left of the label, no such logit lies in this tile.
    before = torch.where(columns[argmax] < stats.labels, tile_max, float("-inf"))
    torch.maximum(stats.max_before_label, before, out=stats.max_before_label)

    # The least finite number where all logits so far are -inf: the difference of two infinities is NaN.
    least = torch.finfo(tile.dtype).min
    new_max = torch.maximum(stats.max, tile_max).clamp_(min=least)
    rescale = (stats.max - new_max).exp()
    weights = torch.sub(tile, new_max.unsqueeze(1), out=work[: tile.numel()].view_as(tile)).exp_()
    stats.sum_exp.mul_(rescale).add_(weights.sum(1))
    weighted = _row_dot(weights, tile)
    if weighted.isnan().any():  # 0 * -inf
        weighted = _row_dot(weights, tile.clamp_(min=least))
    stats.sum_exp_logit.mul_(rescale).add_(weighted)
    stats.max.copy_(new_max)


def _row_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).view(-1)  # no third tile


def gradient(
    tile: torch.Tensor,
    start: int,
    labels: torch.Tensor,
    v: torch.Tensor,
    grad_q: torch.Tensor,
    grad_v: torch.Tensor,
    scale: float,
    softcap: float | None,
    out_dtype: torch.dtype,
    work: torch.Tensor,
) -> torch.Tensor:
    """
    `g_q * onehot(label) + g_v * softmax(logits)`, carried back through softcapping and scale.

    Args:
        tile (`torch.Tensor` of shape `(tokens, columns)`):
            As in [`fold`]. Overwritten.
        labels, v, grad_q, grad_v (`torch.Tensor` of shape `(tokens,)`):
            The action, V, and the gradients of the loss with respect to q and v.
        out_dtype (`torch.dtype`):
            Dtype of the returned tile, the one its products are computed in.
        work (`torch.Tensor`, one dimension, the tile's dtype):
            Memory for a working copy of the tile, which the result may lie in.

    Returns:
        `torch.Tensor` of shape `(tokens, columns)`: gradient with respect to the projection's output.
    """
    if uses_triton(tile.device):
        out = tile if out_dtype == tile.dtype else work.view(out_dtype)[: tile.numel()].view_as(tile)
        with _on(tile.device):
            _gradient_kernel[(tile.size(0), triton.cdiv(tile.size(1), _BLOCK))](
                tile,
                tile.stride(0),
                out,
                out.stride(0),
                # Autograd hands on expanded gradients, such as a sum's, whose tokens share one number.
                *(x.contiguous() for x in (labels, v, grad_q, grad_v)),
                start,
                tile.size(1),
                scale,
                softcap or 1.0,
                HAS_SOFTCAP=softcap is not None,
                BLOCK=_BLOCK,
            )
        return out
    apply_postprocessing_(tile, scale, softcap)
    slope = work[: tile.numel()].view_as(tile)  # of the softcapping: d softcap * tanh(x / softcap) / dx
    if softcap is not None:
        torch.div(tile, softcap, out=slope).square_().neg_().add_(1)
    tile.sub_(v.unsqueeze(1)).exp_().mul_(grad_v.unsqueeze(1))
    local = labels - start
    inside = (local >= 0) & (local < tile.size(1))
    tile.scatter_add_(1, local.clamp(0, tile.size(1) - 1).unsqueeze(1), (grad_q * inside).unsqueeze(1))
    if softcap is not None:
        tile.mul_(slope)
    if scale != 1.0:
        tile.mul_(scale)
    return tile.to(out_dtype)


def apply_postprocessing_(tile: torch.Tensor, scale: float, softcap: float | None) -> None:
    if scale != 1.0:
        tile.mul_(scale)
    if softcap is not None:
        tile.div_(softcap).tanh_().mul_(softcap)


if is_triton_available():

    @triton.jit
    def _logits(ptr, mask, scale, softcap, HAS_SOFTCAP: tl.constexpr):
        x = tl.load(ptr, mask=mask, other=0.0) * scale
        if HAS_SOFTCAP:
            x = softcap * (2 * tl.sigmoid(2 * x / softcap) - 1)  # softcap * tanh(x / softcap)
        return x

    @triton.jit
    def _fold_kernel(
        tile_ptr,
        stride,
        labels_ptr,
        max_ptr,
        before_ptr,
        sum_ptr,
        weighted_ptr,
        q_ptr,
        start,
        columns,
        scale,
        softcap,
        HAS_SOFTCAP: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        # One program a token. Statistics are kept a lane until the end, so that the loop has no reduction across
        # lanes. The maximum begins at the least finite number: logits may be -inf, and the difference of two
        # infinities is NaN.
        row = tl.program_id(0).to(tl.int64)
        local = tl.load(labels_ptr + row) - start
        lane = tl.arange(0, BLOCK)
        m = tl.full((BLOCK,), -3.4028234663852886e38, tl.float32)
        before = tl.full((BLOCK,), float("-inf"), tl.float32)
        s = tl.zeros((BLOCK,), tl.float32)
        w = tl.zeros((BLOCK,), tl.float32)
        q = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, columns, BLOCK):
            column = begin + lane
            mask = column < columns
            x = _logits(tile_ptr + row * stride + column, mask, scale, softcap, HAS_SOFTCAP)
            new_m = tl.where(mask, tl.maximum(m, x), m)
            rescale = tl.exp(m - new_m)
            e = tl.where(mask, tl.exp(x - new_m), 0.0)
            s = s * rescale + e
            w = w * rescale + tl.where(e > 0, e * x, 0.0)
            q += tl.where(column == local, x, 0.0)
            before = tl.where(mask & (column < local), tl.maximum(before, x), before)
            m = new_m
        old_m = tl.load(max_ptr + row)
        all_m = tl.maximum(old_m, tl.max(m, axis=0))
        lane_rescale = tl.exp(m - all_m)
        old_rescale = tl.exp(old_m - all_m)
        tl.store(sum_ptr + row, tl.load(sum_ptr + row) * old_rescale + tl.sum(s * lane_rescale, axis=0))
        tl.store(weighted_ptr + row, tl.load(weighted_ptr + row) * old_rescale + tl.sum(w * lane_rescale, axis=0))
        tl.store(before_ptr + row, tl.maximum(tl.load(before_ptr + row), tl.max(before, axis=0)))
        tl.store(q_ptr + row, tl.load(q_ptr + row) + tl.sum(q, axis=0))
        tl.store(max_ptr + row, all_m)

    @triton.jit
    def _gradient_kernel(
        tile_ptr,
        stride,
        out_ptr,
        out_stride,
        labels_ptr,
        v_ptr,
        grad_q_ptr,
        grad_v_ptr,
        start,
        columns,
        scale,
        softcap,
        HAS_SOFTCAP: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = column < columns
        x = _logits(tile_ptr + row * stride + column, mask, scale, softcap, HAS_SOFTCAP)
        grad = tl.load(grad_v_ptr + row) * tl.exp(x - tl.load(v_ptr + row))
        local = tl.load(labels_ptr + row) - start
        grad += tl.where(column == local, tl.load(grad_q_ptr + row), 0.0)
        if HAS_SOFTCAP:
            grad *= 1 - (x / softcap) * (x / softcap)
        tl.store(out_ptr + row * out_stride + column, (grad * scale).to(out_ptr.dtype.element_ty), mask=mask)
