"""
One tile of the output projection, read once: `[tokens, vocabulary columns]` of logits folded into per-token
statistics, or turned into the gradient of the loss with respect to the projection's output.

Two implementations of the same two functions: torch operations, here, and Triton kernels on CUDA, where the tile would
otherwise be read and written once for every elementwise operation.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers.utils import is_triton_available

from .statistics import GEM_SLOPE, RowGradients, RunningStatistics


if is_triton_available():
    from . import kernels

# Elements of a row chunk's temporaries: they stay in a core's cache, and are no third tile.
_CHUNK = 2**17


def uses_triton(device: torch.device) -> bool:
    """Whether tiles on `device` are folded by the Triton kernels rather than by torch operations."""
    return device.type == "cuda" and is_triton_available()


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
        stats ([`~soft_q.statistics.RunningStatistics`]):
            Updated in place.
        scale (`float`):
            The model's logit scale.
        softcap (`float`, *optional*):
            The model's final logit softcapping, applied after the scale.
        work (`torch.Tensor`, one dimension, the tile's dtype):
            Memory for a working copy of the tile.
    """
    if uses_triton(tile.device):
        kernels.fold(tile, start, stats, scale, softcap)
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
    fallen = stats.max - new_max
    rescale = fallen.exp()
    if stats.sum_logit is not None:
        stats.sum_logit.add_(tile.sum(1))
    weights = torch.sub(tile, new_max.unsqueeze(1), out=work[: tile.numel()].view_as(tile)).exp_()
    stats.sum_exp.mul_(rescale).add_(weights.sum(1))
    weighted = _row_dot(weights, tile)
    if forbids := bool(weighted.isnan().any()):  # 0 * -inf
        weighted = _row_dot(weights, tile.clamp_(min=least))
    stats.sum_exp_logit.mul_(rescale).add_(weighted)
    if stats.sum_tempered is not None:
        _fold_tempered(tile, new_max, fallen, stats, work, forbids)
    stats.max.copy_(new_max)


def _fold_tempered(
    tile: torch.Tensor,
    new_max: torch.Tensor,
    fallen: torch.Tensor,
    stats: RunningStatistics,
    work: torch.Tensor,
    forbids: bool,
) -> None:
    """
    The sums of exp((l - max) / temperature), and what GEM makes of them. With `forbids` some logits were -inf, and are
    the least finite number in `tile`.
    """
    temperature = stats.asked.temperature
    weights = torch.sub(tile, new_max.unsqueeze(1), out=work[: tile.numel()].view_as(tile))
    weights.div_(temperature).exp_()
    if forbids:
        weights.masked_fill_(tile == torch.finfo(tile.dtype).min, 0)
    rescale = (fallen / temperature).exp()
    stats.sum_tempered.mul_(rescale).add_(weights.sum(1))
    if stats.gem_mass is None:
        return
    if stats.label_logits is not None:
        for rows in _chunks(tile):
            weights[rows].mul_(_log_sigmoid_weights(tile[rows], stats.label_logits[rows]))
    stats.gem_mass.mul_(rescale).add_(weights.sum(1))
    stats.gem_logit.mul_(rescale).add_(_row_dot(weights, tile))


def _log_sigmoid_weights(logits: torch.Tensor, label_logits: torch.Tensor) -> torch.Tensor:
    return (logits - label_logits.unsqueeze(1)).mul_(GEM_SLOPE).sigmoid_()


def _row_dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.bmm(a.unsqueeze(1), b.unsqueeze(2)).view(-1)  # no third tile


def _chunks(tile: torch.Tensor) -> Iterator[slice]:
    rows = max(1, _CHUNK // tile.size(1))
    return (slice(start, start + rows) for start in range(0, tile.size(0), rows))


def gradient(
    tile: torch.Tensor,
    start: int,
    state: RowGradients,
    scale: float,
    softcap: float | None,
    out_dtype: torch.dtype,
    work: torch.Tensor,
) -> torch.Tensor:
    """
    `g_q * onehot(label) + g_v * softmax(logits)`, and the gradients of the statistics that were asked for, carried
    back through softcapping and scale.

    Args:
        tile (`torch.Tensor` of shape `(tokens, columns)`), start (`int`):
            As in [`fold`]. The tile is overwritten.
        state ([`~soft_q.statistics.RowGradients`]):
            What the forward found, and the gradients of the loss with respect to it.
        scale (`float`), softcap (`float`, *optional*):
            As in [`fold`].
        out_dtype (`torch.dtype`):
            Dtype of the returned tile, the one its products are computed in.
        work (`torch.Tensor`, one dimension, the tile's dtype):
            Memory for a working copy of the tile, which the result may lie in.

    Returns:
        `torch.Tensor` of shape `(tokens, columns)`: gradient with respect to the projection's output.
    """
    if uses_triton(tile.device):
        return kernels.gradient(tile, start, state, scale, softcap, out_dtype, work)
    apply_postprocessing_(tile, scale, softcap)
    slope = work[: tile.numel()].view_as(tile)  # of the softcapping: d softcap * tanh(x / softcap) / dx
    if softcap is not None:
        torch.div(tile, softcap, out=slope).square_().neg_().add_(1)
    if state.asked.is_empty:
        tile.sub_(state.values.v.unsqueeze(1)).exp_().mul_(state.given.v.unsqueeze(1))
    else:
        for rows in _chunks(tile):
            tile[rows] = _with_statistics(tile[rows], state.rows(rows))
    local = state.labels - start
    inside = (local >= 0) & (local < tile.size(1))
    tile.scatter_add_(1, local.clamp(0, tile.size(1) - 1).unsqueeze(1), (state.of_label * inside).unsqueeze(1))
    if softcap is not None:
        tile.mul_(slope)
    if scale != 1.0:
        tile.mul_(scale)
    return tile.to(out_dtype)


def _with_statistics(logits: torch.Tensor, state: RowGradients) -> torch.Tensor:
    """The gradient of some rows but for the label's own part; see [`~soft_q.statistics`] for the formulas."""
    asked, values, given = state.asked, state.values, state.given
    gradients = (logits - values.v.unsqueeze(1)).exp_()
    if asked.entropy:
        # p (g_v - g_H (l - V + H)), and 0 for a token that a bias of -inf forbids.
        surprise = (logits - (values.v - values.entropy).unsqueeze(1)).mul_(-given.entropy.unsqueeze(1))
        gradients.mul_(surprise.add_(given.v.unsqueeze(1)).masked_fill_(logits == float("-inf"), 0))
    else:
        gradients.mul_(given.v.unsqueeze(1))
    if asked.temperature:
        tempered = (logits - values.v_tempered.unsqueeze(1)).div_(asked.temperature).exp_()
        of_tempered = given.v_tempered.unsqueeze(1)
        if asked.gem == "log_sigmoid":
            weights = _log_sigmoid_weights(logits, state.label_logits)
            of_tempered = weights.mul_(given.gem.unsqueeze(1)).add_(of_tempered)
        elif asked.gem == "linear":
            of_tempered = of_tempered + given.gem.unsqueeze(1)
        gradients.add_(tempered.mul_(of_tempered))
    if asked.mean:
        gradients.add_((given.mean_logit / state.columns).unsqueeze(1))
    return gradients


def apply_postprocessing_(tile: torch.Tensor, scale: float, softcap: float | None) -> None:
    """Logits of what the projection gives, in place: see [`~soft_q.projection.Projection`]."""
    if scale != 1.0:
        tile.mul_(scale)
    if softcap is not None:
        tile.div_(softcap).tanh_().mul_(softcap)
