"""
Statistics of a row of logits l beside Q and V: what may be asked for, and what a forward keeps of it, tile by tile.

    entropy H          -sum_j p_j log p_j             dH/dl_j      = -p_j (l_j - V + H)
    mean logit         1/n sum_j l_j                  d/dl_j       = 1/n
    tempered value     V_b = b logsumexp(l / b)       dV_b/dl_j    = softmax(l / b)_j = t_j
    GEM's loss         sum_j t_j w_j (l_j - l_a)      d/dl_j       = t_j w_j - [j = a] sum_i t_i w_i

p is softmax(l), a the action. GEM's t and w are constants of the game that it plays (arXiv 2408.16673): w_j is 1 in
its linear form, whose gradient is that of V_b - l_a, and sigmoid(0.01 (l_j - l_a)) in its log-sigmoid form.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch


GEM_FORMS = ("linear", "log_sigmoid")
GEM_SLOPE = 0.01  # of the log-sigmoid form, in nats^-1; the authors' code has this number


@dataclass(frozen=True)
class Statistics:
    """
    What is asked of each row of logits beside Q, V, the entropy without gradient and whether the label is the largest.

    Args:
        entropy (`bool`, *optional*, defaults to `False`):
            A gradient for the entropy.
        mean (`bool`, *optional*, defaults to `False`):
            The mean logit over the vocabulary.
        temperature (`float`, *optional*):
            The value at this temperature.
        gem (`str`, *optional*):
            GEM's loss at `temperature`, `"linear"` or `"log_sigmoid"`.
    """

    entropy: bool = False
    mean: bool = False
    temperature: float | None = None
    gem: str | None = None

    def __or__(self, other: Statistics) -> Statistics:
        """
        What either asks for.

        Raises:
            `ValueError`: each asks for another temperature, or another form of GEM.
        """
        both = {}
        for key in (field.name for field in fields(self)):
            ours, theirs = getattr(self, key), getattr(other, key)
            if ours and theirs and ours != theirs:
                raise ValueError(f"a forward has one `{key}` beside 1, and these ask for {ours} and {theirs}.")
            both[key] = ours or theirs
        return Statistics(**both)

    @property
    def is_empty(self) -> bool:
        return self == Statistics()


class RowValues(NamedTuple):
    """
    Statistics of rows of logits, each of shape `(tokens,)`; float32 nats (float64 for a float64 model).

    Attributes:
        q, v (`torch.Tensor`): the label's logit and the logsumexp, with gradient.
        entropy (`torch.Tensor`): of the policy; with gradient where one was asked for.
        is_top1 (`torch.Tensor`, bool): whether the label's logit is the largest; ties go to the lowest id.
        mean_logit, v_tempered, gem (`torch.Tensor`, *optional*): see [`Statistics`]; with gradient.
        kl (`torch.Tensor`, *optional*): to the reference, where there is one; with gradient.
        v_ref (`torch.Tensor`, *optional*): the reference's logsumexp, without.
    """

    q: torch.Tensor
    v: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor
    mean_logit: torch.Tensor | None = None
    v_tempered: torch.Tensor | None = None
    gem: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    v_ref: torch.Tensor | None = None


class RunningStatistics:
    """
    What a forward pass keeps of the logits: one number per token and field, updated tile by tile from the left of the
    vocabulary to its right (a streaming logsumexp).

    Args:
        labels (`torch.Tensor` of shape `(tokens,)`, int64):
            The action of each token; its logit is `q`.
        dtype (`torch.dtype`):
            float32, or float64 when the model is.
        asked ([`Statistics`], *optional*):
            What else to keep.
        label_logits (`torch.Tensor` of shape `(tokens,)`, *optional*):
            The label's logit, known beforehand: GEM's log-sigmoid form needs it in every tile.
    """

    def __init__(
        self,
        labels: torch.Tensor,
        dtype: torch.dtype,
        asked: Statistics | None = None,
        label_logits: torch.Tensor | None = None,
    ):
        self.asked = asked or Statistics()
        self.labels = labels.contiguous()  # the kernels read one after the other

        def full(value: float) -> torch.Tensor:
            return torch.full(labels.shape, value, dtype=dtype, device=labels.device)

        self.max = full(float("-inf"))
        self.max_before_label = full(float("-inf"))
        self.sum_exp = full(0.0)  # sum of exp(l - max)
        self.sum_exp_logit = full(0.0)  # sum of exp(l - max) * l
        self.q = full(0.0)
        self.sum_logit = full(0.0) if self.asked.mean else None
        self.sum_tempered = full(0.0) if self.asked.temperature else None  # sum of exp((l - max) / temperature)
        self.gem_mass = full(0.0) if self.asked.gem else None  # the same, times w
        self.gem_logit = full(0.0) if self.asked.gem else None  # the same, times w * l
        self.label_logits = label_logits if self.asked.gem == "log_sigmoid" else None

    def rows(self, rows: slice) -> RunningStatistics:
        """A view of some tokens: folding into it updates this object."""
        view = object.__new__(RunningStatistics)
        view.__dict__.update(
            {name: x[rows] if isinstance(x, torch.Tensor) else x for name, x in self.__dict__.items()}
        )
        return view

    def result(self, columns: int) -> tuple[RowValues, torch.Tensor | None]:
        """The statistics of `columns` logits per row, and the sum of GEM's weights, which its gradient needs."""
        v = self.max + self.sum_exp.log()
        entropy = v - self.sum_exp_logit / self.sum_exp
        is_top1 = (self.q >= self.max) & (self.q > self.max_before_label)
        mean_logit = v_tempered = gem = mass = None
        if self.asked.mean:
            mean_logit = self.sum_logit / columns
        if self.asked.temperature:
            v_tempered = self.max + self.asked.temperature * self.sum_tempered.log()
        if self.asked.gem:
            mass = self.gem_mass / self.sum_tempered
            gem = self.gem_logit / self.sum_tempered - mass * self.q
        return RowValues(self.q, v, entropy, is_top1, mean_logit, v_tempered, gem), mass


@dataclass(frozen=True)
class RowGradients:
    """
    What a backward pass knows of each row: what the forward found, and the gradient of the loss with respect to it.

    Args:
        asked ([`Statistics`])
        labels (`torch.Tensor` of shape `(tokens,)`, int64)
        values ([`RowValues`]): the forward's.
        mass, label_logits (`torch.Tensor` of shape `(tokens,)`, *optional*): of GEM.
        given ([`RowValues`]): for each of `values` the gradient of the loss; `None` is 0.
        columns (`int`): how many logits a row has.
    """

    asked: Statistics
    labels: torch.Tensor
    values: RowValues
    mass: torch.Tensor | None
    label_logits: torch.Tensor | None
    given: RowValues
    columns: int

    def rows(self, rows: slice) -> RowGradients:
        """Those of some tokens."""

        def of(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x[rows]

        values, given = (RowValues(*map(of, x)) for x in (self.values, self.given))
        more = of(self.mass), of(self.label_logits)
        return RowGradients(self.asked, self.labels[rows], values, *more, given, self.columns)

    @property
    def of_label(self) -> torch.Tensor:
        """What the label's logit gets beside its part of the softmax."""
        of_label = torch.zeros_like(self.values.v) if self.given.q is None else self.given.q
        return of_label if self.mass is None or self.given.gem is None else of_label - self.given.gem * self.mass
