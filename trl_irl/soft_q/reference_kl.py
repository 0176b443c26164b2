"""
The exact KL to a reference policy, over the whole vocabulary at each scored state, without materialising logits:

    KL(pi || ref) = sum_a pi(a) * (Q(a) - Q_ref(a)) - V + V_ref

    dKL / dQ(a)   = pi(a) * (Q(a) - V - Q_ref(a) + V_ref - KL)

Not the log-ratio on expert tokens that is sometimes called "KL": that one only rescales the negative log-likelihood.
"""

from __future__ import annotations

import torch

from .projection import Projection, product_dtype, project, projection_gradients, sum_dtype, tile_memory
from .tiles import apply_postprocessing_


class _ReferenceKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, scale, softcap, vocabulary, ref_hidden, reference, buffer_bytes):
        policy = Projection(weight, bias, scale, softcap, vocabulary)
        dtype, ref_dtype = product_dtype(hidden, weight), product_dtype(ref_hidden, reference.weight)
        accumulate = sum_dtype(dtype)
        statistics = _Statistics(len(hidden), accumulate, hidden.device)
        tiles = policy.tiles(len(hidden), buffer_bytes)
        with tile_memory(hidden.device, tiles, accumulate, count=3) as (buffer, ref_buffer, work):
            for rows, columns in tiles:
                q = project(hidden[rows].to(dtype), weight[columns].to(dtype), bias, columns, buffer)
                apply_postprocessing_(q, scale, softcap)
                q_ref = _reference_logits(reference, ref_hidden[rows], columns, ref_dtype, ref_buffer)
                statistics.fold(rows, q, q_ref, work)
        kl, v, v_ref = statistics.result()
        ctx.save_for_backward(hidden, weight, bias, ref_hidden, kl, v, v_ref)
        ctx.settings = (scale, softcap, vocabulary, reference, buffer_bytes, dtype, ref_dtype)
        ctx.mark_non_differentiable(v_ref)
        return kl, v_ref

    @staticmethod
    def backward(ctx, grad_kl, _):
        hidden, weight, bias, ref_hidden, kl, v, v_ref = ctx.saved_tensors
        scale, softcap, vocabulary, reference, buffer_bytes, dtype, ref_dtype = ctx.settings
        with reference.gathered():

            def logit_gradient(rows, columns, q, work):
                apply_postprocessing_(q, scale, softcap)
                log_ratio = _reference_logits(reference, ref_hidden[rows], columns, ref_dtype, work)
                log_ratio.neg_().add_(q).sub_((v[rows] - v_ref[rows] + kl[rows]).unsqueeze(1))
                log_ratio.masked_fill_(q == float("-inf"), 0)
                if softcap is not None:  # d softcap * tanh(x / softcap) / dx
                    log_ratio.mul_(1 - (q / softcap).square())
                grad = q.sub_(v[rows].unsqueeze(1)).exp_().mul_(log_ratio)
                return grad.mul_((scale * grad_kl[rows]).unsqueeze(1)).to(dtype)

            grads = projection_gradients(
                hidden,
                Projection(weight, bias, scale, softcap, vocabulary),
                ctx.needs_input_grad[:3],
                dtype,
                buffer_bytes,
                logit_gradient,
            )
        return *grads, None, None, None, None, None, None


def _reference_logits(
    reference: Projection, hidden: torch.Tensor, columns: slice, dtype: torch.dtype, buffer: torch.Tensor
) -> torch.Tensor:
    tile = project(hidden.to(dtype), reference.weight[columns].to(dtype), reference.bias, columns, buffer)
    apply_postprocessing_(tile, reference.scale, reference.softcap)
    return tile


class _Statistics:
    """Streaming logsumexp of both policies and the policy's expectation of their logit difference."""

    def __init__(self, tokens: int, dtype: torch.dtype, device: torch.device):
        self.max, self.max_ref = (torch.full((tokens,), float("-inf"), dtype=dtype, device=device) for _ in range(2))
        self.sum, self.sum_ref, self.gap = (torch.zeros(tokens, dtype=dtype, device=device) for _ in range(3))

    def fold(self, rows: slice, q: torch.Tensor, q_ref: torch.Tensor, work: torch.Tensor) -> None:
        """Fold a tile of both policies' logits, each `(tokens, columns)` and overwritten; `work` is flat memory."""
        gap = torch.sub(q, q_ref, out=work[: q.numel()].view_as(q))
        gap.masked_fill_(q == float("-inf"), 0)  # what the policy cannot do counts nothing
        weights = _fold_logsumexp(self.max[rows], self.sum[rows], q, self.gap[rows])
        self.gap[rows] += torch.bmm(weights.unsqueeze(1), gap.unsqueeze(2)).view(-1)
        _fold_logsumexp(self.max_ref[rows], self.sum_ref[rows], q_ref)

    def result(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        v, v_ref = self.max + self.sum.log(), self.max_ref + self.sum_ref.log()
        return self.gap / self.sum - v + v_ref, v, v_ref


def _fold_logsumexp(
    running_max: torch.Tensor, running_sum: torch.Tensor, tile: torch.Tensor, *also_rescale: torch.Tensor
) -> torch.Tensor:
    # Finite also where all logits so far are -inf: the difference of two infinities is NaN.
    new_max = torch.maximum(running_max, tile.amax(1)).clamp_(min=torch.finfo(tile.dtype).min)
    rescale = (running_max - new_max).exp()
    weights = tile.sub_(new_max.unsqueeze(1)).exp_()
    for total in (running_sum, *also_rescale):
        total.mul_(rescale)
    running_sum.add_(weights.sum(1))
    running_max.copy_(new_max)
    return weights


def reference_kl(
    hidden: torch.Tensor,
    policy: Projection,
    ref_hidden: torch.Tensor,
    reference: Projection,
    logit_buffer_mb: float = 128,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    KL(policy || reference) at each scored state, exact over the vocabulary, in nats, and the reference's V there.

    Args:
        hidden (`torch.Tensor` of shape `(tokens, hidden)`):
            The policy's last hidden states at the scored positions.
        policy ([`~soft_q.projection.Projection`]):
            The policy's output projection.
        ref_hidden (`torch.Tensor` of shape `(tokens, reference hidden)`):
            The reference's last hidden states at the same positions. No gradient flows into the reference.
        reference ([`~soft_q.projection.Projection`]):
            The reference's output projection, over the same vocabulary.
        logit_buffer_mb (`float`, *optional*, defaults to `128`):
            Memory in MiB for the policy's tile of logits and its working copy; the reference's tile takes half as
            much.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, each of shape `(tokens,)` and float32: the KL, with gradients into the
        policy, and V of the reference, without.

    Raises:
        `ValueError`: the vocabularies differ in size.
    """
    with policy.gathered(), reference.gathered():
        if policy.columns != reference.columns:
            raise ValueError(
                f"The policy's vocabulary has {policy.columns} tokens and the reference's "
                f"{reference.columns}. KL compares the two token by token: use a reference of the same model "
                "family, resized alike."
            )
        return _ReferenceKL.apply(
            hidden,
            policy.weight,
            policy.bias,
            policy.scale,
            policy.softcap,
            policy.vocabulary,
            ref_hidden.detach(),
            reference,
            int(logit_buffer_mb * 2**20),
        )
