"""The Triton kernels of [`~soft_q.tiles`]: a tile is read once, and its gradient written once."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

from .statistics import GEM_SLOPE, RowGradients, RunningStatistics


_BLOCK = 1024


def _flags(asked, softcap: float | None) -> dict:
    return {
        "HAS_SOFTCAP": softcap is not None,
        "HAS_ENTROPY": asked.entropy,
        "HAS_MEAN": asked.mean,
        "HAS_TEMPERED": asked.temperature is not None,
        "HAS_GEM": asked.gem is not None,
        "HAS_SIGMOID": asked.gem == "log_sigmoid",
    }


def fold(tile: torch.Tensor, start: int, stats: RunningStatistics, scale: float, softcap: float | None) -> None:
    """As [`~soft_q.tiles.fold`]."""

    def pointer(x: torch.Tensor | None) -> torch.Tensor:
        return stats.q if x is None else x  # which the kernel then leaves alone

    flags = _flags(stats.asked, softcap)
    del flags["HAS_ENTROPY"]  # every forward has it
    with torch.cuda.device(tile.device) if tile.is_cuda else nullcontext():
        # Triton launches on the current device, which a model with a `device_map` may not be on.
        _fold_kernel[(tile.size(0),)](
            tile,
            tile.stride(0),
            stats.labels,
            stats.max,
            stats.max_before_label,
            stats.sum_exp,
            stats.sum_exp_logit,
            stats.q,
            pointer(stats.sum_logit),
            pointer(stats.sum_tempered),
            pointer(stats.gem_mass),
            pointer(stats.gem_logit),
            pointer(stats.label_logits),
            start,
            tile.size(1),
            scale,
            softcap or 1.0,
            1 / (stats.asked.temperature or 1.0),
            GEM_SLOPE,
            **flags,
            BLOCK=_BLOCK,
        )


def gradient(
    tile: torch.Tensor,
    start: int,
    state: RowGradients,
    scale: float,
    softcap: float | None,
    out_dtype: torch.dtype,
    work: torch.Tensor,
) -> torch.Tensor:
    """As [`~soft_q.tiles.gradient`]."""
    out = tile if out_dtype == tile.dtype else work.view(out_dtype)[: tile.numel()].view_as(tile)
    values, zeros = state.values, torch.zeros_like(state.values.v)
    given = state.given._replace(**{name: zeros for name in ("v", "gem") if getattr(state.given, name) is None})
    of_mean = zeros if given.mean_logit is None else given.mean_logit / state.columns
    rows = (
        state.labels,
        values.v,
        state.of_label,
        given.v,
        values.entropy,
        zeros if given.entropy is None else given.entropy,
        of_mean,
        values.v_tempered,
        zeros if given.v_tempered is None else given.v_tempered,
        given.gem,
        state.label_logits,
    )
    with torch.cuda.device(tile.device) if tile.is_cuda else nullcontext():
        _gradient_kernel[(tile.size(0), triton.cdiv(tile.size(1), _BLOCK))](
            tile,
            tile.stride(0),
            out,
            out.stride(0),
            # Autograd hands on expanded gradients, such as a sum's, whose tokens share one number.
            *(values.v if x is None else x.contiguous() for x in rows),
            start,
            tile.size(1),
            scale,
            softcap or 1.0,
            1 / (state.asked.temperature or 1.0),
            GEM_SLOPE,
            **_flags(state.asked, softcap),
            BLOCK=_BLOCK,
        )
    return out


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
    mean_ptr,
    tempered_ptr,
    mass_ptr,
    gem_ptr,
    label_logits_ptr,
    start,
    columns,
    scale,
    softcap,
    coldness,
    slope,
    HAS_SOFTCAP: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_TEMPERED: tl.constexpr,
    HAS_GEM: tl.constexpr,
    HAS_SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One program a token. Statistics are kept a lane until the end, so that the loop has no reduction across lanes.
    # The maximum begins at the least finite number: logits may be -inf, and the difference of two infinities is NaN.
    row = tl.program_id(0).to(tl.int64)
    local = tl.load(labels_ptr + row) - start
    lane = tl.arange(0, BLOCK)
    m = tl.full((BLOCK,), -3.4028234663852886e38, tl.float32)
    before = tl.full((BLOCK,), float("-inf"), tl.float32)
    s = tl.zeros((BLOCK,), tl.float32)
    w = tl.zeros((BLOCK,), tl.float32)
    q = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    tempered = tl.zeros((BLOCK,), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    gem = tl.zeros((BLOCK,), tl.float32)
    if HAS_SIGMOID:
        label_logit = tl.load(label_logits_ptr + row)
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
        if HAS_MEAN:
            mean += tl.where(mask, x, 0.0)
        if HAS_TEMPERED:
            rescale_t = tl.exp((m - new_m) * coldness)
            t = tl.where(mask, tl.exp((x - new_m) * coldness), 0.0)
            tempered = tempered * rescale_t + t
            if HAS_GEM:
                if HAS_SIGMOID:
                    t = t * tl.sigmoid((x - label_logit) * slope)
                mass = mass * rescale_t + t
                gem = gem * rescale_t + tl.where(t > 0, t * x, 0.0)
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
    if HAS_MEAN:
        tl.store(mean_ptr + row, tl.load(mean_ptr + row) + tl.sum(mean, axis=0))
    if HAS_TEMPERED:
        lanes_t = tl.exp((m - all_m) * coldness)
        old_t = tl.exp((old_m - all_m) * coldness)
        tl.store(tempered_ptr + row, tl.load(tempered_ptr + row) * old_t + tl.sum(tempered * lanes_t, axis=0))
        if HAS_GEM:
            tl.store(mass_ptr + row, tl.load(mass_ptr + row) * old_t + tl.sum(mass * lanes_t, axis=0))
            tl.store(gem_ptr + row, tl.load(gem_ptr + row) * old_t + tl.sum(gem * lanes_t, axis=0))


@triton.jit
def _gradient_kernel(
    tile_ptr,
    stride,
    out_ptr,
    out_stride,
    labels_ptr,
    v_ptr,
    of_label_ptr,
    grad_v_ptr,
    entropy_ptr,
    grad_entropy_ptr,
    of_mean_ptr,
    tempered_ptr,
    grad_tempered_ptr,
    grad_gem_ptr,
    label_logits_ptr,
    start,
    columns,
    scale,
    softcap,
    coldness,
    slope,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_MEAN: tl.constexpr,
    HAS_TEMPERED: tl.constexpr,
    HAS_GEM: tl.constexpr,
    HAS_SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < columns
    x = _logits(tile_ptr + row * stride + column, mask, scale, softcap, HAS_SOFTCAP)
    p = tl.exp(x - tl.load(v_ptr + row))
    grad = tl.load(grad_v_ptr + row) * p
    if HAS_ENTROPY:
        surprise = x - tl.load(v_ptr + row) + tl.load(entropy_ptr + row)
        grad -= tl.where(p > 0, p * surprise, 0.0) * tl.load(grad_entropy_ptr + row)
    if HAS_TEMPERED:
        t = tl.exp((x - tl.load(tempered_ptr + row)) * coldness)
        grad += t * tl.load(grad_tempered_ptr + row)
        if HAS_GEM:
            if HAS_SIGMOID:
                t = t * tl.sigmoid((x - tl.load(label_logits_ptr + row)) * slope)
            grad += t * tl.load(grad_gem_ptr + row)
    if HAS_MEAN:
        grad += tl.load(of_mean_ptr + row)
    local = tl.load(labels_ptr + row) - start
    grad += tl.where(column == local, tl.load(of_label_ptr + row), 0.0)
    if HAS_SOFTCAP:
        grad *= 1 - (x / softcap) * (x / softcap)
    tl.store(out_ptr + row * out_stride + column, (grad * scale).to(out_ptr.dtype.element_ty), mask=mask)
