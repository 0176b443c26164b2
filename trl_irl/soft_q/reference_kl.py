"""
The exact KL to a reference policy, over the whole vocabulary at each scored state, without materialising logits: what
[`~soft_q.values`] does with a tile of the policy's logits where there is a reference.

    KL(pi || ref) = sum_a pi(a) * (Q(a) - Q_ref(a)) - V + V_ref

    dKL / dQ(a)   = pi(a) * (Q(a) - V - Q_ref(a) + V_ref - KL)

Not the log-ratio on expert tokens that is sometimes called "KL": that one only rescales the negative log-likelihood.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .projection import Projection, project, sum_dtype
from .tiles import LEAST, apply_postprocessing_, chunks, exp_of_difference


class Reference(NamedTuple):
    """
    A reference policy at the scored states of a batch.

    Attributes:
        hidden_states (`torch.Tensor` of shape `(scored tokens, hidden)`):
            Its own. No gradient flows into it.
        projection ([`~soft_q.projection.Projection`]):
            Its own, over the same vocabulary.
        kl, values (`bool`):
            Whether the KL to it is wanted, and its V.
    """

    hidden_states: torch.Tensor
    projection: Projection
    kl: bool = True
    values: bool = False


def check_vocabulary(policy: Projection, reference: Projection) -> None:
    """
    Raises:
        `ValueError`: the vocabularies differ in size.
    """
    if policy.columns != reference.columns:
        raise ValueError(
            f"The policy's vocabulary has {policy.columns} tokens and the reference's {reference.columns}. They are "
            "compared token by token: use a reference of the same model family, resized alike."
        )


class ReferenceLogits:
    """Tiles of a reference's logits, in memory that each tile uses again."""

    def __init__(self, reference: Reference, dtype: torch.dtype):
        self._projection = reference.projection
        self._dtype = dtype
        self._hidden = reference.hidden_states.detach().to(self._dtype)
        self._memory: torch.Tensor | None = None
        self._weight: tuple[slice, torch.Tensor] | None = None

    def tile(self, rows: slice, columns: slice, like: torch.Tensor) -> torch.Tensor:
        """Those of some tokens and columns, in nats, of the shape and the dtype of `like`."""
        if self._memory is None or self._memory.numel() < like.numel():
            self._memory = torch.empty(like.numel(), dtype=sum_dtype(self._dtype), device=like.device)
        if self._weight is None or self._weight[0] != columns:  # cast once for all rows of these columns
            self._weight = columns, self._projection.weight[columns].to(self._dtype)
        given = project(self._hidden[rows], self._weight[1], self._projection.bias, columns, self._memory)
        apply_postprocessing_(given, self._projection.scale, self._projection.softcap)
        return given.to(like.dtype)


class RunningKL:
    """
    Streaming logsumexp of both policies, and the policy's expectation of their logit difference.

    Args:
        tokens (`int`), dtype (`torch.dtype`), device (`torch.device`):
            Of the statistics, one number per token.
        reference ([`ReferenceLogits`])
    """

    def __init__(self, tokens: int, dtype: torch.dtype, device: torch.device, reference: ReferenceLogits):
        self._reference = reference
        self.max, self.max_ref = (torch.full((tokens,), float("-inf"), dtype=dtype, device=device) for _ in range(2))
        self.sum, self.sum_ref, self.gap = (torch.zeros(tokens, dtype=dtype, device=device) for _ in range(3))

    def fold(self, rows: slice, columns: slice, q: torch.Tensor, work: torch.Tensor) -> None:
        """
        Fold a tile of the policy's logits, `(tokens, columns)` and in nats, which stays as it is; `work` is flat
        memory of its size.
        """
        q_ref = self._reference.tile(rows, columns, q)
        for part in chunks(q):
            of = slice(rows.start + part.start, rows.start + min(part.stop, len(q)))
            self._fold_rows(of, q[part], q_ref[part], work[: q[part].numel()].view_as(q[part]))

    def _fold_rows(self, rows: slice, q: torch.Tensor, q_ref: torch.Tensor, gap: torch.Tensor) -> None:
        torch.sub(q, q_ref, out=gap)
        gap.masked_fill_(q == float("-inf"), 0)  # what the policy cannot do counts nothing
        _fold_logsumexp(self.max_ref[rows], self.sum_ref[rows], q_ref)
        weights = _fold_logsumexp(self.max[rows], self.sum[rows], q_ref.copy_(q), self.gap[rows])
        self.gap[rows] += weights.mul_(gap).sum(1)  # no product of matrices, which TF32 would round

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The KL and V of the reference, one number per token, in nats."""
        v, v_ref = self.max + self.sum.log(), self.max_ref + self.sum_ref.log()
        return self.gap / self.sum - v + v_ref, v_ref


def _fold_logsumexp(
    running_max: torch.Tensor, running_sum: torch.Tensor, tile: torch.Tensor, *also_rescale: torch.Tensor
) -> torch.Tensor:
    new_max = torch.maximum(running_max, tile.amax(1)).clamp_(min=LEAST)
    rescale = (running_max - new_max).exp()
    weights = exp_of_difference(tile, new_max, out=tile)
    for total in (running_sum, *also_rescale):
        total.mul_(rescale)
    running_sum.add_(weights.sum(1))
    running_max.copy_(new_max)
    return weights


def kl_gradient(
    q: torch.Tensor, q_ref: torch.Tensor, v: torch.Tensor, v_ref: torch.Tensor, kl: torch.Tensor, given: torch.Tensor
) -> torch.Tensor:
    """
    `given * dKL / dQ` of a tile, in the memory of `q_ref`.

    Args:
        q, q_ref (`torch.Tensor` of shape `(tokens, columns)`):
            Logits of the policy and the reference; both are overwritten.
        v, v_ref, kl, given (`torch.Tensor` of shape `(tokens,)`):
            Both values, the KL, and the gradient of the loss with respect to it.
    """
    for part in chunks(q):
        x, ratio = q[part], q_ref[part]
        ratio.neg_().add_(x).sub_((v[part] - v_ref[part] + kl[part]).unsqueeze(1))
        ratio.masked_fill_(x == float("-inf"), 0)
        ratio.mul_(exp_of_difference(x, v[part], out=x)).mul_(given[part].unsqueeze(1))
    return q_ref
