"""
Several documents in one row of an encoder-decoder, kept apart: which document each token is of, and the masks that
follow from it. Each decoder token sees its own document before it and all of its own document's encoder tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel


def decoder_inputs(model: PreTrainedModel, kwargs: dict[str, Any], labels: torch.Tensor) -> dict[str, Any]:
    """
    The arguments of an encoder-decoder's forward, with what its decoder reads made of the labels where it is not
    given. Where `encoder_documents` and `decoder_documents` are, int64 of shape `(batch, tokens)` with the number of
    the document that each token is of and -1 for padding, the encoder is run with masks of them, and the decoder is to
    be.
    """
    kwargs = dict(kwargs)
    documents = [kwargs.pop(f"{side}_documents", None) for side in ("encoder", "decoder")]
    if kwargs.get("decoder_input_ids") is None:
        kwargs["decoder_input_ids"] = shifted(model, labels)
    if documents[0] is None:
        return kwargs
    encoder, decoder = (ids.to(labels.device) for ids in documents)
    dtype = _mask_dtype(model, labels.device)
    ids, positions = kwargs.pop("input_ids"), kwargs.pop("position_ids", None)
    own = {} if positions is None else {"position_ids": positions}
    kwargs.pop("attention_mask", None)
    asked = {"input_ids": ids, "attention_mask": _additive(_same(encoder, encoder), dtype), **own}
    encoded = model.get_encoder()(**asked)
    causal = torch.ones(decoder.size(1), decoder.size(1), dtype=torch.bool, device=decoder.device).tril()
    return kwargs | {
        "encoder_outputs": encoded,
        "attention_mask": _additive(_same(decoder, encoder), dtype),
        "decoder_attention_mask": _additive(_same(decoder, decoder) & causal, dtype),
    }


def shifted(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """
    What the decoder reads before each label: the model's own way to shift them, or the usual one.

    mBART and PLBart put the last label in front: the language that stands behind EOS, or EOS. Of labels that were cut,
    and of what a policy said, that would be a token of the text; there it is what `generate` begins with.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None and not _puts_the_last_in_front(model, own):
        return own(labels=labels)
    ids = labels.roll(1, 1)
    ids[:, 0] = model.config.decoder_start_token_id if own is None else _last_or_start(model, labels)
    return ids.masked_fill(ids == -100, model.config.pad_token_id)


def _last_or_start(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """
    Of each row the last label if EOS stands before it, and else what `generate` begins with.

    Raises:
        `ValueError`: the configuration does not say with what.
    """
    configs, keys = (model.generation_config, model.config), ("decoder_start_token_id", "bos_token_id")
    told = [getattr(one, key) for key in keys for one in configs if getattr(one, key, None) is not None]
    if not told:
        raise ValueError("`decoder_start_token_id` is not set.")
    eos = model.config.eos_token_id
    numbers = torch.arange(1, labels.size(1) + 1, device=labels.device)
    count = ((labels != -100) * numbers).amax(1, keepdim=True)
    wider = torch.nn.functional.pad(labels, (2, 0), value=-100)  # a row may have one label, or none
    before, last = wider.gather(1, torch.cat([count, count + 1], 1)).T
    is_whole = torch.zeros_like(before, dtype=torch.bool)
    for token in eos if isinstance(eos, list) else [eos]:
        is_whole |= before == (-1 if token is None else token)
    return torch.where(is_whole, last, told[0])


_LAST_IN_FRONT: dict[type, bool] = {}


def _puts_the_last_in_front(model: PreTrainedModel, own: Callable) -> bool:
    if type(model) not in _LAST_IN_FRONT:
        tokens = [token for token in range(3) if token != model.config.pad_token_id][:2]
        first = [own(labels=torch.tensor([[tokens[0], label]]))[0, 0].item() for label in tokens]
        _LAST_IN_FRONT[type(model)] = first == tokens
    return _LAST_IN_FRONT[type(model)]


def _same(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Which keys each query may see, `(batch, 1, queries, keys)`: those of its document."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    As numbers that are added to attention scores: eager attention of T5 and others adds what it gets, and a boolean
    mask would add 0 and 1. A query of padding that may see nothing sees all, so that no row of a softmax is empty.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~(allowed | ~allowed.any(-1, keepdim=True)), torch.finfo(dtype).min)


def _mask_dtype(model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """The dtype that attention scores are in."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return model.dtype
