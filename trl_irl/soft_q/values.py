"""
Q, V and other statistics of the logits of scored tokens, without the `(tokens, vocabulary)` logits.

    Q(s, a) = logit of token a        V(s) = logsumexp over the vocabulary of Q(s, .)

The forward keeps a few numbers per token, and the backward computes each tile of logits again, unless all of them are
one tile, which is then kept (three products with the weight instead of four):

    dL/dlogits = g_q * onehot(a) + g_v * softmax(logits) + what [`~soft_q.statistics`] and [`~soft_q.reference_kl`] add

Paper: "Imitating Language via Scalable Inverse Reinforcement Learning" (arXiv 2409.01369).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from .buffer import DEFAULT_LOGIT_BUFFER_MB, buffer_bytes
from .projection import Projection, product_dtype, project, projection_gradients, sum_dtype, tile_memory
from .reference_kl import Reference, ReferenceLogits, RunningKL, check_vocabulary, kl_gradient
from .statistics import RowGradients, RowValues, RunningStatistics, Statistics
from .tiles import apply_postprocessing_, fold, fold_keeps, gradient


class _SoftQValues(torch.autograd.Function):
    """The fields of [`~soft_q.statistics.RowValues`]; see [`soft_q_values`]."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, scale, softcap, vocabulary, buffer_bytes, asked, reference):
        projection = Projection(weight, bias, scale, softcap, vocabulary)
        dtype = product_dtype(hidden, weight)
        label_logits = _label_logits(hidden, projection, labels, dtype) if asked.gem == "log_sigmoid" else None
        stats = RunningStatistics(labels, sum_dtype(dtype), asked, label_logits)
        tiles, running_kl = projection.tiles(len(labels), buffer_bytes), None
        ref_dtype = None
        if reference is not None:
            ref_dtype = product_dtype(reference.hidden_states, reference.projection.weight)
            running_kl = RunningKL(len(labels), sum_dtype(dtype), hidden.device, ReferenceLogits(reference, ref_dtype))
        with tile_memory(hidden.device, tiles, sum_dtype(dtype)) as (buffer, work):
            cast_hidden = hidden.to(dtype)
            for rows, columns in tiles:
                tile = project(cast_hidden[rows], weight[columns].to(dtype), bias, columns, buffer)
                if running_kl is not None:
                    running_kl.fold(rows, columns, _logits(tile, scale, softcap), work)
                fold(tile, columns.start, stats.rows(rows), scale, softcap, work)
        kept = len(tiles) == 1 and fold_keeps(hidden.device, sum_dtype(dtype), scale, softcap)
        ctx.tile = buffer if kept else None
        values, mass = stats.result(projection.columns)
        if running_kl is not None:
            kl, v_ref = running_kl.result()
            values = values._replace(kl=kl, v_ref=v_ref)
        known = (values.v, values.entropy, values.v_tempered, values.kl, values.v_ref)
        ctx.save_for_backward(hidden, weight, bias, labels, mass, *known)
        ctx.label_logits, ctx.reference = label_logits, reference
        ctx.set_materialize_grads(False)  # GEM has no use for V, and its tiles then need one exponential less
        ctx.settings = (scale, softcap, vocabulary, buffer_bytes, dtype, asked, ref_dtype)
        constants = [values.is_top1, None if asked.entropy else values.entropy, values.v_ref]
        ctx.mark_non_differentiable(*(x for x in constants if x is not None))
        return tuple(values)

    @staticmethod
    def backward(ctx, *given):
        hidden, weight, bias, labels, mass, v, entropy, v_tempered, kl, v_ref = ctx.saved_tensors
        scale, softcap, vocabulary, buffer_bytes, dtype, asked, ref_dtype = ctx.settings
        projection = Projection(weight, bias, scale, softcap, vocabulary)
        values = RowValues(None, v, entropy, None, None, v_tempered)
        given = RowValues(*given)._replace(is_top1=None, v_ref=None)
        state = RowGradients(asked, labels, values, mass, ctx.label_logits, given, projection.columns)

        compares = ctx.reference is not None and given.kl is not None
        ref_logits = ReferenceLogits(ctx.reference, ref_dtype) if compares else None

        def logit_gradient(rows, columns, tile, work):
            more = None
            if compares:
                q_ref = ref_logits.tile(rows, columns, tile)
                q = apply_postprocessing_(work[: tile.numel()].view_as(tile).copy_(tile), scale, softcap)
                slope = scale if softcap is None else scale * (1 - (q / softcap).square())  # of logits in products
                more = kl_gradient(q, q_ref, v[rows], v_ref[rows], kl[rows], given.kl[rows]).mul_(slope)
            found = gradient(tile, columns.start, state.rows(rows), scale, softcap, dtype, work)
            return found if more is None else found.add_(more)

        wanted = ctx.needs_input_grad[:3]
        tile, ctx.tile = ctx.tile, None  # overwritten below: a second backward computes it again
        with ctx.reference.projection.gathered() if compares else nullcontext():
            grads = projection_gradients(hidden, projection, wanted, dtype, buffer_bytes, logit_gradient, tile)
        return *grads, *[None] * 7


def _logits(tile: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """What a tile of the projection's output is in nats; where that is something else, a copy."""
    return tile if scale == 1.0 and softcap is None else apply_postprocessing_(tile.clone(), scale, softcap)


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
    logit_buffer_mb: float | str = DEFAULT_LOGIT_BUFFER_MB,
    statistics: Statistics | None = None,
    reference: Reference | None = None,
) -> RowValues:
    """
    Q of the label and V, for scored tokens only, and the KL to a reference or its V where there is one.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden)`):
            Last hidden states at the scored positions.
        projection ([`~soft_q.projection.Projection`]):
            The output projection. No gradient is computed for parameters that do not require one.
        labels (`torch.Tensor` of shape `(tokens,)`, int64):
            The action at each position; no -100 here.
        logit_buffer_mb (`float` or `"auto"`, *optional*, defaults to `128`):
            Memory in MiB for the tile of logits at work and its working copy. Where half of it holds the logits of all
            tokens, they stay until the backward, which then multiplies with the weight once less; `"auto"` sees to
            that where memory is free, see [`~soft_q.buffer.buffer_bytes`].
        statistics ([`~soft_q.statistics.Statistics`], *optional*):
            What to give beside them.
        reference ([`~soft_q.reference_kl.Reference`], *optional*):
            A policy to compare with. Its tile of logits takes half as much memory again.

    Returns:
        [`~soft_q.statistics.RowValues`]

    Raises:
        `ValueError`: the reference's vocabulary is of another size.
    """
    v_ref = None
    if reference is not None and not reference.kl:
        if reference.values:
            with torch.no_grad():
                v_ref = soft_q_values(reference.hidden_states, reference.projection, labels, logit_buffer_mb).v
        reference = None
    with projection.gathered(), nullcontext() if reference is None else reference.projection.gathered():
        if reference is not None:
            check_vocabulary(projection, reference.projection)
        sums = sum_dtype(product_dtype(hidden, projection.weight))
        keeps = fold_keeps(hidden.device, sums, projection.scale, projection.softcap)
        values = _SoftQValues.apply(
            hidden,
            projection.weight,
            projection.bias,
            labels,
            projection.scale,
            projection.softcap,
            projection.vocabulary,
            buffer_bytes(logit_buffer_mb, hidden, projection, keeps),
            statistics or Statistics(),
            reference,
        )
    values = RowValues(*values)
    if reference is not None:
        return values if reference.values else values._replace(v_ref=None)
    return values._replace(v_ref=v_ref)
