"""
One tile of the output projection, read once: `[tokens, vocabulary columns]` of logits folded into per-token
statistics, or turned into the gradient of the loss with respect to the projection's output.

Two implementations of the same two functions: torch operations, here, and Triton kernels on CUDA, where the tile would
otherwise be read and written once for every elementwise operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from transformers.utils import is_triton_available

from .statistics import GEM_SLOPE, RowGradients, RunningStatistics


if is_triton_available():
    from . import kernels

# Elements of the rows that a CPU takes at a time, so that one operation finds in the cache what the last one left.
_CHUNK = 2**19
_LOG2_E = 1 / math.log(2)


def uses_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tiles are folded by the Triton kernels, whose sums are float32, rather than by torch operations."""
    return device.type == "cuda" and dtype != torch.float64 and is_triton_available()


def fold_keeps(device: torch.device, dtype: torch.dtype, scale: float, softcap: float | None) -> bool:
    """Whether [`fold`] leaves a tile without forbidden tokens as it was, so that [`gradient`] can take it."""
    return uses_triton(device, dtype) or (scale == 1.0 and softcap is None)


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
    if uses_triton(tile.device, tile.dtype):
        kernels.fold(tile, start, stats, scale, softcap)
        return
    apply_postprocessing_(tile, scale, softcap)
    more = _Memory()
    for rows in chunks(tile):
        _fold_rows(tile[rows], start, stats.rows(rows), work, more)


def _fold_rows(tile: torch.Tensor, start: int, stats: RunningStatistics, work: torch.Tensor, more: _Memory) -> None:
    local = stats.labels - start
    inside = (local >= 0) & (local < tile.size(1))
    q = tile.gather(1, local.clamp(0, tile.size(1) - 1).unsqueeze(1)).squeeze(1)
    stats.q.copy_(torch.where(inside, q, stats.q))

    tile_max = tile.amax(dim=1)
    # What matters is a tie: a logit left of the label that equals the maximum. `argmax` gives the first index of its
    # maximum, so that only rows are looked at whose label is one of the largest here.
    before = tile_max.masked_fill(local < tile.size(1), float("-inf"))
    largest = (inside & (q == tile_max)).nonzero().squeeze(1)
    ties = tile[largest].argmax(1) < local[largest]
    before[largest] = tile_max[largest].masked_fill(~ties, float("-inf"))
    torch.maximum(stats.max_before_label, before, out=stats.max_before_label)

    # The least finite number where all logits so far are -inf: the difference of two infinities is NaN.
    least = torch.finfo(tile.dtype).min
    new_max = torch.maximum(stats.max, tile_max).clamp_(min=least)
    fallen = stats.max - new_max
    rescale = fallen.exp()
    if stats.sum_logit is not None:
        stats.sum_logit.add_(tile.sum(1))
    weights = work[: tile.numel()].view_as(tile)
    exp_(torch.sub(tile, new_max.unsqueeze(1), out=weights))
    stats.sum_exp.mul_(rescale).add_(weights.sum(1))
    weighted = weights.mul_(tile).sum(1)
    if forbids := bool(weighted.isnan().any()):  # 0 * -inf
        exp_(torch.sub(tile, new_max.unsqueeze(1), out=weights))
        weighted = weights.mul_(tile.clamp_(min=least)).sum(1)
        stats.forbids[0] = True
    stats.sum_exp_logit.mul_(rescale).add_(weighted)
    if stats.sum_tempered is not None:
        _fold_tempered(tile, new_max, fallen, stats, weights, forbids, more)
    stats.max.copy_(new_max)


def _fold_tempered(
    tile: torch.Tensor,
    new_max: torch.Tensor,
    fallen: torch.Tensor,
    stats: RunningStatistics,
    weights: torch.Tensor,
    forbids: bool,
    more: _Memory,
) -> None:
    """
    The sums of exp((l - max) / temperature), in the memory of `weights`, and what GEM makes of them. With `forbids`
    some logits were -inf, and are the least finite number in `tile`.
    """
    temperature = stats.asked.temperature
    _tempered(tile, new_max, temperature, weights)
    if forbids:
        weights.masked_fill_(tile == torch.finfo(tile.dtype).min, 0)
    rescale = (fallen / temperature).exp()
    stats.sum_tempered.mul_(rescale).add_(weights.sum(1))
    if stats.gem_mass is None:
        return
    if stats.label_logits is not None:
        weights.mul_(_log_sigmoid_weights(tile, stats.label_logits, more(0, tile)))
    stats.gem_mass.mul_(rescale).add_(weights.sum(1))
    stats.gem_logit.mul_(rescale).add_(weights.mul_(tile).sum(1))


