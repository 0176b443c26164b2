"""Models that judge, loaded beside one that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import AutoTokenizer, PreTrainedTokenizerBase
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


def check_same_tokens(tokenizer: PreTrainedTokenizerBase, path: str, key: str) -> None:
    """
    Raises:
        `ValueError`: the tokenizer at `path` is another one than the policy's.
    """
    try:
        other = AutoTokenizer.from_pretrained(path).get_vocab()
    except (OSError, ValueError):
        return  # none was saved with it
    own = tokenizer.get_vocab()
    differing = [token for token in own.keys() & other.keys() if own[token] != other[token]]
    missing = [token for token in own.keys() ^ other.keys() if token != tokenizer.pad_token]
    if differing or missing:
        token = (differing or missing)[0]
        raise ValueError(
            f"`{key}: {path}` has another tokenizer than the policy: {token!r} is {other.get(token)} there and "
            f"{own.get(token)} here. It is given the policy's own token ids. Train it from a model with the policy's "
            "tokenizer."
        )
