"""What a tokenizer writes around texts: its chat template, and the token that ends one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from .messages import RowError


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def template_arguments(row: Mapping, **arguments) -> dict:
    """What a chat template gets beside messages: the row's `tools` and `chat_template_kwargs`, as in SFTTrainer."""
    tools = row.get("tools")
    own = row.get("chat_template_kwargs") or {}
    tools = json.loads(tools) if isinstance(tools, str) else tools
    return {**({"tools": tools} if tools else {}), **arguments, **{k: x for k, x in own.items() if x is not None}}


def check_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        `ValueError`: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer{f' of {name}' if (name := tokenizer.name_or_path) else ''} has no EOS token, so nothing "
            "says where a completion ends. Name one of its tokens with `eos_token`, or set it and save the tokenizer."
        )


def from_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict], **options):
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except (TemplateError, TypeError) as error:  # what templates raise themselves, and what they trip over
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise RowError(
            f"the chat template cannot write its messages ({roles}): {error}. Change or leave out such rows, or take "
            "a tokenizer whose template can."
        ) from error
    except ValueError as error:
        if getattr(tokenizer, "chat_template", None) is not None:
            raise
        of = f" of {tokenizer.name_or_path}" if tokenizer.name_or_path else ""
        raise ValueError(
            f"The rows are messages, and the tokenizer{of} has no chat template to write them with. Name a model or "
            "tokenizer that has one, such as its instruct version (in training: `chat_template_path`), or give text."
        ) from error
