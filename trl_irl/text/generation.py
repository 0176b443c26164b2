"""Sampling from a policy as it is, whatever its maker thought best for chatting with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import Cache, GenerationConfig, PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from .._modes import in_mode
from .cache import read_once
from .padding import padded_batch
from .stop_tokens import cut_at_stop


_STRETCH = 32  # tokens, after which the rows that have ended are left out
# What means the same stretch by stretch; other options of `generate` look at the whole of a completion.
_OF_EACH_TOKEN = {
    "synced_gpus",
    "use_cache",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "bad_words_ids",
    "suppress_tokens",
}
# `forced_bos_token_id`: the language that an mBART or NLLB writes.
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "forced_bos_token_id")


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


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stop_tokens: Collection[int],
    pad_token_id: int | None,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    top_p: float = 1.0,
    description: str = "",
    top_k: int = 0,
    min_p: float = 0.0,
    beams: int = 1,
    **options,
) -> list[list[int]]:
    """
    One completion of each prompt, from the policy as it is ([`as_it_is`]): nothing is cut off its distribution but
    what is asked for.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Unwrapped, in any mode; it is left in it.
        prompts (`Sequence[list[int]]`):
            Token ids; they are padded on the left, or for an encoder, which a position may be absolute in, on the
            right.
        stop_tokens (`Collection[int]`):
            Tokens that end a completion.
        pad_token_id (`int`, *optional*):
            It is masked, so it may be a stop token, and is one where the tokenizer has no padding (`None`).
        max_new_tokens (`int`):
            Longest completion, in tokens.
        temperature (`float`):
            0 is greedy decoding.
        batch_size (`int`):
            Prompts at a time.
        top_p, top_k, min_p, beams (*optional*):
            See [`~text.samplers.Sampler`]; off by default.
        description (`str`, *optional*):
            Label of a progress bar, where somebody sees it move; empty for none.
        **options:
            More for `model.generate`, such as `synced_gpus` and `streamer`.

    Returns:
        `list[list[int]]`: token ids up to the first stop token, or to `max_new_tokens` where there is none.
    """
    choice: dict = {"do_sample": False, "num_beams": beams}
    if temperature > 0:
        choice = {"do_sample": True, "temperature": float(temperature), "top_k": top_k, "top_p": top_p}
        choice |= {"min_p": min_p} if min_p else {}
    if pad_token_id is None:
        pad_token_id = min(stop_tokens, default=0)
    choice |= {"eos_token_id": sorted(stop_tokens), "pad_token_id": pad_token_id}
    apart = model.config.is_encoder_decoder
    completions: list[list[int]] = []
    starts = range(0, len(prompts), batch_size)
    for start in tqdm(starts, desc=description, leave=False, disable=None if description else True):
        side = "right" if apart else "left"
        batch = padded_batch(prompts[start : start + batch_size], pad_token_id, side, device=model.device)
        with in_mode(model, training=False), as_it_is(model):
            shared = {} if apart or beams > 1 or options.get("synced_gpus") else read_once(model, batch)
            if shared and options.keys() <= _OF_EACH_TOKEN:
                completions += _in_stretches(model, batch, max_new_tokens, shared, **choice, **options)
                continue
            generated = model.generate(**batch, **shared, max_new_tokens=max_new_tokens, **choice, **options)
        width = 1 if apart else batch["input_ids"].size(1)  # of a decoder, the token that it begins with
        completions += [cut_at_stop(row, stop_tokens) for row in generated[:, width:].tolist()]
    return completions


def _in_stretches(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], max_new_tokens: int, shared: dict[str, Cache], **choice
) -> list[list[int]]:
    """
    What `generate` says to each row, a stretch of tokens at a time: rows that have ended are then left out, where
    `generate` would compute them until the last one ends.
    """
    (cache,) = shared.values()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    stop_tokens = ids.new_tensor(choice["eos_token_id"])
    said: list[list[int]] = [[] for _ in ids]
    left = torch.arange(len(ids), device=ids.device)  # the numbers of the rows that go on
    while max_new_tokens > 0:
        length = ids.size(1)
        ids = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **shared,
            max_new_tokens=min(max_new_tokens, _STRETCH),
            **choice,
        )
        new = ids[:, length:]
        for row, tokens in zip(left.tolist(), new.tolist(), strict=True):
            said[row] += tokens
        goes_on = ~torch.isin(new, stop_tokens).any(1)
        if not goes_on.any():
            break
        if not goes_on.all():
            cache.batch_select_indices(goes_on.nonzero()[:, 0].cpu())  # layers may lie on several devices
        ids, left = ids[goes_on], left[goes_on]
        mask = torch.cat([mask, mask.new_ones(len(mask), new.size(1))], dim=1)[goes_on]
        max_new_tokens -= new.size(1)
    return [cut_at_stop(row, choice["eos_token_id"]) for row in said]


@contextmanager
def unwrapped(model: torch.nn.Module, accelerator: Accelerator, args, gather: bool) -> Iterator[PreTrainedModel]:
    """
    What a trainer trains, unwrapped so that it generates, and afterwards as it was.

    Args:
        model (`torch.nn.Module`):
            A trainer's `model_wrapped`.
        accelerator ([`~accelerate.Accelerator`])
        args ([`~transformers.TrainingArguments`]):
            Of the trainer.
        gather (`bool`):
            ZeRO-3: gather all weights on each GPU while generating.
    """
    with unwrap_model_for_generation(model, accelerator, gather_deepspeed3_params=gather) as own:
        own = getattr(own, "policy", own)  # PPOTrainer wraps policy and value model together
        yield own
    if args.gradient_checkpointing:
        # TRL 1.12 turns it on again without its arguments, 1.16 with those it is given; this can go with 1.12.
        own.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
