"""Maximum likelihood: the sum over scored tokens of -log pi(a_t|s_t), which is SFTTrainer's loss."""

from __future__ import annotations

from dataclasses import dataclass

from .per_token import PerToken


@dataclass(frozen=True)
class NLL(PerToken):
    """The objective above."""

    title = "maximum likelihood"
