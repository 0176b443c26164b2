"""Which tokens end a completion, and completions up to the first of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens after which the state is terminal: the tokenizer's EOS and those of the generation config."""
    eos = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return frozenset({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})


def cut_at_stop(ids: Sequence[int], stop_tokens: Collection[int]) -> list[int]:
    """A completion's token ids up to its first stop token, that one included; all of them if it has none."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_tokens), len(ids))
    return list(ids[:end])
