"""The keys and values of what a model has read, kept so that each new token costs no copy of all before it."""

from __future__ import annotations

import inspect

import torch
from peft import PeftModel
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


_KEYS_AND_VALUES = {DynamicLayer, DynamicSlidingWindowLayer}
_ROOM = 64  # tokens


class RoomyLayer(DynamicLayer):
    """
    [`~transformers.cache_utils.DynamicLayer`] with room for the tokens to come: they are written behind the others,
    where a `DynamicLayer` concatenates, which copies all of them for each token. Its `keys` and `values` are the part
    that is written, as views. What else may be done to a layer (choosing rows, cutting, emptying it) replaces them,
    and the next `update` makes room anew.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self._rooms: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # by name, all of it and what is written

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._written("keys", self.keys, key_states)
        self.values = self._written("values", self.values, value_states)
        return self.keys, self.values

    def _written(self, name: str, before: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        start = before.size(-2) if before.numel() else 0
        end = start + new.size(-2)
        room, written = self._rooms.get(name, (None, None))
        if written is not before or room.size(-2) < end:
            room = new.new_empty((*new.shape[:-2], end + _ROOM, new.size(-1)))
            if start:
                room[..., :start, :] = before
        room[..., start:end, :] = new
        self._rooms[name] = (room, room[..., :end, :])
        return self._rooms[name][1]


def read_once(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> dict[str, Cache]:
    """
    What `generate` may begin with: a cache with room, and in it, where a prompt stands in a batch several times, all
    but its last token, read once and given to each of them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): unwrapped.
        batch (`dict[str, torch.Tensor]`): `input_ids` and `attention_mask`, padded on the left.

    Returns:
        `dict[str, Cache]`: under the name that the model has for it; empty for a model that counts positions by
        itself, keeps more than keys and values, or may read a prompt backwards too, as some with images do.
    """
    owner = model.get_base_model() if isinstance(model, PeftModel) else model
    known = inspect.signature(owner.forward).parameters.keys()
    # As transformers calls it since 5.24, and called it before.
    name = next((name for name in ("cache", "past_key_values") if name in known), None)
    if name is None or "position_ids" not in known or owner.config.sub_configs:
        return {}
    cache = DynamicCache(config=owner.config)
    if not {type(layer) for layer in cache.layers} <= _KEYS_AND_VALUES:
        return {}
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    rows, places = torch.unique(torch.where(mask.bool(), ids, -1), dim=0, return_inverse=True)
    if len(rows) == len(ids) or ids.size(1) < 2:
        return {name: cache}
    ids, mask = rows[:, :-1].clamp(min=0), (rows[:, :-1] >= 0).to(mask.dtype)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
    few = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **{name: cache}, **few)
    if cache.get_seq_length() != ids.size(1):  # a model without a cache leaves it as it is
        return {}
    cache.batch_select_indices(places.cpu())  # layers may lie on several devices
    return {name: cache}
