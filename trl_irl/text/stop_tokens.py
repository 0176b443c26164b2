"""Which tokens end a completion, and completions up to the first of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .encode import encode_row
from .messages import is_messages


if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def stop_token_ids(model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """
    Tokens after which the state is terminal: the tokenizer's EOS and those of the generation config.

    Args:
        model ([`~transformers.PreTrainedModel`] or `str`):
            Itself, or a folder or Hub id whose generation config says it; without one it is the tokenizer's EOS alone.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`])
    """
    config = _generation_config(model) if isinstance(model, str) else getattr(model, "generation_config", None)
    eos = getattr(config, "eos_token_id", None)
    return frozenset({tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None})


def _generation_config(path: str) -> GenerationConfig | PretrainedConfig | None:
    """That of a folder or Hub id, of an adapter its base's; without one the config, from which it would be made."""
    from transformers import AutoConfig, GenerationConfig

    if (Path(path) / "adapter_config.json").is_file():
        base = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
        path = base.get("base_model_name_or_path") or path
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        pass  # none was saved with it
    try:
        return AutoConfig.from_pretrained(path).get_text_config()
    except (OSError, ValueError):
        return None


def end_turns_as_the_template_does(
    tokenizer: PreTrainedTokenizerBase, prompt, stop_tokens: Collection[int], **template_kwargs
) -> None:
    """
    After a prompt of messages, the stop token that the chat template ends an answer with becomes the tokenizer's EOS:
    TRL 1.12's RLOO and PPO know no other end. Prompts of text or ids, and templates that end an answer with none of
    `stop_tokens`, leave it as it is.
    """
    if not is_messages(prompt):
        return
    row: Mapping = {"prompt": prompt, "completion": "x"}
    ends = [token for token in encode_row(tokenizer, row, **template_kwargs).completion if token in stop_tokens]
    if ends and ends[0] != tokenizer.eos_token_id:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])


def why_nothing_ends(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Mapping], stop_tokens: Collection[int], **template_kwargs
) -> str | None:
    """
    What to tell the user if none of these rows' completions (or an answer, where they have none) is written with a
    stop token at its end: a policy that has learned from such would never stop. `None` if one is.
    """
    count = 0
    for row in rows:
        count += 1
        row = {"completion": "x", **row}
        if not frozenset(stop_tokens).isdisjoint(encode_row(tokenizer, row, **template_kwargs).completion):
            return None
    if not count:
        return None
    names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(stop_tokens))) or "none is known"
    return (
        f"None of the first {count} rows is written with a stop token ({names}) at the end of its answer, so sampling "
        "would go on to the limit. If the chat template ends a turn with another token, set `eos_token` to it (for "
        "Qwen's base models <|im_end|>)."
    )


def cut_at_stop(ids: Sequence[int], stop_tokens: Collection[int]) -> list[int]:
    """A completion's token ids up to its first stop token, that one included; all of them if it has none."""
    end = next((i + 1 for i, token in enumerate(ids) if token in stop_tokens), len(ids))
    return list(ids[:end])
