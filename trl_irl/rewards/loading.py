"""Models that judge, loaded beside one that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import deepspeed


@contextmanager
def whole_weights() -> Iterator[None]:
    """
    Models loaded inside keep their whole weights on every rank. Once the arguments of a run under DeepSpeed ZeRO-3 are
    parsed, transformers shards every model that is loaded by name, and nobody gathers one that only judges.
    """
    reference = deepspeed._hf_deepspeed_config_weak_ref  # no public way to put it back
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference
