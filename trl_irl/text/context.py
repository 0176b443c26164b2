"""How many tokens fit into a model, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PretrainedConfig


def context_length(config: PretrainedConfig) -> int | None:
    """Prompt and completion together, in tokens, if the model says how many; of a wrapper, its text model's."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def over(context: int | None, lengths: Mapping[int, int], room: int = 0) -> dict[int, int]:
    """
    What does not fit into a context: by number, the lengths that are longer than it.

    Args:
        context (`int`, *optional*):
            See [`context_length`]; everything fits into one that is not known.
        lengths (`Mapping[int, int]`):
            By number, in tokens.
        room (`int`, *optional*, defaults to `0`):
            Tokens that are to follow each.
    """
    if context is None:
        return {}
    return {i: length for i, length in lengths.items() if length + room > context}
