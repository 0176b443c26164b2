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
# The largest logit where all so far are less, -inf mostly: the difference of two infinities is NaN, and that of two
# numbers beyond this, as some models mask tokens with, is lost in their rounding.
LEAST = -1e8


def uses_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tiles are folded by the Triton kernels, whose sums are float32, rather than by torch operations."""
    return device.type == "cuda" and dtype != torch.float64 and is_triton_available()


def fold_keeps(device: torch.device, dtype: torch.dtype, scale: float, softcap: float | None) -> bool:
    """Whether [`fold`] leaves a tile as it was, so that [`gradient`] can take it."""
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
            Output of the projection for the vocabulary columns `start ... start + columns - 1`. Becomes logits.
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

    new_max = torch.maximum(stats.max, tile_max).clamp_(min=LEAST)
    fallen = stats.max - new_max
    rescale = fallen.exp()
    if stats.sum_logit is not None:
        stats.sum_logit.add_(tile.sum(1))
    weights = work[: tile.numel()].view_as(tile)
    exp_of_difference(tile, new_max, out=weights)
    stats.sum_exp.mul_(rescale).add_(weights.sum(1))
    stats.sum_exp_logit.mul_(rescale).add_(_sum_of_products(weights, tile))
    if stats.sum_tempered is not None:
        _fold_tempered(tile, new_max, fallen, stats, weights, more)
    stats.max.copy_(new_max)


def _fold_tempered(
    tile: torch.Tensor,
    new_max: torch.Tensor,
    fallen: torch.Tensor,
    stats: RunningStatistics,
    weights: torch.Tensor,
    more: _Memory,
) -> None:
    """The sums of exp((l - max) / temperature), in the memory of `weights`, and what GEM makes of them."""
    temperature = stats.asked.temperature
    exp_of_difference(tile, new_max, temperature, out=weights)
    rescale, mass = (fallen / temperature).exp(), weights.sum(1)
    stats.sum_tempered.mul_(rescale).add_(mass)
    if stats.gem_mass is None:
        return
    if stats.label_logits is not None:
        mass = weights.div_(_inverse_log_sigmoid_weights(tile, stats.label_logits, more(0, tile))).sum(1)
    stats.gem_mass.mul_(rescale).add_(mass)
    stats.gem_logit.mul_(rescale).add_(_sum_of_products(weights, tile))


def _sum_of_products(weights: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """sum_j w_j l_j of each row, in the memory of `weights`; a forbidden token, 0 * -inf, counts nothing."""
    found = weights.mul_(logits).sum(1)
    return weights.nan_to_num_().sum(1) if found.isnan().any() else found


def exp_of_difference(
    x: torch.Tensor, origin: torch.Tensor, temperature: float = 1.0, *, out: torch.Tensor
) -> torch.Tensor:
    """
    exp((x - origin) / temperature), with a number of `origin` for each row; `out` may be `x`. On a CPU torch's `exp2`
    takes a quarter of the time of its `exp`, and one pass more takes differences and units. What the origin loses by
    its rounding is the same for a whole row, and no more than a rounding of its V; beyond 1e9, where that is a hundred
    nats, it may be infinite.
    """
    coldness = _LOG2_E / temperature
    return torch.add((-origin * coldness).unsqueeze(1), x, alpha=coldness, out=out).exp2_()


def _inverse_log_sigmoid_weights(logits: torch.Tensor, label_logits: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """1 + exp(0.01 (l_a - l)): dividing by it takes a pass less than multiplying with the sigmoid."""
    return exp_of_difference(logits, label_logits, -1 / GEM_SLOPE, out=out).add_(1)


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

    of_entropy = asked.entropy and given.entropy is not None
    of_policy = of_entropy or given.v is not None
    tempered = None
    if given.v_tempered is not None or given.gem is not None:
        tempered = _tempered_gradient(x, state, more(0, x) if of_policy else x, more)
    if of_entropy:
        x.sub_(column(values.v)).clamp_(min=LEAST)  # a token that is forbidden: 0 * -inf is NaN
        p = torch.mul(x, _LOG2_E, out=more(1, x)).exp2_()
        # p (g_v - g_H (l - V + H))
        constant = -given.entropy * values.entropy
        torch.addcmul(column(constant if given.v is None else constant + given.v), x, column(-given.entropy), out=x)
        x.mul_(p)
    elif given.v is not None:
        exp_of_difference(x, values.v, out=x).mul_(column(given.v))
    elif tempered is None:
        x.zero_()
    if of_policy and tempered is not None:
        x.add_(tempered)
    if asked.mean and given.mean_logit is not None:
        x.add_(column(given.mean_logit / state.columns))


def _tempered_gradient(x: torch.Tensor, state: RowGradients, out: torch.Tensor, more: _Memory) -> torch.Tensor:
    """What the logits `x` get by the tempered value and by GEM, in `out`, which may be `x`."""
    given, factor = state.given, None if state.given.v_tempered is None else state.given.v_tempered.unsqueeze(1)
    if given.gem is not None:
        of_gem = given.gem.unsqueeze(1)
        if state.asked.gem == "log_sigmoid":
            inverse = _inverse_log_sigmoid_weights(x, state.label_logits, more(2, x))
            of_gem = torch.div(of_gem, inverse, out=inverse)
        factor = of_gem if factor is None else of_gem + factor
    return exp_of_difference(x, state.values.v_tempered, state.asked.temperature, out=out).mul_(factor)


def apply_postprocessing_(tile: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Logits of what the projection gives, in place: see [`~soft_q.projection.Projection`]."""
    if scale != 1.0:
        tile.mul_(scale)
    if softcap is not None:
        tile.div_(softcap).tanh_().mul_(softcap)
    return tile
