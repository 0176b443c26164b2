"""
Q, V and other statistics of the logits of scored tokens, without the `(tokens, vocabulary)` logits.

    Q(s, a) = logit of token a        V(s) = logsumexp over the vocabulary of Q(s, .)

The forward keeps a few numbers per token, and the backward computes each tile of logits again, unless all of them are
one tile, which is then kept (three products with the weight instead of four):

    dL/dlogits = g_q * onehot(a) + g_v * softmax(logits) + what [`~soft_q.statistics`] adds

Paper: "Imitating Language via Scalable Inverse Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

import torch

from .projection import Projection, product_dtype, project, projection_gradients, sum_dtype, tile_memory
from .statistics import RowGradients, RowValues, RunningStatistics, Statistics
from .tiles import apply_postprocessing_, fold, fold_keeps, gradient


# On a CPU 32, 64 and 128 MiB take the same time within 15 %, 32 the least; on an H200 32, 128 and 512 take 0.204,
# 0.134 and 0.132 s per step of 0.5 B weights (docs/results.md). 128 is half of what TRL 1.16's head takes.
DEFAULT_LOGIT_BUFFER_MB = 128


class _SoftQValues(torch.autograd.Function):
    """The fields of [`~soft_q.statistics.RowValues`]; see [`soft_q_values`]."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, scale, softcap, vocabulary, buffer_bytes, asked):
        projection = Projection(weight, bias, scale, softcap, vocabulary)
        dtype = product_dtype(hidden, weight)
        label_logits = _label_logits(hidden, projection, labels, dtype) if asked.gem == "log_sigmoid" else None
        stats = RunningStatistics(labels, sum_dtype(dtype), asked, label_logits)
        tiles = projection.tiles(len(labels), buffer_bytes)
        with tile_memory(hidden.device, tiles, sum_dtype(dtype)) as (buffer, work):
            cast_hidden = hidden.to(dtype)
            for rows, columns in tiles:
                tile = project(cast_hidden[rows], weight[columns].to(dtype), bias, columns, buffer)
                fold(tile, columns.start, stats.rows(rows), scale, softcap, work)
        ctx.tile = buffer if len(tiles) == 1 and fold_keeps(hidden.device, scale, softcap) else None
        values, mass = stats.result(projection.columns)
        ctx.save_for_backward(hidden, weight, bias, labels, values.v, values.entropy, values.v_tempered, mass)
        ctx.label_logits, ctx.forbids = label_logits, stats.forbids[0]
        ctx.set_materialize_grads(False)  # GEM has no use for V, and its tiles then need one exponential less
        ctx.settings = (scale, softcap, vocabulary, buffer_bytes, dtype, asked)
        ctx.mark_non_differentiable(values.is_top1, *(() if asked.entropy else (values.entropy,)))
        return tuple(values)

    @staticmethod
    def backward(ctx, *given):
        hidden, weight, bias, labels, v, entropy, v_tempered, mass = ctx.saved_tensors
        scale, softcap, vocabulary, buffer_bytes, dtype, asked = ctx.settings
        projection = Projection(weight, bias, scale, softcap, vocabulary)
        values = RowValues(None, v, entropy, None, None, v_tempered)
        given = RowValues(*given)._replace(is_top1=None)
        state = RowGradients(asked, labels, values, mass, ctx.label_logits, given, projection.columns, ctx.forbids)

        def logit_gradient(rows, columns, tile, work):
            return gradient(tile, columns.start, state.rows(rows), scale, softcap, dtype, work)

        wanted = ctx.needs_input_grad[:3]
        tile, ctx.tile = ctx.tile, None  # overwritten below: a second backward computes it again
        grads = projection_gradients(hidden, projection, wanted, dtype, buffer_bytes, logit_gradient, tile)
        return *grads, None, None, None, None, None, None


def _label_logits(
    hidden: torch.Tensor, projection: Projection, labels: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The logit of each label, by a product of its own, a few rows at a time."""
    found, chosen = [], projection.weight
    for rows in torch.arange(len(labels), device=labels.device).split(1024):
        products = hidden[rows].to(sum_dtype(dtype)) * chosen[labels[rows]].to(sum_dtype(dtype))
        found.append(products.sum(1))
    logits = torch.cat(found) if found else hidden.new_zeros(0, dtype=sum_dtype(dtype))
    if projection.bias is not None:
        logits += projection.bias[labels]
    apply_postprocessing_(logits, projection.scale, projection.softcap)
    return logits


def soft_q_values(
    hidden: torch.Tensor,
    projection: Projection,
    labels: torch.Tensor,
    logit_buffer_mb: float = DEFAULT_LOGIT_BUFFER_MB,
    statistics: Statistics | None = None,
) -> RowValues:
    """
    Q of the label and V, for scored tokens only.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden)`):
            Last hidden states at the scored positions.
        projection ([`~soft_q.projection.Projection`]):
            The output projection. No gradient is computed for parameters that do not require one.
        labels (`torch.Tensor` of shape `(tokens,)`, int64):
            The action at each position; no -100 here.
        logit_buffer_mb (`float`, *optional*, defaults to `128`):
            Memory in MiB for the tile of logits at work and its working copy. Where half of it holds the logits of all
            tokens, they stay until the backward, which then multiplies with the weight once less.
        statistics ([`~soft_q.statistics.Statistics`], *optional*):
            What to give beside them.

    Returns:
        [`~soft_q.statistics.RowValues`]
    """
    with projection.gathered():
        values = _SoftQValues.apply(
            hidden,
            projection.weight,
            projection.bias,
            labels,
            projection.scale,
            projection.softcap,
            projection.vocabulary,
            int(logit_buffer_mb * 2**20),
            statistics or Statistics(),
        )
    return RowValues(*values)
