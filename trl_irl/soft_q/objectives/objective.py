"""What a trainer minimises, as a value that it holds: from the terms of some tokens to a scalar sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from ..statistics import Statistics


if TYPE_CHECKING:
    from ..head import SoftQOutput
    from ..terms import SoftQTerms

    Numbers = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class Objective:
    """
    A sum over the scored tokens of a micro-batch. The trainer divides it by the number of tokens of the whole
    accumulated batch, over all ranks, so that neither micro-batches nor ranks change it.

    One of your own is a subclass, of which [`IRLTrainer`] takes an instance as `objective`:

    ```python
    >>> class ZLoss(Objective):
    ...     formula = "nll + lambda_td * V^2"
    ...
    ...     def __call__(self, terms, output, lambda_td):
    ...         return self.with_kl(terms.nll.sum() + lambda_td * (output.v.square() * terms.scored).sum(), output)
    ```

    Attributes:
        formula (`str`): what it is, for the table before a training.
        uses (`tuple[str, ...]`): keys of [`IRLConfig`] that it depends on beside `lambda_kl`: where `objective` names
            it, others of this kind are refused. Of an instance that was passed nobody asks.
        lambda_kl (`float`): weight of the KL to a reference, see [`with_kl`]; that of [`IRLConfig`].
        statistics ([`~soft_q.statistics.Statistics`]): what it needs of the logits beside Q and V.
        measures (`tuple[str, ...]`): constants that the first step measures for it, see [`first_step`].
    """

    formula: str = "an objective without a formula"
    uses: ClassVar[tuple[str, ...]] = ()
    lambda_kl: float = 0.0
    statistics: Statistics = Statistics()
    measures: tuple[str, ...] = ()
    is_scheduled: bool = True  # whether `lambda_td` weighs something of it
    value_temperature: float = 1.0  # of the reward's values; if it is not 1, it is that of `statistics`
    value_origin: str = "zero"  # "reference": V of `terms` is taken from that of a reference
    squares_logged: tuple[str, ...] = ()  # the logged metrics whose sum is what `lambda_td` weighs

    def __call__(self, terms: SoftQTerms, output: SoftQOutput, lambda_td: float) -> torch.Tensor:
        """
        Args:
            terms ([`~soft_q.terms.SoftQTerms`]):
                Likelihood and implied reward of each token, and which tokens are scored.
            output ([`~soft_q.head.SoftQOutput`]):
                Q, V, labels, entropy and what `statistics` asks for and, with a reference, the KL of each token or
                the reference's V.
            lambda_td (`float`):
                The weight that the schedule has reached, over `td_scale`.

        Returns:
            `torch.Tensor`: a scalar with gradient, in nats (and squared nats).
        """
        raise NotImplementedError

    def with_kl(self, loss: torch.Tensor, output: SoftQOutput) -> torch.Tensor:
        """
        The loss, and the KL to the reference with its weight where there is a reference. Without this call `lambda_kl`
        does nothing.
        """
        return loss if output.kl is None else loss + self.lambda_kl * output.kl.sum()

    def first_step(self, terms: SoftQTerms, output: SoftQOutput) -> Numbers:
        """
        What the first step measures: by the names in `measures`, a number per token and which tokens have one. Their
        means over all tokens of the step are handed to [`given`].
        """
        return {}

    def given(self, measured: Mapping[str, float]) -> Objective:
        """This objective with the constants that the first step has measured."""
        return self

    def metrics(self, terms: SoftQTerms, output: SoftQOutput) -> Numbers:
        """What to log of it: by name a number per token, and which tokens have one; the log has the mean."""
        return {}