def _tempered(logits: torch.Tensor, origin: torch.Tensor, temperature: float, out: torch.Tensor) -> torch.Tensor:
    """exp((l - origin) / temperature), in one pass beside the exponential's own."""
    coldness = _LOG2_E / temperature
    return torch.add((-origin * coldness).unsqueeze(1), logits, alpha=coldness, out=out).exp2_()


def _log_sigmoid_weights(logits: torch.Tensor, label_logits: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    return torch.add((-GEM_SLOPE * label_logits).unsqueeze(1), logits, alpha=GEM_SLOPE, out=out).sigmoid_()


def exp_(x: torch.Tensor) -> torch.Tensor:
    """exp(x) in place. On a CPU torch's `exp2` takes a quarter of the time of its `exp`, for one rounding more."""
    return x.mul_(_LOG2_E).exp2_()


class _Memory:
    """Memory of the size of some rows, made when it is first needed and then used for one chunk after the other."""

    def __init__(self):
        self._made: list[torch.Tensor] = []

    def __call__(self, i: int, like: torch.Tensor) -> torch.Tensor:
        """The `i`-th piece, of the shape of `like`, which is no larger than the first that asked."""
        while len(self._made) <= i:
            self._made.append(torch.empty_like(like))
        return self._made[i][: like.size(0)]


def chunks(tile: torch.Tensor) -> Iterator[slice]:
    """Rows of a tile that fit into a CPU's cache; on a GPU all of them."""
    rows = max(1, _CHUNK // tile.size(1)) if tile.device.type == "cpu" else tile.size(0)
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
    if uses_triton(tile.device, tile.dtype):
        return kernels.gradient(tile, start, state, scale, softcap, out_dtype, work)
    apply_postprocessing_(tile, scale, softcap)
    slope = work[: tile.numel()].view_as(tile)  # of the softcapping: d softcap * tanh(x / softcap) / dx
    if softcap is not None:
        torch.div(tile, softcap, out=slope).square_().neg_().add_(1)
    more = _Memory()
    for rows in chunks(tile):
        _gradient_rows(tile[rows], state.rows(rows), more)
    local = state.labels - start
    inside = (local >= 0) & (local < tile.size(1))
    tile.scatter_add_(1, local.clamp(0, tile.size(1) - 1).unsqueeze(1), (state.of_label * inside).unsqueeze(1))
    if softcap is not None:
        tile.mul_(slope)
    if scale != 1.0:
        tile.mul_(scale)
    return tile.to(out_dtype)


def _gradient_rows(x: torch.Tensor, state: RowGradients, more: _Memory) -> None:
    """
    Logits of some rows overwritten by their gradient, but for the label's own part; see [`~soft_q.statistics`] for the
    formulas.
    """
    asked, values, given = state.asked, state.values, state.given

    def column(values: torch.Tensor) -> torch.Tensor:
        return values.unsqueeze(1)

    factor = given.v_tempered  # of the tempered policy's probabilities, a number for each row or for each logit
    if asked.gem == "linear" and given.gem is not None:
        factor = given.gem if factor is None else factor + given.gem
    factor = None if factor is None else column(factor)
    if asked.gem == "log_sigmoid" and given.gem is not None:
        weights = _log_sigmoid_weights(x, state.label_logits, more(2, x)).mul_(column(given.gem))
        factor = weights if factor is None else weights.add_(factor)
    if factor is not None:
        tempered = _tempered(x, values.v_tempered, asked.temperature, more(0, x))
    forbidden = x == float("-inf") if asked.entropy and state.forbids else None
    if asked.entropy and given.entropy is not None:
        x.sub_(column(values.v))
        p = torch.mul(x, _LOG2_E, out=more(1, x)).exp2_()
        # p (g_v - g_H (l - V + H)), and 0 for a token that a bias of -inf forbids.
        constant = -given.entropy * values.entropy
        torch.addcmul(column(constant if given.v is None else constant + given.v), x, column(-given.entropy), out=x)
        if forbidden is not None:
            x.masked_fill_(forbidden, 0)
        x.mul_(p)
    elif given.v is not None:
        exp_(x.sub_(column(values.v))).mul_(column(given.v))
    else:
        x.zero_()
    if factor is not None:
        x.addcmul_(tempered, factor)
    if asked.mean and given.mean_logit is not None:
        x.add_(column(given.mean_logit / state.columns))


def apply_postprocessing_(tile: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Logits of what the projection gives, in place: see [`~soft_q.projection.Projection`]."""
    if scale != 1.0:
        tile.mul_(scale)
    if softcap is not None:
        tile.div_(softcap).tanh_().mul_(softcap)
    return tile
