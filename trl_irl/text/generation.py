"""Sampling from a policy as it is, whatever its maker thought best for chatting with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import GenerationConfig


_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


@contextmanager
def as_it_is(model: torch.nn.Module) -> Iterator[None]:
    """
    Inside, `model.generate` takes the token ids from the model's generation config, and nothing else: no repetition
    penalty, min_p, banned words and so on, which many instruct models come with (Qwen's a penalty of 1.1) and which
    `generate` would add to every argument that it is not given. What the caller asks of `generate` itself holds. The
    config is put back, so that it is saved with the model as it was.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): unwrapped.
    """
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = owner.generation_config
    owner.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _TOKENS})
    try:
        yield
    finally:
        owner.generation_config = own
