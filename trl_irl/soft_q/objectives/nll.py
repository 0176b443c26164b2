"""Maximum likelihood: the sum over scored tokens of -log pi(a_t|s_t), which is SFTTrainer's loss."""

from __future__ import annotations

from dataclasses import dataclass

from .objective import Objective


@dataclass(frozen=True)
class NLL(Objective):
    """
    Args:
        lambda_kl (`float`, *optional*, defaults to `0.0`):
            Weight of the KL to a reference, where the output has one.
    """

    lambda_kl: float = 0.0
    formula = "maximum likelihood: nll"

    def __call__(self, terms, output, lambda_td):
        return self.with_kl(terms.nll.sum(), output)
