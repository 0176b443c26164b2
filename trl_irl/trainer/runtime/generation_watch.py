"""Whether what a policy samples is worth learning from: room for it before, and completions that end on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig

from ...text.context import context_length


# Generations in a row without one completion that ends, or with empty ones alone, before the run is ended.
MAX_WITHOUT_END = 20


class GenerationError(RuntimeError):
    """The policy samples nothing that there is something to learn from."""


def check_prompt(length: int, where: str) -> None:
    """
    Raises:
        `ValueError`: a prompt, of the row that `where` names, has no token.
    """
    if not length:
        raise ValueError(
            f"{where} has an empty prompt, without one token for the policy to go on from. Leave such rows out, or "
            "begin prompts with some text."
        )


def check_context(
    config: PretrainedConfig, longest_prompt: int, max_completion_length: int, whose: str = "the model's"
) -> None:
    """
    Raises:
        `ValueError`: prompt and completion, in tokens, are longer than the context; `whose` says which model's.
    """
    context = context_length(config)
    if context is not None and longest_prompt + max_completion_length > context:
        raise ValueError(
            f"The longest prompt has {longest_prompt} tokens, which leaves no room for `max_completion_length="
            f"{max_completion_length}` in {whose} context of {context}. Lower it, or leave such rows out."
        )


class GenerationWatch:
    """
    Ends a run that only samples completions there is nothing to learn from.

    Args:
        accelerator ([`~accelerate.Accelerator`])
        max_completion_length (`int`):
            Of the sampling, in tokens.
        weights (`str`):
            What else to lower, beside the learning rate, when the policy has lost its words.
    """

    def __init__(self, accelerator: Accelerator, max_completion_length: int, weights: str):
        self.accelerator, self.max_completion_length, self.weights = accelerator, max_completion_length, weights
        self._without_end = 0

    def see(self, completions: Sequence[Sequence[int]], ended: Sequence[bool]) -> None:
        """
        All ranks take part, with their own completions (token ids) and whether each ends in a stop token.

        Raises:
            `GenerationError`: for 20 generations no completion ended, or all were empty.
        """
        empty = all(end and len(completion) == 1 for completion, end in zip(completions, ended, strict=True))
        some = self.accelerator.reduce(
            torch.tensor([float(any(ended)), float(not empty)], device=self.accelerator.device), reduction="sum"
        )
        self._without_end = 0 if some.min() > 0 else self._without_end + 1
        if self._without_end >= MAX_WITHOUT_END:
            what = (
                f"no completion ended within `max_completion_length={self.max_completion_length}` tokens. Raise it"
                if some[0] == 0
                else "every completion was empty: the policy only says its stop token. Lower `learning_rate` or "
                f"{self.weights}"
            )
            raise GenerationError(
                f"For {self._without_end} generations {what}, or start from a model that imitates the data already "
                "(`trl sft`, `trl-irl irl`)."
            )
